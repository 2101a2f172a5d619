"""What was measured, as tables that fit a terminal of 80 columns, with colour or without."""

from collections.abc import Mapping, Sequence
from io import StringIO
from typing import Any

from rich import box
from rich.console import Console, RenderableType
from rich.table import Table
from rich.text import Text

from bondwise.report.groups import Report, changed, title
from bondwise.report.units import count, decimal, duration, percent, size

WIDTH = 80

Line = tuple[Text, str, str, str]


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


def healing(report: Report) -> Table:
    """What healing did, 80 columns wide."""
    told = report["healing"]
    rows: list[Line] = [line("steps of the whole model", after=steps_done(told))]
    before, after = told["before"], told["after"]
    if before is not None and after is not None:
        ratio = decimal(after / before) if before else ""
        rows.append(
            line(f"{told['measured']}, held out", decimal(before, 2), decimal(after, 2), ratio)
        )
    times = [line(str(step["name"]), after=duration(step["seconds"])) for step in report["steps"]]
    heading, _ = beside({"source": told["student"], "vs": told["teacher"]})
    return compared(heading, "", (rows, times), ("before", "healed", "ratio"))


def steps_done(told: Mapping[str, Any]) -> str:
    """Steps that were made, of those that were meant where it ended early."""
    done, meant = len(told["history"]), told["steps"]
    return str(done) if done == meant else f"{done} of {meant}"


def beside(report: Report) -> tuple[Text, tuple[str, str, str]]:
    """The line above a comparison of two models, and its heads; one model leaves some empty."""
    one, other = title(report), title({"source": report["vs"]}) if report.get("vs") else ""
    heading = Text(clip(f"{one} beside {other}" if other else one, WIDTH))
    return heading, (clip(other, 16), clip(one, 16), "ratio" if other else "")


def compared(
    title: Text,
    caption: str,
    groups: Sequence[list[Line]],
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
        for each in group:
            table.add_row(*each)
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


def line(label: str, before: str = "", after: str = "", ratio: str = "", style: str = "") -> Line:
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


def _pair(label: str, pair: Mapping[str, Any], unit: Any) -> Line:
    ratio = pair["after"] / pair["before"] if pair["before"] else None
    return line(label, unit(pair["before"]), unit(pair["after"]), decimal(ratio))


def _sizes(report: Report) -> list[Line]:
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


def _evaluation(report: Report) -> list[Line]:
    return [row for entry in report.get("evaluation") or [] for row in _quality(entry)]


def _quality(entry: Mapping[str, Any]) -> list[Line]:
    before, after = entry["before"], entry["after"]
    if "error" in after:
        return _outputs(entry)
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


def _outputs(entry: Mapping[str, Any]) -> list[Line]:
    """How far the outputs of two models are apart on samples."""
    after = entry["after"]
    rows = [
        line(f"{clip(str(entry['data']), 30)}, {entry['samples']:,} samples", style="bold"),
        line("  relative error of the outputs", after=decimal(after["error"])),
    ]
    if after["agreement"] is not None:
        rows.append(line("  same class first", after=percent(after["agreement"])))
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


def _similarity(report: Report) -> list[Line]:
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


def _steps(report: Report) -> list[Line]:
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


def clip(text: str, room: int) -> str:
    """The text, its beginning dropped where it is too long.

    >>> clip("model.layers.*.self_attn.q_proj", 20)
    '..*.self_attn.q_proj'
    """
    return text if len(text) <= room else ".." + text[len(text) - room + 2 :]
