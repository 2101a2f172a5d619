"""What a verb prints: tables and sentences, or one JSON object and nothing else."""

import json
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bondwise.progress import Bars

Report = dict[str, Any]


def show(report: Report, as_json: bool, *views: str, full: bool = False) -> None:
    """The report as JSON, or views of it as tables; its notes."""
    if as_json:
        print_json(report)
        return
    from bondwise.report import lists, table
    from bondwise.report.pitch.shares import heard
    from bondwise.report.speeds.benchmark import benchmark
    from bondwise.report.speeds.exported import exported

    shown = {
        "healing": lambda: table.healing(report),
        "summary": lambda: table.summary(report),
        "pitch": lambda: heard(report),
        "samples": lambda: table.samples(report),
        "plan": lambda: lists.changes(report, full=full),
        "reading": lambda: lists.bonds(report),
        "evaluation": lambda: table.evaluation(report),
        "benchmark": lambda: benchmark(report),
        "export": lambda: exported(report),
    }
    for view in views:
        if view != "samples" or report.get("samples"):
            sys.stdout.write(table.render(shown[view]()))
    for note in (*report.get("notes", ()), *report.get("healing", {}).get("notes", ())):
        say(f"Note: {note}", as_json)


def say(text: str, as_json: bool) -> None:
    """A sentence, out of the way of JSON."""
    print(text, file=sys.stderr if as_json else sys.stdout)


def print_json(report: Report) -> None:
    """One object on one line; numbers that are not finite are null."""
    from bondwise.report.page import finite

    sys.stdout.write(json.dumps(finite(report), allow_nan=False) + "\n")


def teller(bars: "Bars", also: Callable[[Report], None] | None = None) -> Callable[[Report], None]:
    """Puts loss and perplexity beside the bar of a healing; tells another listener too."""
    last = {"held out": ""}

    def tell(entry: Report) -> None:
        found = next((entry[k] for k in ("perplexity", "error") if entry.get(k) is not None), None)
        if found is not None:
            last["held out"] = f", held out {found:.4g}"
        loss = f", loss {entry['loss']:.3f}" if "loss" in entry else ""
        said = f"step {entry['step']}{loss}{last['held out']}"
        bars.say("heal", said, line=found is not None)
        if also is not None:
            also(entry)

    return tell
