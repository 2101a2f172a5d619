"""Numbers as tables that fit a terminal of 80 columns, with colour or without."""

from collections.abc import Mapping, Sequence
from io import StringIO
from typing import Any

from rich import box
from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from bondwise.report.groups import (
    Report,
    Weight,
    becomes,
    changed,
    cut,
    left,
    shape,
    template,
    title,
)
from bondwise.report.units import count, decimal, duration, percent, size, span

WIDTH = 80

Row = tuple[Text, str, str, str]


def render(renderable: RenderableType, width: int = WIDTH) -> str:
    """What a renderable looks like without colour."""
    console = Console(file=StringIO(), width=width, color_system=None, force_terminal=False)
    with console.capture() as shown:
        console.print(renderable)
    return "\n".join(line.rstrip() for line in shown.get().splitlines()) + "\n"


def summary(report: Report) -> Table:
    """What went in, what came out and what it cost, as one table 80 columns wide.

    `rich.print(summary(report))` shows it, `render(summary(report))` gives its text. Sizes are
    compared with the dense model and, where the report knows it, with the file it came from.
    """
    groups = (_sizes(report), _evaluation(report), _similarity(report), _steps(report))
    return compared(_title(report), _caption(report), groups)


def evaluation(report: Report) -> Table:
    """The quality alone, of one model or of one beside another, each column under its name."""
    heading, heads = beside(report)
    return compared(heading, "", (_evaluation(report),), heads)


def beside(report: Report) -> tuple[Text, tuple[str, str, str]]:
    """The line above a comparison of two models, and its heads; one model leaves some empty."""
    one, other = title(report), title({"source": report["vs"]}) if report.get("vs") else ""
    heading = Text(clip(f"{one} beside {other}" if other else one, WIDTH))
    return heading, (clip(other, 16), clip(one, 16), "ratio" if other else "")


def compared(
    title: Text,
    caption: str,
    groups: Sequence[list[Row]],
    heads: tuple[str, str, str] = ("before", "after", "ratio"),
) -> Table:
    """Groups of lines with three columns of numbers, one table 80 columns wide."""
    table = Table(
        "", *heads, box=box.SIMPLE_HEAD, width=WIDTH, pad_edge=False,
        title=title, title_style="bold", title_justify="left",
        caption=caption or None, caption_justify="left", caption_style="",
    )  # fmt: skip
    for column in table.columns[1:]:
        column.justify, column.no_wrap = "right", True
    table.columns[0].no_wrap, table.columns[0].overflow = True, "ellipsis"
    for group in groups:
        for row in group:
            table.add_row(*row)
        table.add_section()
    return table


def samples(report: Report) -> Table:
    """What the model writes before and after, wrapped at 80 columns."""
    table = Table(box=box.SIMPLE, width=WIDTH, show_header=False, pad_edge=False)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for sample in report.get("samples") or []:
        for name in ("prompt", "before", "after"):
            table.add_row(Text(name, "bold"), Text(str(sample[name])))
        table.add_section()
    return table


def line(label: str, before: str = "", after: str = "", ratio: str = "", style: str = "") -> Row:
    """One line of `compared`."""
    return Text(label, style), before, after, ratio


def _title(report: Report) -> Text:
    tensorized, weights = len(changed(report["weights"])), len(report["weights"])
    name = Text(clip(title(report), WIDTH))
    return name + Text(f"\n{tensorized} of {weights} weights as tensor networks", "not bold")


def _caption(report: Report) -> str:
    stored, origin = report["bytes"], report["bytes"].get("source_file")
    if not origin:
        return ""
    times = stored["after"] / origin
    return f"On disk the result is {times:.2f} times the size of the file it came from."


def _pair(label: str, pair: Mapping[str, Any], unit: Any) -> Row:
    ratio = pair["after"] / pair["before"] if pair["before"] else None
    return line(label, unit(pair["before"]), unit(pair["after"]), decimal(ratio))


def _sizes(report: Report) -> list[Row]:
    stored = report["bytes"]
    rows = [
        _pair(f"targeted numbers (asked to keep {report['keep']:g})", report["targeted"], count),
        _pair("all parameters", report["parameters"], count),
        _pair("on disk", stored, size),
    ]
    if stored.get("source_file"):
        origin = {"before": stored["source_file"], "after": stored["after"]}
        rows.append(_pair("on disk, against the original file", origin, size))
    if report.get("resident"):
        rows.append(_pair("in memory", report["resident"], size))
    return rows


def _evaluation(report: Report) -> list[Row]:
    return [row for entry in report.get("evaluation") or [] for row in _quality(entry)]


def _quality(entry: Mapping[str, Any]) -> list[Row]:
    before, after = entry["before"], entry["after"]
    alone = "perplexity" not in before
    rows = [
        line(clip(str(entry["text"]), 42), style="bold"),
        line(
            f"  perplexity ({windows(entry)})",
            "" if alone else decimal(before["perplexity"], 2),
            decimal(after.get("perplexity"), 2),
            "" if alone else decimal(entry.get("ratio")),
        ),
    ]
    if entry.get("ratio_low") is not None:
        rows.append(line("  95 % interval of the ratio", after=interval(entry)))
    if after.get("kl") is not None:
        rows.append(line("  KL divergence to the dense model", after=decimal(after["kl"])))
    if after.get("top1") is not None:
        rows.append(line("  top-1 agreement with it", after=percent(after["top1"])))
    return rows


def windows(entry: Mapping[str, Any]) -> str:
    """How much text an evaluation read."""
    length = entry.get("length")
    return f"{entry['windows']} windows" + (f" of {length} tokens" if length else "")


