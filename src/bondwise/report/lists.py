"""Long lists, shortened for a terminal: what becomes of the weights, bonds furthest from chance."""

from collections.abc import Iterator, Mapping, Sequence
from itertools import takewhile
from typing import Any

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from bondwise.report.groups import Report, Weight, becomes, changed, cut, left, shape, template
from bondwise.report.table import WIDTH, clip
from bondwise.report.units import count, decimal, span

SHOWN = 12
TESTS = ("shuffled", "signs", "noise")  # the nulls whose p is that of a test


def changes(report: Report, full: bool = False) -> Group:
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


def bonds(report: Report) -> Table:
    """The bonds whose spectra are furthest from their nulls, and how well the ladder predicts."""
    every = list(_every(report))
    far = sorted(every, key=lambda line: -abs(line[2]))[:SHOWN]
    table = Table(
        title=_title(report, len(every)),
        caption=_agreement(report),
        title_justify="left",
        caption_justify="left",
        box=box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
    )
    table.add_column("bond", overflow="fold")
    for name in ("rank", "effective", "entropy", "from chance", "p"):
        table.add_column(name, justify="right")
    shared = _shared([name for name, *_ in every])
    for name, bond, distance, null in far:
        table.add_row(
            f"{name.removeprefix(shared)} {bond['name']}",
            f"{bond['size']}",
            f"{bond['effective_rank']:.1f}",
            f"{bond['normalised_entropy']:.3f}",
            f"{distance:+.1f} sd {null['name']}" if null else "",
            f"{null['p']:.3f}" if null else "",
        )
    return table


def _every(report: Report) -> Iterator[tuple[str, Any, float, Mapping[str, Any] | None]]:
    for layer in report["layers"]:
        for bond in layer["bonds"]:
            told = [n for n in bond["nulls"] if n["name"] in TESTS and n["distance"] is not None]
            # the nearest of them is the strictest
            null = min(told, key=lambda n: abs(n["distance"])) if told else None
            yield layer["name"], bond, null["distance"] if null else 0.0, null


def _shared(names: Sequence[str]) -> str:
    """What all names begin with, whole parts of paths.

    >>> _shared(["model.layers.0.mlp", "model.layers.1.mlp"])
    'model.layers.'
    """
    parts = [name.split(".") for name in names]
    alike = takewhile(lambda step: len(set(step)) == 1, zip(*(p[:-1] for p in parts), strict=False))
    return "".join(f"{step[0]}." for step in alike)


def _title(report: Report, count: int) -> str:
    corpus = report["corpus"]
    tokens = corpus["windows"] * corpus["length"]
    return (
        f"{count} bonds of {len(report['layers'])} layers over {tokens:,} tokens; "
        "shown are those furthest from the null that is nearest to them"
    )


def _agreement(report: Report) -> str:
    told = next(
        (
            bond["importance"]["agreement"]
            for layer in report["layers"]
            for bond in layer["bonds"]
            if bond["importance"] and bond["importance"]["agreement"]
        ),
        None,
    )
    if not told:
        return f"{report['measured']} indices were left out to see the loss: too few to compare."
    said = ", ".join(f"{name} {value:+.2f}" for name, value in told.items())
    return (
        f"Rank correlation with the change of loss, measured for {report['measured']} indices: "
        f"{said}."
    )
