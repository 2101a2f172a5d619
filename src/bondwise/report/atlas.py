"""The whole model at a glance: a small network for each weight, its bonds against their null."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any
from urllib.parse import quote

from bondwise.report.markup import Markup, el
from bondwise.report.packed import bonds_of, distance, network_of, null_names, null_of
from bondwise.report.strip import Scale
from bondwise.report.units import Number, decimal

WIDE, HIGH = 32, 34
GLYPH, MIDDLE = 24, 11
THICK = 0.8  # of what a bond is wide in a report, so that its cores stand out
STEPS = (2, 6, 20)
"""Distances at which the colour changes, on both sides of the null."""

NONE = "zn"


@dataclass(frozen=True)
class Cell:
    """A layer and its place in the strip."""

    layer: Mapping[str, Any]
    column: int
    row: int


def atlas(reading: Mapping[str, Any]) -> Markup:
    """The strip with its legend."""
    layers = reading.get("layers") or []
    if not layers:
        return el("section", el("h2", "The model"), el("p", "No layer was read."))
    nulls = null_names(layers)
    null = nulls[0] if nulls else ""
    cells, columns, rows = placed(layers)
    picture = el(
        "figure",
        el("div", _choice(nulls), class_="title"),
        _legend(layers),
        el("div", _strip(cells, columns, rows, null), class_="across", id="across"),
        el(
            "figcaption",
            "A column for each block, a row for each kind of weight. Squares are cores, the line "
            "between them is a bond, as wide as its rank. The number below is the distance of the "
            "bond's entropy from the mean of the null's draws, in their standard deviations; below "
            "zero, the bond is more concentrated than the null. Of several bonds it is the one "
            "farthest from the null.",
        ),
        class_="picture", data_save="model",
    )  # fmt: skip
    return el(
        "section",
        el("h2", "The model", tabindex=-1),
        el("p", "Open a weight with a click or Enter; arrow keys move.", class_="hint scripted"),
        picture,
        aria_label="The model",
    )


def shade(far: Number | None) -> str:
    """The class that colours a distance: z0 (far below the null) to z6 (far above).

    >>> shade(-30), shade(-3), shade(0.4), shade(6), shade(None)
    ('z0', 'z2', 'z3', 'z5', 'zn')
    """
    if far is None:
        return NONE
    steps = sum(abs(far) >= step for step in STEPS)
    return f"z{3 + (steps if far > 0 else -steps)}"


def mark(far: Number | None) -> str:
    """A distance as the few characters that fit below a weight.

    >>> mark(-12.4), mark(0.31), mark(2.26), mark(1234), mark(None)
    ('\u221212', '0.3', '2.3', '999+', '-')
    """
    if far is None:
        return "-"
    if abs(far) >= 1000:
        return "999+" if far > 0 else "\u2212999"
    return f"{far:.{0 if abs(far) >= 9.95 else 1}f}".replace("-", "\u2212")


def placed(layers: Sequence[Mapping[str, Any]]) -> tuple[list[Cell], list[str], list[str]]:
    """Each layer in its block's column and its kind's row; names of the columns and rows."""
    blocks = sorted({b for layer in layers if (b := layer.get("block")) is not None})
    names = [str(block) for block in blocks]
    if any(layer.get("block") is None for layer in layers):
        names.append("other")
    rows: dict[str, int] = {}
    taken: set[tuple[str, str]] = set()
    cells: list[Cell] = []
    for layer in layers:
        block = layer.get("block")
        column = "other" if block is None else str(block)
        row = kind = str(layer.get("kind") or layer["name"])
        nth = 1
        while (column, row) in taken:
            nth += 1
            row = f"{kind} {nth}"
        taken.add((column, row))
        cells.append(Cell(layer, names.index(column), rows.setdefault(row, len(rows))))
    return cells, names, list(rows)


def link(*parts: object) -> str:
    """The address of a view.

    >>> link("bond", "h.0/attn", "a")
    '#bond/h.0%2Fattn/a'
    """
    return "#" + "/".join(quote(str(part), safe="") for part in parts)


def _strip(cells: Sequence[Cell], columns: Sequence[str], rows: Sequence[str], null: str) -> Markup:
    left, top = 7 * max(len(row) for row in rows) + 14, 20
    scale = Scale(0, max((rank for cell in cells for rank in _ranks(cell.layer)), default=1))
    width, height = left + WIDE * len(columns) + 4, top + HIGH * len(rows) + 6
    heads = [
        el("text", name, x=left + WIDE * (k + 0.5), y=12, text_anchor="middle")
        for k, name in enumerate(columns)
    ]
    kinds = [
        el("text", name, x=left - 8, y=top + HIGH * k + MIDDLE + 4, text_anchor="end")
        for k, name in enumerate(rows)
    ]
    plate = el("rect", x=0, y=0, width=left - 2, height=height, class_="plate")
    body = [
        _cell(cell, scale, null, left + WIDE * cell.column, top + HIGH * cell.row) for cell in cells
    ]
    return el(
        "svg",
        el("title", "The model as a strip of networks"),
        *heads, *body, el("g", plate, *kinds, class_="kinds"), _printed(height + 14),
        viewBox=f"0 0 {width} {height}", width=width, height=height, class_="atlas", role="group",
        data_wide=max(width, 8 + 88 * (2 * len(STEPS) + 1)), data_high=height + 24,
        aria_label="The model as a strip of networks; the same stands in the table below",
    )  # fmt: skip


def _ranks(layer: Mapping[str, Any]) -> list[int]:
    net = network_of(layer)
    return list(net.bonds.values()) if net is not None else []


def _cell(cell: Cell, scale: Scale, null: str, x: Number, y: Number) -> Markup:
    layer = cell.layer
    fars = [far for bond in bonds_of(layer) if (far := distance(null_of(bond, null))) is not None]
    far = max(fars, key=abs, default=None)
    parts = [
        el("rect", x=0, y=0, width=WIDE - 2, height=HIGH - 2, rx=4, class_="hit"),
        *_glyph(layer, scale, null),
        el("text", mark(far), x=(WIDE - 2) / 2, y=29, text_anchor="middle", class_="far"),
    ]
    where = {"data-column": cell.column, "data-row": cell.row}
    return el(
        "a", *parts, href=link("layer", layer["name"]), transform=f"translate({x:g} {y:g})",
        class_="cell", data_tip=describe(layer), aria_label=describe(layer),
        **{key.replace("-", "_"): value for key, value in where.items()},
    )  # fmt: skip


def _glyph(layer: Mapping[str, Any], scale: Scale, null: str) -> list[Markup]:
    net = network_of(layer)
    own = {bond["name"]: bond for bond in bonds_of(layer)}
    edge = (WIDE - 2 - GLYPH) / 2
    if net is None:
        box = el("rect", x=edge + 5, y=MIDDLE - 6, width=GLYPH - 10, height=12, class_="dense")
        first = next(iter(own.values()), None)
        line = f"M{edge + 8:g} {MIDDLE}H{edge + GLYPH - 8:g}"
        return [box, _line(line, 4, first, null)] if first else [box]
    n = len(net.cores)
    size = max(2.5, min(6.0, GLYPH / (2 * n)))
    left = [
        edge + (k * (GLYPH - size) / (n - 1) if n > 1 else (GLYPH - size) / 2) for k in range(n)
    ]
    lines = [
        _line(
            _path(left[a] + size / 2, left[b] + size / 2, flat=b - a == 1),
            min(THICK * scale.width(rank), 8 if b - a == 1 else 3), own.get(name), null,
        )
        for name, rank in net.bonds.items()
        for a, b in pairwise(net.places[name])
    ]  # fmt: skip
    cores = [
        el("rect", x=x, y=MIDDLE - 7, width=size, height=14, rx=1, class_="core") for x in left
    ]
    return [*lines, *cores]


def _path(a: Number, b: Number, flat: bool) -> str:
    bend = f"H{b:.4g}" if flat else f"Q{(a + b) / 2:.4g} -4 {b:.4g} {MIDDLE}"
    return f"M{a:.4g} {MIDDLE}{bend}"


def _line(path: str, width: Number, bond: Mapping[str, Any] | None, null: str) -> Markup:
    bond = bond or {}
    fars = {entry["name"]: distance(entry) for entry in bond.get("nulls") or []}
    return el(
        "path", d=path, stroke_width=round(width, 2), class_=f"tie {shade(fars.get(null))}",
        data_far=json.dumps(fars),
    )  # fmt: skip


def describe(layer: Mapping[str, Any]) -> str:
    """A weight and its bonds in a few lines, for people who point at it or cannot see it."""
    shape = " x ".join(map(str, layer.get("shape") or []))
    form = layer.get("format") or "network"
    first = f"{layer['name']}: {shape}, {form if layer.get('tensorized', True) else 'dense'}"
    lines = [first]
    for bond in bonds_of(layer):
        fars = [
            f"{mark(far)} from {null['name']}"
            for null in bond.get("nulls") or []
            if (far := distance(null)) is not None
        ]
        rank = f", effective rank {decimal(bond.get('effective_rank'), 1)}"
        lines.append(
            f"bond {bond['name']} {bond.get('size')}{rank}; {', '.join(fars) or 'no null'}"
        )
    return "\n".join(lines)


def _choice(nulls: Sequence[str]) -> Markup | None:
    if not nulls:
        return None
    label = el("label", "Null ", el("select", *(el("option", name) for name in nulls), id="null"))
    return el("p", label, class_="choice scripted")


def _ranges() -> tuple[str, ...]:
    """What each shade stands for, z0 to z6."""
    low, middle, high = STEPS
    return (
        f"below \u2212{high}", f"\u2212{high} to \u2212{middle}", f"\u2212{middle} to \u2212{low}",
        f"within {low}", f"{low} to {middle}", f"{middle} to {high}", f"above {high}",
    )  # fmt: skip


def _printed(y: Number) -> Markup:
    """The shades once more, for a picture that is saved without the page."""
    keys = [
        part
        for k, words in enumerate(_ranges())
        for part in (
            el("path", d=f"M{8 + 88 * k} {y - 4}h14", class_=f"tie z{k}"),
            el("text", words, x=28 + 88 * k, y=y),
        )
    ]
    return el("g", *keys, class_="printed")


def _legend(layers: Sequence[Mapping[str, Any]]) -> Markup:
    keys = [
        el("span", el("i", class_=f"swatch z{k}"), text, class_="key")
        for k, text in enumerate(_ranges())
    ]
    unknown = el("span", el("i", class_=f"swatch {NONE}"), "no null", class_="key")
    scale = Scale(0, max((rank for layer in layers for rank in _ranks(layer)), default=1))
    widths = [
        el("span", _sample(THICK * scale.width(rank)), f"rank {rank}", class_="key")
        for rank in dict.fromkeys((max(1, scale.rank // 8), scale.rank))
    ]
    dense = el("span", el("i", class_="swatch dashed"), "dense, folded for the look", class_="key")
    return el(
        "p", el("b", "distance from the null"), *keys, unknown, el("b", "bonds"), *widths, dense,
        class_="legend", data_steps=json.dumps(STEPS),
    )  # fmt: skip


def _sample(width: Number) -> Markup:
    line = el("path", d="M0 8L24 8", stroke_width=width, class_="tie zn")
    return el("svg", line, viewBox="0 0 24 16", width=24, height=16, aria_hidden="true")
