"""How well pitch is heard: before, after, and by what one would take instead."""

from collections.abc import Mapping, Sequence
from math import floor
from typing import Any

from rich import box
from rich.table import Table

from bondwise.report.charts import mark
from bondwise.report.groups import Report, changed, title
from bondwise.report.markup import Markup, el, figure, grid, join
from bondwise.report.table import WIDTH
from bondwise.report.units import Number, count, decimal, percent, size

LEFT, RIGHT, ROW, FOOT = 245, 14, 34, 38
WIDE = 760  # of the picture
COLOURS = (6, 0, 1)  # of the dense model, ours, and the other

Told = Mapping[str, Any]


def heard(report: Report) -> Table:
    """Numbers, bytes, shares heard and seconds of each model, 80 columns wide."""
    told: Told = report["pitch"]
    tests: Sequence[Told] = told["tests"]
    table = Table(
        box=box.SIMPLE_HEAD, padding=(0, 2, 0, 0), pad_edge=False, show_edge=False,
        title=_title(report), title_style="bold", title_justify="left",
        caption=_caption(told), caption_justify="left", caption_style="", width=WIDTH,
    )  # fmt: skip
    heads = ["numbers", "bytes", *(str(test["short"]) for test in tests), "cents", "seconds"]
    table.add_column("", no_wrap=True)
    for name in heads:
        table.add_column(name, justify="right", no_wrap=True)
    for model in told["models"]:
        table.add_row(*_cells(model, tests))
    return table


def _title(report: Report) -> str:
    done, whole = len(changed(report["weights"])), len(report["weights"])
    return f"{title(report)}\n{done} of {whole} parameters as tensor networks\n"


def _cells(model: Told, tests: Sequence[Told]) -> list[str]:
    shares = [percent(model["shares"][test["short"]]) for test in tests]
    return [
        str(model["name"]), count(model["numbers"]), size(model["bytes"]), *shares,
        decimal(model["cents"], 1), decimal(model["seconds"], 3),
    ]  # fmt: skip


def _caption(told: Told) -> str:
    """What the columns are, and how sure the difference is."""
    tests, names = told["tests"], [str(model["name"]) for model in told["models"]]
    how = f"{told['batch']} frames at once, {_threads(told['threads'])}"
    lines = [
        "",
        f"Within 50 cents of the pitch, of {tests[0]['count']} sounds each:",
        *(f"  {test['short']:<8}{test['what']}" for test in tests),
        "  cents   median error on the first",
        f"  seconds for a second of sound, {how};",
        f"          {names[0]} with its channels last takes {decimal(told['swift'], 3)}",
        f"{names[1]} less {names[0]} in points, and its 95 % interval:",
        "  " + "; ".join(f"{short} {said}" for short, said in _differences(told)),
    ]
    return "\n".join(lines)


def _threads(threads: int) -> str:
    return f"{threads} thread{'s' * (threads != 1)}"


def _differences(told: Told) -> list[tuple[str, str]]:
    """What is said of ours less dense on each test, in points."""
    found = told["models"][1]["differences"]
    return [(str(test["short"]), _points(found[test["short"]])) for test in told["tests"]]


def _points(found: Sequence[float]) -> str:
    """A difference and its interval.

    >>> _points([-0.0025, -0.01, 0.005])
    '-0.2 (-1.0 to 0.5)'
    """
    middle, low, high = (100 * value for value in found)
    return f"{middle:.1f} ({low:.1f} to {high:.1f})"


def figures(report: Report) -> list[Markup]:
    """The share that is heard and the speed, to see from afar."""
    dense, ours, other = report["pitch"]["models"]
    first = str(report["pitch"]["tests"][0]["short"])
    shares = [percent(model["shares"][first]) for model in (dense, ours, other)]
    faster = dense["seconds"] / ours["seconds"] if ours["seconds"] else None
    return [
        figure(
            shares[1], "of clean tones heard", f"dense {shares[0]}, {other['name']} {shares[2]}"
        ),
        figure(
            f"{decimal(faster, 1)} x",
            "as fast as dense",
            f"{decimal(ours['seconds'], 2)} s for a second of sound, from "
            f"{decimal(dense['seconds'], 2)} s",
        ),
    ]


