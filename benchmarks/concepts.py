"""Do bond features tell concepts better than neurons, principal components and random gauges?

    python benchmarks/concepts.py [--keep 0.6] [--draws 99] [--layers o_proj@15,down_proj@15,..]

SmolLM2-135M as ``bondwise compress`` leaves it at a keep. Concepts are marked in the text by
patterns, token by token; no model judges. Gauges are chosen on articles that the model was
calibrated on. On other articles the best index of a bond is chosen on one half and its AUROC is
told on the other, by articles; random gauges of the same bond, neurons, principal components and
random directions go through the same. Each layer and gauge is one JSON file, and is not run again;
the page docs/reading.md gets the table at the end.
"""

import argparse
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from comparison.cells import read as results
from comparison.cells import versions, write
from comparison.flags import several, some
from comparison.page import write_between
from comparison.subjects import compressed_smollm2, wikipedia
from torch import Tensor, nn

from bondwise import read
from bondwise.checkpoint.loading import load_model
from bondwise.demo import assets
from bondwise.flow.text import windows
from bondwise.flow.watch import collect
from bondwise.read.directions import principal, random_directions
from bondwise.read.scores import scored

HERE = Path(__file__).parent
PAGE = HERE.parent / "docs" / "reading.md"
GAUGES = ("raw", "canonical", "whitened", "varimax", "ica")
LAYERS = ("self_attn.q_proj", "mlp.gate_proj", "self_attn.o_proj", "mlp.down_proj")
DEPTHS = (5, 15, 25)
LENGTH, SHARE = 256, 2  # tokens of a window, and windows of an article at most
CHOSEN_ON = 16384  # tokens that gauges are chosen on
LEVEL = 0.05

_MONTHS = "January|February|March|April|May|June|July|August|September|October|November|December"
_NATIONS = "American|British|English|French|German|Greek|Roman|Italian|Spanish|Russian|Chinese"
_NATIONS += "|Japanese|Indian|European|African|Arab|Jewish|Dutch|Irish|Polish|Turkish|Persian"
_PLACES = "America|Britain|England|France|Germany|Greece|Rome|Italy|Spain|Russia|China|Japan"
_PLACES += "|India|Europe|Africa|Australia|Austria|London|Paris|New York|Egypt|Israel|Canada"
CONCEPTS = {
    "number": r"\d+",
    "year": r"\b(?:1[0-9]|20)\d\d\b",
    "month": rf"\b(?:{_MONTHS})\b",
    "place": rf"\b(?:{_PLACES})\b",
    "people": rf"\b(?:{_NATIONS})\b",
    "in brackets": r"\([^()\n]{1,200}\)",
    "in quotation marks": r'"[^"\n]{1,200}"',
    "name": r"(?<=[a-z,] )[A-Z][a-z]+",
    "acronym": r"\b[A-Z]{2,}\b",
    "sentence begins": r"(?<=[.!?] )[A-Z]\w*",
    "comma": r",",
    "full stop": r"\.(?= )",
    "article": r"\b(?:the|a|an|The|A|An)\b",
    "preposition": r"\b(?:of|in|to|for|with|on|by|from|at|as|into|under|over)\b",
    "and, or, but": r"\b(?:and|or|but)\b",
    "negation": r"\b(?:not|no|never|none|nor|without)\b",
    "pronoun": r"\b(?:he|she|it|they|his|her|its|their|him|them|who|which)\b",
    "to be": r"\b(?:is|are|was|were|be|been|being)\b",
    "-ing": r"\b[a-z]{3,}ing\b",
    "-ed": r"\b[a-z]{3,}ed\b",
    "-ly": r"\b[a-z]{3,}ly\b",
}

Entry = dict[str, Any]


@dataclass(frozen=True)
class Marked:
    """Windows of articles with concepts marked.

    Attributes:
        ids: (windows, length).
        labels: (tokens, concepts).
        groups: (tokens,), the article of each.
    """

    ids: Tensor
    labels: Tensor
    groups: Tensor


