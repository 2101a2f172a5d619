"""The bonds of a model as a table: what the strip of networks says, for those who do not see it."""

from collections.abc import Mapping, Sequence
from typing import Any

from bondwise.report.atlas import bonds_of, distance, link, null_names, null_of
from bondwise.report.markup import Markup, el
from bondwise.report.units import decimal


def listing(layers: Sequence[Mapping[str, Any]]) -> Markup | None:
    """Every bond with its distance from each null, behind a summary; None without layers."""
    if not layers:
        return None
    nulls = null_names(layers)
    heads = ["layer", "shape", "format", "bond", "rank", "effective rank", "entropy / log rank"]
    heads += [f"from {name}" for name in nulls]
    rows = [row for layer in layers for row in _rows(layer, nulls)]
    table = el(
        "table",
        el("caption", "Every bond, and its distance from each null in standard deviations"),
        el("thead", el("tr", *(el("th", head, scope="col") for head in heads))),
        el("tbody", *rows),
        class_="bonds",
    )
    scroll = el("div", table, class_="tall", tabindex=0, role="region", aria_label="all bonds")
    return el("details", el("summary", "The same as a table"), scroll, id="table")


def _rows(layer: Mapping[str, Any], nulls: Sequence[str]) -> list[Markup]:
    name = el("th", el("a", layer["name"], href=link("layer", layer["name"])), scope="row")
    form = str(layer.get("format") or "-") if layer.get("tensorized", True) else "dense"
    first = [name, el("td", " x ".join(map(str, layer.get("shape") or []))), el("td", form)]
    bonds = bonds_of(layer)
    if not bonds:
        return [el("tr", *first, el("td", "no bond", colspan=4 + len(nulls)))]
    return [el("tr", *first, *_numbers(layer, bond, nulls)) for bond in bonds]


def _numbers(
    layer: Mapping[str, Any], bond: Mapping[str, Any], nulls: Sequence[str]
) -> list[Markup]:
    there = el("a", bond["name"], href=link("bond", layer["name"], bond["name"]))
    fars = [distance(null_of(bond, name)) for name in nulls]
    texts = [
        str(bond.get("size", "-")),
        decimal(bond.get("effective_rank"), 1),
        decimal(bond.get("normalised_entropy")),
        *("-" if far is None else decimal(far, 1) for far in fars),
    ]
    return [el("td", there), *(el("td", text) for text in texts)]