def pitch(report: Report) -> Markup:
    """The whole of it: a picture, the table, and how sure the difference is."""
    told: Told | None = report.get("pitch")
    if not told:
        return Markup("")
    tests, names = told["tests"], [str(model["name"]) for model in told["models"]]
    whats = "; ".join(f"{test['short']}: {test['what']}" for test in tests)
    heads = ("", "numbers", "bytes", *(str(test["short"]) for test in tests), "cents", "seconds")
    note = (
        f"Shares of sounds heard within 50 cents, half a semitone, of their pitch; "
        f"{tests[0]['count']} sounds a test. {whats}. Cents: the median error on the first. "
        f"Seconds: for a second of sound, {told['batch']} frames at once, "
        f"{_threads(told['threads'])}; {names[0]} with its channels last takes "
        f"{decimal(told['swift'], 3)}."
    )
    sure = grid((f"{names[1]} less {names[0]}, points", "95 % interval"), _differences(told))
    return join(
        [
            picture(told),
            grid(heads, [_cells(model, tests) for model in told["models"]]),
            el("p", note, class_="note"),
            sure,
        ]
    )


def picture(told: Told) -> Markup:
    """A row for each test, a mark for each model, a line as long as the interval of ours."""
    tests, models = told["tests"], told["models"]
    shares = [model["shares"][test["short"]] for model in models for test in tests]
    start = min(floor(20 * min(shares) - 1e-9) / 20, 0.95)
    parts = _axis(start, len(tests))
    for row, test in enumerate(tests):
        short, y = test["short"], ROW * row + ROW / 2
        parts.append(el("text", str(test["what"]), x=0, y=y + 4))
        differences = models[1]["differences"][short]
        ends = [_x(models[0]["shares"][short] + value, start) for value in differences[1:]]
        line = el("path", d=f"M{ends[0]:.5g} {y:.5g}H{ends[1]:.5g}", class_=f"sure k{COLOURS[1]}")
        parts.append(line)
        for k, model in zip(COLOURS, models, strict=True):
            tip = f"{model['name']}, {test['what']}: {percent(model['shares'][short])}"
            drawn = mark(k, _x(model["shares"][short], start), y)
            parts.append(el("g", el("path", d=drawn, data_tip=tip), class_=f"series k{k}"))
    high = ROW * len(tests) + FOOT
    names = [
        el("text", str(model["name"]), x=LEFT + 110 * at + 12, y=high - 2, class_=f"end k{k}")
        for at, (k, model) in enumerate(zip(COLOURS, models, strict=True))
    ]
    names += [
        el("g", el("path", d=mark(k, LEFT + 110 * at + 2, high - 6)), class_=f"series k{k}")
        for at, k in enumerate(COLOURS)
    ]
    head = el("title", "Shares of sounds heard within half a semitone, by test and model")
    svg = el("svg", head, *parts, *names, viewBox=f"0 0 {WIDE} {high}", role="img")
    return el("figure", svg, class_="chart wide")


def _x(share: Number, start: float) -> float:
    part = min(max((share - start) / (1 - start), 0.0), 1.0)
    return LEFT + (WIDE - LEFT - RIGHT) * part


def _axis(start: float, rows: int) -> list[Markup]:
    """Lines at round shares, with their numbers below."""
    step = 0.01 if start >= 0.95 else 0.05 if start >= 0.6 else 0.1
    ticks = [start + k * step for k in range(round((1 - start) / step) + 1)]
    parts = [
        el("path", d=f"M{_x(tick, start):.5g} 0V{ROW * rows}", class_="grid") for tick in ticks
    ]
    return parts + [
        el("text", f"{tick:.0%}".replace("%", " %"), x=_x(tick, start), y=ROW * rows + 14,
           text_anchor="middle")
        for tick in ticks
    ]  # fmt: skip
