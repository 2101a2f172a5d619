"""What an ONNX file takes, gives and costs, as a table for a terminal."""

from collections.abc import Mapping, Sequence
from typing import Any

from rich.table import Table

from bondwise.report.groups import Report
from bondwise.report.speeds.benchmark import find
from bondwise.report.table import Line, beside, compared, line
from bondwise.report.units import decimal, instant, size


def exported(report: Report) -> Table:
    """Bytes and seconds of a file, beside torch's and another model's; a ratio is over the other's.

    What stands below it: inputs and outputs with their axes, and how far the numbers are apart.
    """
    heading, heads = beside(report)
    groups = (_bytes(report), *(_seconds(report, where) for where in ("onnxruntime", "torch")))
    return compared(heading, _conditions(report), groups, heads)


def _bytes(report: Report) -> list[Line]:
    return [_line(report, "the file", ("bytes",), size)]


def _seconds(report: Report, where: str) -> list[Line]:
    text = report["kind"] == "text"
    names = {
        "forward": f"1 text of {report['length']}" if text else "1 sample",
        "batched": f"{report['batch']} texts of {report['length']}"
        if text
        else f"{report['batch']} samples",
    }
    return [
        _line(report, f"{where}, {label}", (where, part, "median"), instant)
        for part, label in names.items()
        if part in report["after"][where]
    ]


def _line(report: Report, label: str, path: Sequence[str], unit: Any) -> Line:
    found = list[str]()
    for side, shown in (("before", unit), ("after", unit), ("ratio", decimal)):
        value = find(report[side], path)
        found.append("" if value is None else shown(value))
    return line(label, *found)


def _conditions(report: Report) -> str:
    threads = f"{report['threads']} thread{'s' * (report['threads'] > 1)}"
    turns = " in turns" * bool(report["before"])
    tried = len(report["checks"])
    other = " of other sizes than the one followed" * (tried > 1)
    return (
        f"Takes {_ports(report['inputs'])}; gives {_ports(report['outputs'])}. "
        f"Opset {report['opset']}; at most {report['difference']:.1e} from torch, relative, in "
        f"{tried} example{'s' * (tried > 1)}{other}. "
        f"Medians of {report['repeats']} runs{turns}; {threads}, {report['dtype']}."
    )


def _ports(ports: Sequence[Mapping[str, Any]]) -> str:
    """Names with their axes; those alike together."""
    found: dict[str, list[str]] = {}
    for port in ports:
        axes = ", ".join(map(str, port["axes"]))
        found.setdefault(f"{port['dtype']} ({axes})", []).append(port["name"])
    return "; ".join(f"{', '.join(names)}: {kind}" for kind, names in found.items())
