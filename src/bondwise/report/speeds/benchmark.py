"""Speed, memory and multiplications as a table for a terminal."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from rich.table import Table

from bondwise.report.groups import Report
from bondwise.report.table import Line, beside, compared, line
from bondwise.report.units import count, decimal, duration, instant, rate, size


def benchmark(report: Report) -> Table:
    """Speed, memory and multiplications of one model, or of one beside another.

    Under every speed stand the lowest and the highest of its runs. A model that was prepared has
    a column for that, and the ratios of both over the other model stand below; else they have a
    column.
    """
    heading, _ = beside(report)
    return compared(heading, conditions(report), (speeds(report), counts(report)), heads(report))


def heads(report: Report) -> tuple[str, str, str]:
    """What stands above the columns."""
    other, one, ratio = beside(report)[1]
    return (other, "as built", "prepared") if report.get("prepared") else (other, one, ratio)


def conditions(report: Report) -> str:
    """How it was measured, and what preparing chose."""
    kinds = dict.fromkeys(entry["dtype"] for entry in (report["before"], report["after"]) if entry)
    threads = f"{report['threads']} thread{'s' * (report['threads'] > 1)}"
    turns = bool(report["before"] or report.get("prepared"))
    return (
        f"Medians of {report['repeats']} runs{' in turns' * turns}, lowest and "
        f"highest; {report['device']}, {threads}, {' and '.join(kinds)}. "
        f"Multiplications are a {'sample' if report.get('kind') == 'samples' else 'token'}'s"
        f"{', in linear layers' * (report.get('kind') != 'samples')}.{chosen(report)}"
    )


def chosen(report: Report) -> str:
    """What preparing chose, in one sentence; nothing where nothing was prepared.

    >>> ways = [{"rows": 1, "path": 120, "joined": 0, "dense": 30, "built": 0}]
    >>> told = {"seconds": 4.1, "bytes": 12_300_000, "layers": 150, "skipped": 0, "ways": ways}
    >>> chosen({"prepared": {"chosen": told}})
    ' Prepared in 4.1 s, 12.3 MB beside the parameters; at 1 row: 120 by path, 30 dense.'
    """
    if not report.get("prepared"):
        return ""
    told = report["prepared"]["chosen"]
    words = {"path": "by path", "joined": "joined", "dense": "dense", "built": "as built"}
    unit = "sample" if report.get("kind") == "samples" else "row"
    each = [
        f"at {found['rows']} {unit}{'s' * (found['rows'] > 1)}: "
        + ", ".join(f"{found[kind]} {word}" for kind, word in words.items() if found[kind])
        for found in told["ways"]
    ]
    left = [f"{told['skipped']} layers left as built"] if told["skipped"] else []
    start = f"Prepared in {duration(told['seconds'])}, {size(told['bytes'])} beside the parameters"
    return f" {'; '.join([start, *each, *left])}."


def speeds(report: Report) -> list[Line]:
    """Tokens or samples per second, with the lowest and the highest of the runs."""
    prompt, batch = report["prompt"], report["batch"]
    labels = {
        "decode": f"decode of {report['tokens']}, tokens/s",
        "prefill": f"prefill of {prompt}, tokens/s",
        "time_to_first_token": "time to first token",
        "forward": f"1 text of {prompt}, tokens/s",
        "batched": f"{batch} texts of {prompt}, tokens/s",
    }
    if report.get("kind") == "samples":
        labels = {"forward": "1 sample, samples/s", "batched": f"{batch} at once, samples/s"}
    return [
        row
        for name, label in labels.items()
        if name in report["after"]
        for row in _timed(report, name, label)
    ]


def _timed(report: Report, name: str, label: str) -> list[Line]:
    unit = instant if name == "time_to_first_token" else rate
    sides = [(side, unit) for side in ("before", "after")] + [_third(report, unit)]
    shown = [(report[side].get(name), unit) for side, unit in sides]
    medians = [unit(spread["median"]) if spread else "" for spread, unit in shown]
    ranges = [_range(spread, unit) if spread else "" for spread, unit in shown]
    rows = [line(label, *medians), line("  lowest..highest", *ranges)]
    return rows + _ratios(report, name, "median")


def _third(report: Report, unit: Callable[[Any], str]) -> tuple[str, Callable[[Any], str]]:
    """What the last column shows: the prepared model, or the ratio."""
    return ("prepared", unit) if report.get("prepared") else ("ratio", decimal)


def _ratios(report: Report, *path: str) -> list[Line]:
    """As built and prepared over the other model, where the last column does not show it."""
    if not report.get("prepared") or not report["before"]:
        return []
    both = [find(ratio, path) for ratio in (report["ratio"], report["prepared"]["ratio"])]
    if both == [None, None]:
        return []
    return [line("  ratio", "", *("" if value is None else decimal(value) for value in both))]


def find(entry: Any, path: Iterable[str]) -> Any:
    """What stands at the end of some keys; None where nothing does."""
    for key in path:
        entry = entry.get(key) if entry else None
    return entry


def _range(spread: Mapping[str, Any], unit: Callable[[Any], str]) -> str:
    low, high = unit(spread["low"]), unit(spread["high"])
    number, _, name = low.partition(" ")
    return f"{number if high.endswith(f' {name}') else low}..{high}"


def counts(report: Report) -> list[Line]:
    """Memory, and multiplications of a token or a sample."""
    rows = [
        *_counted(report, "peak memory of a process", size, "peak_bytes"),
        *_counted(report, "the model in memory", size, "resident_bytes"),
    ]
    if report.get("kind") == "samples":  # of which no peak is taken
        rows = _counted(report, "the model in memory", size, "resident_bytes")
    names = [n for n in ("decode", "prefill", "forward") if n in report["after"]["macs"]]
    return rows + [
        row
        for name in names
        for row in _counted(report, f"multiplications, {name}", count, "macs", name)
    ]


def _counted(report: Report, label: str, unit: Callable[[Any], str], *path: str) -> list[Line]:
    """One number of each model, found by its keys."""

    def shown(side: str, unit: Callable[[Any], str]) -> str:
        value = find(report[side], path)
        missing = "-" * (bool(report[side]) and side != "prepared")
        return unit(value) if value is not None else missing

    sides = [("before", unit), ("after", unit), _third(report, unit)]
    return [line(label, *(shown(*side) for side in sides)), *_ratios(report, *path)]
