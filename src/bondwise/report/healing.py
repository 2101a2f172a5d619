"""How a model was healed, on its page: what was measured, and the loss."""

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
    """What was measured while it was healed, and the loss."""
    told: Mapping[str, Any] | None = report.get("healing")
    if told is None:
        return Markup("")
    history: Sequence[Mapping[str, Any]] = told["history"]
    axis = Axis("step", max((entry["step"] for entry in history), default=0) + 1)
    curves = [
        chart(f"{told['measured'].capitalize()} held out", {"healed": _looks(told)}, axis),
        chart("Loss while training", {"loss": _stretches(history)}, axis),
    ]
    notes = [el("p", str(note), class_="note") for note in told["notes"]]
    charts = el("div", *(curve for curve in curves if curve), class_="charts")
    return join([el("p", _sentence(told)), charts, *notes])


def _sentence(told: Mapping[str, Any]) -> str:
    done = f"{steps_done(told)} steps of the whole model towards what the teacher says"
    if told["before"] is None or told["after"] is None:
        return f"{done}."
    before, after = (decimal(told[when], 2) for when in ("before", "after"))
    return f"{done}: {told['measured']} held out from {before} to {after}."


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
