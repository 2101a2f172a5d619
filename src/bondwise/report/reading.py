"""A model read through its bonds, as one HTML file: opens offline and carries its own data.

The model as a strip of networks is drawn here, so that it is seen at once and without scripts. A
layer, a bond and an index are drawn by the scripts in ``assets`` when they are opened: each
layer's numbers are JSON in a script element of their own, and are not looked at before. Views have
addresses: ``#layer/NAME``, ``#bond/NAME/BOND`` and ``#feature/NAME/BOND/INDEX``.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bondwise.report import packed
from bondwise.report.atlas import atlas, link
from bondwise.report.markup import Markup, el
from bondwise.report.packed import bonds_of, distance, null_names, null_of
from bondwise.report.page import asset, document, head, write_whole
from bondwise.report.units import decimal

SCRIPTS = ("tip.js", "plots.js", "layer.js", "bond.js", "address.js")  # in this order

Reading = dict[str, Any]
"""Plain data. Whatever is missing or None is "not measured" on the page::

    bondwise, model, source, seed, command, notes: [sentences]
    corpus: {pieces: [texts of tokens], ids: [places in pieces], windows, length}
    layers: [{name, block, kind, shape, tensorized, network, sizes, format, stored, sweep,
      stack: [{core, shape, nnz, before, after}],
      bonds: [{name, size, kind: cut | blocks | terms, cores, shown,
        values: [descending], entropy, normalised_entropy, effective_rank,
        nulls: [{name, applies, why, low, high, entropy: [low, high], p, distance}]
          (low and high are of values over their root sum of squares),
        importance: {schmidt, output, gradient, measured: [per index] | None,
          agreement: {schmidt, output, gradient: number | None}, measured_in_all},
        gauge, gauges: {name: {norms, identified: [bools] | None, stability, groups, why}},
        features: [{index, identified, stability, density, skew, scale, share, pure,
          histogram: {low, high, counts}, examples: [[position, value]], lowest: [same],
          around: base64 of a byte for each of 24 tokens of each example (16 before it, itself,
                  7 after), 0 to 255 of the largest,
          tokens: [[place in pieces, count]], token_entropy,
          logits: {up: [[text, change]], down: [same]} | None, why_no_logits}]}]}]
"""


def reading_page(reading: Reading) -> str:
    """The whole page.

    >>> text = reading_page({"model": "tiny <1>", "layers": []})
    >>> text[:15], "tiny &lt;1&gt;" in text
    ('<!doctype html>', True)
    """
    layers = reading.get("layers") or []
    pictures = packed.Pictures()
    numbers = [
        _json(f"layer-{k}", packed.packed(packed.layer(layer, pictures)))
        for k, layer in enumerate(layers)
    ]
    return document(
        head(f"{_model(reading)}, read through its bonds", "page.css", "reading.css"),
        el("a", "Skip to the view", href="#view", class_="skip"),
        _masthead(reading),
        _navigation(),
        el(
            "main",
            el("div", atlas(reading), listing(layers), _notes(reading), id="model"),
            el("div", id="stage", hidden=True),
            id="view", tabindex=-1,
        ),
        el("footer", el("p", f"bondwise {reading.get('bondwise', '')}, {_seed(reading)}")),
        el("div", id="tip", role="status", hidden=True),
        el("p", id="said", class_="unseen", aria_live="polite"),
        _json("contents", packed.packed(_contents(reading))),
        el("script", *map(asset, SCRIPTS)),
        # below what is needed for the first look
        _json("corpus", packed.packed(packed.corpus(reading))),
        _json("pictures", packed.packed(list(pictures.known))),
        *numbers,
    )  # fmt: skip


def write_reading(reading: Reading, path: str | Path) -> Path:
    """Write the page, whole or not at all.

    Raises:
        OSError: the folder cannot be written to.
    """
    return write_whole(reading_page(reading), path)


def _json(name: str, text: Markup) -> Markup:
    return el("script", text, type="application/json", id=name)


def _contents(reading: Reading) -> dict[str, Any]:
    """What the search box and the way back need to know of every layer."""
    return {
        "model": _model(reading),
        "layers": [
            {
                "name": layer["name"],
                "shape": layer.get("shape"),
                "format": layer.get("format") if layer.get("tensorized", True) else "dense",
                "bonds": [bond["name"] for bond in layer.get("bonds") or []],
            }
            for layer in reading.get("layers") or []
        ],
    }


def _model(reading: Reading) -> str:
    return str(reading.get("model") or "model")


def _seed(reading: Reading) -> str:
    seed = reading.get("seed")
    return "seed not recorded" if seed is None else f"seed {seed}"


def _masthead(reading: Reading) -> Markup:
    toggle = el("button", "dark or light", type="button", id="theme", class_="scripted")
    source = reading.get("source")
    command = reading.get("command")
    return el(
        "header",
        el("p", el("a", "bondwise", href="#model"), toggle, class_="mark"),
        el("h1", _model(reading)),
        el("p", opening(reading), class_="lead"),
        el("p", "read from ", el("code", str(source)), class_="from") if source else None,
        el("p", "made by ", el("code", str(command)), class_="from") if command else None,
        class_="masthead",
    )


def opening(reading: Reading) -> str:
    """What was read, over what, in two sentences."""
    layers = reading.get("layers") or []
    networks = sum(1 for layer in layers if layer.get("tensorized", True))
    bonds = [bond for layer in layers for bond in layer.get("bonds") or []]
    features = sum(len(bond.get("features") or []) for bond in bonds)
    what = (
        f"Read through its bonds: {_many(len(layers), 'weight')}, {networks:,} of them tensor "
        f"networks, with {_many(len(bonds), 'bond')} and {_many(features, 'feature')}."
    )
    given = reading.get("corpus") or {}
    ids = given.get("ids")
    if ids is None or not len(ids):
        return f"{what} No corpus was read."
    windows = _many(given.get("windows") or 1, "window")
    return f"{what} The corpus has {len(ids):,} tokens in {windows} of {given.get('length')}."


def _many(count: int, what: str) -> str:
    """A count and its word.

    >>> _many(1, "bond"), _many(13440, "bond")
    ('1 bond', '13,440 bonds')
    """
    return f"{count:,} {what}{'' if count == 1 else 's'}"


def _navigation() -> Markup:
    search = el(
        "div",
        el("label", "Find a layer", for_="search"),
        el("input", type="search", id="search", autocomplete="off", spellcheck="false",
           placeholder="q_proj 12", aria_describedby="hits"),
        el("div", id="hits", hidden=True),
        class_="finder scripted", role="search",
    )  # fmt: skip
    way = el("ol", el("li", el("a", "model", href="#model", aria_current="page")))
    return el("div", el("nav", way, id="way", aria_label="where you are"), search, class_="top")


def _notes(reading: Reading) -> Markup | None:
    notes = reading.get("notes") or []
    if not notes:
        return None
    return el(
        "section",
        el("h2", "Notes"),
        el("ul", *(el("li", str(note)) for note in notes)),
        id="notes",
    )


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
