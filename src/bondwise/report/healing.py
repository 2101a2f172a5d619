"""How a model was healed, on its page: what was measured, the loss, what became of the slices."""

from collections.abc import Mapping, Sequence
from math import isfinite
from typing import Any

from bondwise.report.charts import Axis, Point, chart
from bondwise.report.groups import Report
from bondwise.report.markup import Markup, el, join
from bondwise.report.table import steps_done
from bondwise.report.units import decimal

POINTS = 60  # of a curve: each is the mean over a stretch of steps


def healing(report: Report) -> Markup:
    """What was measured while it was healed, the loss, and what became of the slices."""
    told: Mapping[str, Any] | None = report.get("healing")
    if told is None:
        return Markup("")
    history: Sequence[Mapping[str, Any]] = told["history"]
    axis = Axis("step", max((entry["step"] for entry in history), default=0) + 1)
    curves = [
        chart(f"{told['measured'].capitalize()} held out", {"healed": _looks(told)}, axis),
        chart("Loss while training", {"loss": _stretches(history)}, axis),
        _slices(told["slices"]),
    ]
    notes = [el("p", str(note), class_="note") for note in told["notes"]]
    charts = el("div", *(curve for curve in curves if curve), class_="charts")
    return join([el("p", _sentence(told)), charts, *notes])


def _sentence(told: Mapping[str, Any]) -> str:
    steps = told["steps"]
    parts = f"{steps['local']} steps of each slice towards the teacher's activations"
    whole = f"{steps_done(told)} of the whole model towards what the teacher says"
    if told["before"] is None or told["after"] is None:
        return f"{parts}, then {whole}."
    return (
        f"{parts}, then {whole}: {told['measured']} held out from {decimal(told['before'], 2)} "
        f"to {decimal(told['after'], 2)}."
    )


def _looks(told: Mapping[str, Any]) -> list[Point]:
    name = told["measured"]
    found = [(0, told["before"])] if told["before"] is not None else []
    found += [(e["step"], e[name]) for e in told["history"] if e.get(name) is not None]
    return [Point(step, value, f"step {step}: {decimal(value, 2)}") for step, value in found]


def _stretches(history: Sequence[Mapping[str, Any]]) -> list[Point]:
    """Means over at most `POINTS` stretches of steps."""
    each = -(-len(history) // POINTS) or 1
    points: list[Point] = []
    for start in range(0, len(history), each):
        part = history[start : start + each]
        losses = [entry["loss"] for entry in part if isfinite(entry["loss"])]
        if losses:
            mean = sum(losses) / len(losses)
            last = part[-1]["step"]
            points.append(Point(last, mean, f"steps to {last}: {decimal(mean, 4)}"))
    return points


def _slices(slices: Sequence[Mapping[str, Any]]) -> Markup | None:
    if not slices:
        return None
    series = {
        when: [
            Point(k, part[when], f"{part['names'][0]}: {decimal(part[when], 3)}")
            for k, part in enumerate(slices)
        ]
        for when in ("before", "after")
    }
    return chart("Error of each slice's output, held out", series, Axis("slice", len(slices)))