def marked(tokenizer: Any, articles: Sequence[str]) -> Marked:
    """The first windows of each article, each token marked where a concept's pattern meets it."""
    ids: list[list[int]] = []
    labels: list[list[list[bool]]] = []
    groups: list[int] = []
    for number, text in enumerate(articles):
        coded = tokenizer(text, return_offsets_mapping=True, add_special_tokens=False)
        flags = [_meets(text, coded["offset_mapping"], pattern) for pattern in CONCEPTS.values()]
        rows = list(zip(*flags, strict=True))
        edges = range(0, min(len(rows), SHARE * LENGTH) + 1, LENGTH)
        for start, stop in pairwise(edges):
            ids.append(coded["input_ids"][start:stop])
            labels.append([list(row) for row in rows[start:stop]])
            groups += [number] * LENGTH
    return Marked(torch.tensor(ids), torch.tensor(labels).flatten(0, 1), torch.tensor(groups))


def _meets(text: str, spans: Sequence[tuple[int, int]], pattern: str) -> list[bool]:
    """Whether each token's own characters, its leading space aside, meet a match."""
    inside = bytearray(len(text) + 1)
    for found in re.finditer(pattern, text):
        inside[found.start() : found.end()] = b"\1" * (found.end() - found.start())
    return [any(inside[k] and not text[k].isspace() for k in range(*span)) for span in spans]


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--keep", type=float, default=0.6)
    parser.add_argument("--gauges", type=some(GAUGES), default=list(GAUGES))
    parser.add_argument("--depths", type=several(int), default=DEPTHS)
    parser.add_argument("--layers", type=some(LAYERS), default=list(LAYERS))
    parser.add_argument("--draws", type=int, default=99)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--results", type=Path, default=HERE / "results" / "concepts")
    parser.add_argument("--page", action="store_true", help="make the page and run nothing")
    return parser.parse_args()


def main() -> None:
    given = arguments()
    if not given.page:
        torch.set_num_threads(given.threads)
        run(given)
    write_between(PAGE, "concepts", section(results(given.results)))