def interval(entry: Mapping[str, Any]) -> str:
    """The 95 % bootstrap interval of a perplexity ratio."""
    if entry.get("ratio_low") is None or entry.get("ratio_high") is None:
        return "-"
    return f"{decimal(entry['ratio_low'])} to {decimal(entry['ratio_high'])}"


def _similarity(report: Report) -> list[Row]:
    entries: Sequence[Mapping[str, Any]] = report.get("similarity") or []
    rows = [
        line(
            f"  {entry['name']}",
            decimal(entry["before"]),
            decimal(entry["after"]),
            decimal(entry["after"] / entry["before"] if entry["before"] else None),
        )
        for entry in entries
    ]
    return [line("agreement with human ratings", style="bold"), *rows] if rows else []


def _steps(report: Report) -> list[Row]:
    steps: Sequence[Mapping[str, Any]] = report.get("steps") or []
    if not steps:
        return []
    rows = [
        line(f"  {step['name']}", duration(step["seconds"]), size(step["peak_bytes"]))
        for step in steps
    ]
    total = duration(sum(step["seconds"] for step in steps))
    peak = size(max(step["peak_bytes"] for step in steps))
    head = (Text("step", "bold"), "time", "peak memory", "")
    return [head, *rows, line("  all steps", total, peak)]


def plan_table(report: Report, full: bool = False) -> Group:
    """What becomes of every weight: its format, ranks, numbers and error, or why it is left alone.

    The same weight of many blocks is one line with its smallest and largest rank, the numbers of
    all blocks together and the worst error; ``full=True`` gives every weight its own line.
    """
    parts: list[RenderableType] = []
    if changed(report["weights"]):
        parts.append(_changes(_lines(changed(report["weights"]), full)))
    if left(report["weights"]):
        parts.append(_left_alone(_lines(left(report["weights"]), full)))
    before, after = report["targeted"]["before"], report["targeted"]["after"]
    if before:
        kept = f"{count(before)} -> {count(after)} targeted numbers, {after / before:.3f} kept."
        parts.append(Text(kept, "bold"))
    spaced = [part for pair in zip(parts, [Text()] * len(parts), strict=True) for part in pair]
    return Group(*spaced[:-1])


def _lines(weights: Sequence[Weight], full: bool) -> list[list[Weight]]:
    """The weights that share a line."""
    lines: dict[Any, list[Weight]] = {}
    for weight in weights:
        alike = template(weight["name"]), weight["kind"], shape(weight), weight["reason"]
        key = weight["name"] if full else (*alike, weight["format"])
        lines.setdefault(key, []).append(weight)
    return list(lines.values())


def _changes(lines: list[list[Weight]]) -> Table:
    kinds = {str(line[0]["kind"]) for line in lines}
    fitted = any(weight["error"] is not None for line in lines for weight in line)
    columns = {
        "shape": [shape(line[0]) for line in lines],
        "becomes": [cut(_form(line), 20) for line in lines],
        "before": [count(sum(weight["before"] for weight in line)) for line in lines],
        "after": [count(sum(weight["after"] for weight in line)) for line in lines],
    }
    if fitted:
        columns["error"] = [_worst(line) for line in lines]
    if len(kinds) == 1:
        return _named(f"{kinds.pop()} to network", lines, columns)
    return _named("to network", lines, {"kind": _kinds(lines)} | columns)


def _left_alone(lines: list[list[Weight]]) -> Table:
    reasons = [cut(str(line[0]["reason"]), 34) for line in lines]
    shapes = [shape(line[0]) for line in lines]
    columns = {"kind": _kinds(lines), "shape": shapes, "because": reasons}
    return _named("left alone", lines, columns)


def _kinds(lines: list[list[Weight]]) -> list[str]:
    return [cut(str(line[0]["kind"]), 9) for line in lines]


def _named(title: str, lines: list[list[Weight]], columns: dict[str, list[str]]) -> Table:
    """A table whose first column, the names, takes what the others leave of the 80 columns."""
    used = {head: max(map(len, [head, *cells])) for head, cells in columns.items()}
    room = WIDTH - sum(used.values()) - 2 * len(used)
    table = Table(box=box.SIMPLE_HEAD, width=WIDTH, padding=(0, 1, 0, 0), show_edge=False)
    table.pad_edge = False
    table.add_column(cut(title, room), width=room, no_wrap=True)
    for head, width in used.items():
        right = head in ("shape", "before", "after", "error")
        table.add_column(head, width=width, no_wrap=True, justify="right" if right else "left")
    for k, line in enumerate(lines):
        table.add_row(_name(line, room), *(Text(cells[k]) for cells in columns.values()))
    return table


def _name(line: list[Weight], room: int) -> Text:
    if len(line) == 1:
        return Text(_tail(str(line[0]["name"]), room))
    times = f" x{len(line)}"
    return Text(_tail(template(line[0]["name"]), room - len(times)) + times)


def _tail(name: str, room: int) -> str:
    """The last parts of a dotted name that fit."""
    parts = name.split(".")
    endings = [name, *(".." + ".".join(parts[k:]) for k in range(1, len(parts)))]
    return next((e for e in endings if room // 2 <= len(e) <= room), clip(name, room))


def _form(line: list[Weight]) -> str:
    if len(line) == 1:
        return becomes(line[0])
    ranks = [rank for weight in line for rank in (weight["ranks"] or {}).values()]
    return f"{line[0]['format'] or 'network'} {span(ranks) if ranks else ''}".strip()


def _worst(line: list[Weight]) -> str:
    return decimal(max((w["error"] for w in line if w["error"] is not None), default=None))


def clip(text: str, room: int) -> str:
    """The text, its beginning dropped where it is too long.

    >>> clip("model.layers.*.self_attn.q_proj", 20)
    '..*.self_attn.q_proj'
    """
    return text if len(text) <= room else ".." + text[len(text) - room + 2 :]
