"""Speed, memory and multiplications as a table for a terminal."""

from collections.abc import Callable, Mapping
from typing import Any

from rich.table import Table

from bondwise.report.groups import Report
from bondwise.report.table import Line, beside, compared, line
from bondwise.report.units import count, decimal, instant, rate, size


def benchmark(report: Report) -> Table:
    """Speed, memory and multiplications of one model, or of one beside another.

    Under every speed stand the lowest and the highest of its runs; a ratio is that of the model
    over the other.
    """
    heading, heads = beside(report)
    return compared(heading, _conditions(report), (_speeds(report), _counts(report)), heads)


def _conditions(report: Report) -> str:
    kinds = dict.fromkeys(entry["dtype"] for entry in (report["before"], report["after"]) if entry)
    threads = f"{report['threads']} thread{'s' * (report['threads'] > 1)}"
    return (
        f"Medians of {report['repeats']} runs{' in turns' * bool(report['before'])}, lowest and "
        f"highest; {report['device']}, {threads}, {' and '.join(kinds)}. "
        f"Multiplications are a {'sample' if report.get('kind') == 'samples' else 'token'}'s"
        f"{', in linear layers' * (report.get('kind') != 'samples')}."
    )


def _speeds(report: Report) -> list[Line]:
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
    found = [report[side].get(name) for side in ("before", "after", "ratio")]
    units = (unit, unit, decimal)
    shown = [(spread, unit) for spread, unit in zip(found, units, strict=True)]
    medians = [unit(spread["median"]) if spread else "" for spread, unit in shown]
    ranges = [_range(spread, unit) if spread else "" for spread, unit in shown]
    return [line(label, *medians), line("  lowest..highest", *ranges)]


def _range(spread: Mapping[str, Any], unit: Callable[[Any], str]) -> str:
    low, high = unit(spread["low"]), unit(spread["high"])
    number, _, name = low.partition(" ")
    return f"{number if high.endswith(f' {name}') else low}..{high}"


def _counts(report: Report) -> list[Line]:
    rows = [
        _counted(report, "peak memory of a process", size, "peak_bytes"),
        _counted(report, "the model in memory", size, "resident_bytes"),
    ][report.get("kind") == "samples" :]  # of which no peak is taken
    return rows + [
        _counted(report, f"multiplications, {name}", count, "macs", name)
        for name in ("decode", "prefill", "forward")
        if name in report["after"]["macs"]
    ]


def _counted(report: Report, label: str, unit: Callable[[Any], str], *path: str) -> Line:
    """One number of each model, found by its keys."""

    def shown(side: str, unit: Callable[[Any], str]) -> str:
        found: Any = report[side]
        for key in path:
            found = found.get(key) if found else None
        return unit(found) if found is not None else "-" * bool(report[side])

    return line(label, shown("before", unit), shown("after", unit), shown("ratio", decimal))
