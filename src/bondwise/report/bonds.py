"""The bonds of a model as a table for a terminal: those furthest from chance."""

from collections.abc import Iterator, Mapping, Sequence
from itertools import takewhile
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.table import Table

from bondwise.report.groups import Report

SHOWN = 12
TESTS = ("shuffled", "signs", "noise")  # the nulls whose p is that of a test


def bonds(report: Report) -> Table:
    """The bonds whose spectra are furthest from their nulls, and how well the ladder predicts."""
    every = list(_every(report))
    far = sorted(every, key=lambda line: -abs(line[2]))[:SHOWN]
    table = Table(
        title=_title(report, len(every)),
        caption=_agreement(report),
        title_justify="left",
        caption_justify="left",
        box=SIMPLE_HEAD,
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