def run(given: argparse.Namespace) -> None:
    """Every cell that is not there yet."""
    cells = [(depth, leaf) for depth in given.depths for leaf in given.layers]
    todo = [c for c in cells if not all(_file(given, c, kind).exists() for kind in given.gauges)]
    if not todo:
        return
    loaded = load_model(compressed_smollm2(given.keep), torch.float32, task="causal")
    shown = marked(loaded.tokenizer, [article.text for article in assets.held_out_articles()])
    other = windows(loaded.tokenizer, wikipedia(), CHOSEN_ON // LENGTH, LENGTH)
    for cell in todo:
        for kind, entry in scores(loaded.model, cell, shown, other, given):
            write(_file(given, cell, kind), entry)
            print(f"{entry['layer']} {kind}: mean {sum(entry['auroc']) / len(entry['auroc']):.3f}")


def _file(given: argparse.Namespace, cell: tuple[int, str], kind: str) -> Path:
    return given.results / f"{given.keep:g}-{cell[0]}-{cell[1]}-{kind}.json"


def scores(
    model: nn.Module,
    cell: tuple[int, str],
    shown: Marked,
    other: Tensor,
    given: argparse.Namespace,
) -> Iterator[tuple[str, Entry]]:
    """The scores of one layer in every gauge that is not there yet."""
    depth, leaf = cell
    name = f"model.layers.{depth}.{leaf}"
    bond = read.bond(model, name)
    chosen_on = collect(model, [name], list(other.split(8)), other.numel())[name]
    x = collect(model, [name], list(shown.ids.split(8)), shown.ids.numel())[name]
    rank = bond.size
    with torch.no_grad():
        y = model.get_submodule(name)(x)
    controls = {
        "input neurons": x,
        "output neurons": y,
        "principal components": principal(x, min(rank, x.shape[1])),
        "random directions": random_directions(x, rank),
    }
    for kind in given.gauges:
        if _file(given, cell, kind).exists():
            continue
        if bond.kind != "cut" and kind not in ("raw", "canonical"):
            print(f"{name}: a bond of {bond.kind} has no {kind} gauge")
            continue
        found = read.gauge(bond, kind, data=chosen_on)
        values = x @ read.readout(found.bond).readers.T
        own = scored(
            values, shown.labels, controls=controls, draws=given.draws, groups=shown.groups
        )
        yield (
            kind,
            {
                "layer": name,
                "gauge": kind,
                "keep": given.keep,
                "kind": bond.kind,
                "rank": rank,
                "identified": float(found.identified.double().mean()),
                "tokens": len(x),
                "articles": int(shown.groups.max()) + 1,
                "draws": given.draws,
                "concepts": list(CONCEPTS),
                "positives": shown.labels.sum(0).tolist(),
                "auroc": own.best.auroc.tolist(),
                "null": own.null.mean(0).tolist(),
                "p": own.p.tolist(),
                "adjusted": own.adjusted.tolist(),
                "controls": {
                    control: {
                        "auroc": against.best.auroc.tolist(),
                        "low": against.low.tolist(),
                        "high": against.high.tolist(),
                    }
                    for control, against in own.controls.items()
                },
                **versions(),
            },
        )


def section(found: Sequence[Entry]) -> str:
    """Two tables in Markdown: by gauge, and by concept."""
    if not found:
        return ""
    first = found[0]
    layers = sorted({e["layer"] for e in found}, key=lambda n: [int(n.split(".")[2]), n])
    short = ", ".join(name.removeprefix("model.layers.") for name in layers)
    about = (
        f"SmolLM2-135M at keep {first['keep']:g}, {len(layers)} bonds ({short}), "
        f"{len(first['concepts'])} concepts, {first['tokens']:,} tokens of {first['articles']} "
        f"held-out articles, {first['draws']} random gauges; `make bench-concepts`. "
        "Mean held-out AUROC of the best index, over bonds and concepts. "
        f"Better than these: share of bonds and concepts with p at most {LEVEL} against random "
        f"gauges, where chance alone gives {LEVEL:.0%}. Won, lost: share whose 95 % interval of "
        "the difference to the control lies above, or below, zero."
    )
    return "\n\n".join([about, _by_gauge(found), _by_concept(found)])


def _by_gauge(found: Sequence[Entry]) -> str:
    names = list(found[0]["controls"])
    head = "| gauge | identified | AUROC | random gauges | better than these |"
    head += "".join(f" {name} | won, lost |" for name in names)
    lines = [head, "|" + "---|" * (5 + 2 * len(names))]
    for kind in GAUGES:
        own = [e for e in found if e["gauge"] == kind]
        if not own:
            continue
        cells = [
            kind,
            f"{_mean([e['identified'] for e in own]):.0%}",
            f"{_mean(_all(own, 'auroc')):.3f}",
            f"{_mean(_all(own, 'null')):.3f}",
            f"{_mean([p <= LEVEL for p in _all(own, 'p')]):.0%}",
        ]
        for name in names:
            theirs = [e["controls"][name] for e in own]
            won = _mean([low > 0 for low in _all(theirs, "low")])
            lost = _mean([high < 0 for high in _all(theirs, "high")])
            cells += [f"{_mean(_all(theirs, 'auroc')):.3f}", f"{won:.0%}, {lost:.0%}"]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _by_concept(found: Sequence[Entry]) -> str:
    kinds = [kind for kind in GAUGES if any(e["gauge"] == kind for e in found)]
    names = list(found[0]["controls"])
    lines = [f"| concept | tokens | {' | '.join([*kinds, 'random gauges', *names])} |"]
    lines.append("|" + "---|" * (3 + len(kinds) + len(names)))
    for c, concept in enumerate(found[0]["concepts"]):
        cells = [concept, f"{found[0]['positives'][c]:,}"]
        cells += [
            f"{_mean([e['auroc'][c] for e in found if e['gauge'] == kind]):.3f}" for kind in kinds
        ]
        cells.append(f"{_mean([e['null'][c] for e in found]):.3f}")
        cells += [f"{_mean([e['controls'][n]['auroc'][c] for e in found]):.3f}" for n in names]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _all(found: Sequence[Entry], key: str) -> list[float]:
    return [value for e in found for value in e[key]]


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


if __name__ == "__main__":
    main()
