"""Everything that is read of a model, as plain data for a page or a program."""

import base64
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import log
from typing import Any

import torch
from torch import Tensor, nn

from bondwise.choose.table import block
from bondwise.compute.stack import cheapest_order
from bondwise.flow.text import Corpus
from bondwise.network.network import Network
from bondwise.network.stack import levels
from bondwise.read.features import AFTER, BEFORE, WIDTH, Features
from bondwise.read.gauge import Gauge
from bondwise.read.importance import RUNGS, Agreement, Importance
from bondwise.read.spectra import Spectrum

EXAMPLES = 20  # of a feature that are shown
TOKENS = 8  # most frequent tokens among a feature's top examples
SHOWN = 8  # tokens that a direction raises and lowers most
WRITERS = (
    *("o_proj", "down_proj", "out_proj", "c_proj", "fc2", "w2", "wo", "dense"),
    *("dense_4h_to_h", "out_lin", "lin2"),
)
Plain = dict[str, Any]


@dataclass(frozen=True, eq=False)
class Unembedding:
    """From the residual stream to the logits: ``logits = head . gain . x``, the norm's scale aside.

    Attributes:
        head: (vocabulary, width).
        gain: (width,), of the last norm.
    """

    head: Tensor
    gain: Tensor

    def effects(self, directions: Tensor) -> Tensor:
        """(k, width) -> (k, vocabulary), their mean over the vocabulary taken off."""
        found = (directions.to(self.gain.device).float() * self.gain) @ self.head.T
        return found - found.mean(1, keepdim=True)

    def extremes(self, directions: Tensor, most: int = SHOWN) -> tuple[Tensor, ...]:
        """The tokens that each direction raises and lowers most: (values, ids, values, ids)."""
        found = self.effects(directions)
        up, down = found.topk(most, dim=1), (-found).topk(most, dim=1)
        return up.values, up.indices, -down.values, down.indices


def unembedding(model: nn.Module) -> Unembedding | None:
    """Of a Hugging Face language model; None where there is no head, or no norm before it."""
    get = getattr(model, "get_output_embeddings", None)
    head = get() if callable(get) else None
    weight = getattr(head, "weight", None)
    if not isinstance(weight, Tensor) or weight.ndim != 2:
        return None
    gains = [
        own
        for module in getattr(model, "base_model", model).modules()
        if "norm" in type(module).__name__.lower()
        and isinstance(own := getattr(module, "weight", None), Tensor)
        and own.shape == weight.shape[1:]
    ]
    if not gains:
        return None
    with torch.no_grad():
        return Unembedding(weight.detach().float(), gains[-1].detach().float())


def why_not(layer: str, out: int, found: Unembedding | None) -> str | None:
    """Why a layer has no direct effect on the logits; None where it has one."""
    if found is None:
        return "the model has no head over a vocabulary with a norm before it"
    if layer.rsplit(".", 1)[-1] not in WRITERS or out != len(found.gain):
        return "the layer does not write into the residual stream itself: others read it first"
    return None


@dataclass(frozen=True, eq=False)
class Found:
    """What was read of one bond.

    Attributes:
        spectrum: with its nulls.
        gauges: by kind; of a dense weight none.
        shown: the kind of gauge whose features were followed.
        features: over the corpus; None for a dense weight.
        importance: in the same gauge; None where it was not taken.
    """

    spectrum: Spectrum
    gauges: Mapping[str, Gauge] = field(default_factory=dict[str, Gauge])
    shown: str = ""
    features: Features | None = None
    importance: Importance | None = None


def reading(
    model: nn.Module,
    found: Sequence[Found],
    corpus: Corpus,
    tokenizer: Any,
    agreement: Agreement | None,
) -> Plain:
    """The layers and the corpus of a page (`bondwise.report.reading`)."""
    head = unembedding(model)
    layers: dict[str, Plain] = {}
    for own in found:
        name = own.spectrum.layer
        entry = layers.setdefault(name, _layer(model, own.spectrum, bool(own.gauges)))
        entry["bonds"].append(_bond(own, corpus, tokenizer, head, agreement))
    return {"corpus": corpus.to_json(), "layers": list(layers.values())}


def _layer(model: nn.Module, spectrum: Spectrum, tensorized: bool) -> Plain:
    name, net = spectrum.layer, spectrum.network
    order = cheapest_order(net)
    stored = sum(p.numel() for p in model.get_submodule(name).parameters(recurse=False))
    place = block(name)
    return {
        "name": name,
        "block": int(place.rsplit(".", 1)[-1]) if place else None,
        "kind": name.rsplit(".", 1)[-1],
        "shape": list(net.shape),
        "tensorized": tensorized,
        "network": str(net),
        "sizes": dict(net.sizes),
        "stored": stored,
        "sweep": list(order),
        "stack": [
            {
                "core": level.core,
                "shape": list(level.shape),
                "nnz": level.nnz,
                "before": [index.name for index in level.before],
                "after": [index.name for index in level.after],
            }
            for level in levels(net, order)
        ],
        "bonds": [],
    }


def _bond(
    own: Found,
    corpus: Corpus,
    tokenizer: Any,
    head: Unembedding | None,
    agreement: Agreement | None,
) -> Plain:
    spectrum = own.spectrum
    net: Network = spectrum.network
    return {
        "name": spectrum.bond,
        "size": net.sizes[spectrum.bond],
        "kind": spectrum.kind,
        "cores": list(net.places[spectrum.bond]),
        "shown": spectrum.shown,
        "values": _short(spectrum.values),
        "entropy": spectrum.entropy,
        "normalised_entropy": spectrum.normalised,
        "effective_rank": spectrum.effective_rank,
        "nulls": [_null(band) for band in spectrum.nulls.values()],
        "importance": _importance(own, agreement),
        "gauge": own.shown,
        "gauges": {kind: _gauge(each) for kind, each in own.gauges.items()},
        "features": [] if own.features is None else _features(own, corpus, tokenizer, head),
    }


def _null(band: Any) -> Plain:
    low, high = (band.entropies.quantile(q) for q in (0.025, 0.975)) if band.applies else (0, 0)
    return {
        "name": band.name,
        "applies": band.applies,
        "why": band.why,
        "low": _short(band.low) if band.applies else [],
        "high": _short(band.high) if band.applies else [],
        "entropy": [float(low), float(high)] if band.applies else None,
        "p": band.p if band.applies else None,
        "distance": band.distance if band.applies else None,
    }


def _importance(own: Found, agreement: Agreement | None) -> Plain | None:
    if own.importance is None:
        return None
    rungs = {name: _short(getattr(own.importance, name)) for name in (*RUNGS, "measured")}
    told = None if agreement is None else dict(agreement.rank_correlation) or None
    return rungs | {"agreement": told, "measured_in_all": agreement.measured if agreement else 0}


def _gauge(found: Gauge) -> Plain:
    stability = None if found.stability is None else _short(found.stability)
    return {
        "norms": _short(found.norms),
        "identified": found.identified.tolist(),
        "stability": stability,
        "groups": [list(group) for group in found.groups],
        "why": found.why,
    }


def _features(own: Found, corpus: Corpus, tokenizer: Any, head: Unembedding | None) -> list[Plain]:
    found, shown = own.features, own.gauges[own.shown]
    assert found is not None
    reason = why_not(own.spectrum.layer, own.spectrum.network.shape[0], head)
    logits = [None] * len(found.indices)
    if head is not None and reason is None:
        logits = _logits(head, found.directions, tokenizer)
    ids = corpus.ids.flatten()
    places = {token: k for k, token in enumerate(corpus.pieces)}
    entries: list[Plain] = []
    for k, index in enumerate(found.indices.tolist()):
        counts = Counter(ids[found.at[k]].tolist())
        entries.append(
            {
                "index": index,
                "identified": bool(shown.identified[index]),
                "stability": None if shown.stability is None else float(shown.stability[index]),
                "share": float(found.share[k]),
                "pure": float(found.pure[k]),
                "density": float(found.density[k]),
                "skew": float(found.skew[k]),
                "scale": float(found.rms[k]),
                "histogram": _histogram(found, k),
                "examples": _examples(found.at[k], found.top[k], EXAMPLES),
                "lowest": _examples(found.low_at[k], found.low[k], EXAMPLES),
                "around": _around(found.around[k]),
                "tokens": [[places[t], n] for t, n in counts.most_common(TOKENS)],
                "token_entropy": _entropy(counts),
                "logits": logits[k],
                "why_no_logits": reason,
            }
        )
    return entries


def _logits(head: Unembedding, directions: Tensor, tokenizer: Any) -> list[Plain | None]:
    up, up_at, down, down_at = head.extremes(directions, SHOWN)

    def listed(values: Tensor, at: Tensor) -> list[list[Any]]:
        both = zip(at.tolist(), values.tolist(), strict=True)
        return [[tokenizer.decode([t]), round(v, 3)] for t, v in both]

    return [
        {"up": listed(up[k], up_at[k]), "down": listed(down[k], down_at[k])}
        for k in range(len(directions))
    ]


def _histogram(found: Features, k: int) -> Plain:
    edge = WIDTH * float(found.rms[k])
    return {"low": -edge, "high": edge, "counts": found.counts[k].tolist()}


def _examples(at: Tensor, values: Tensor, most: int) -> list[list[Any]]:
    both = zip(at[:most].tolist(), values[:most].tolist(), strict=True)
    return [[place, float(f"{value:.3g}")] for place, value in both]


def _around(values: Tensor) -> str:
    """Values about the shown examples as bytes: 0 to 255 of the largest, below zero as zero."""
    shown = values[:EXAMPLES]
    top = shown[:, BEFORE].max().clamp_min(1e-30)
    assert shown.shape[1] == BEFORE + 1 + AFTER
    scaled = (shown / top * 255).round().clamp(0, 255).to(torch.uint8)
    return base64.b64encode(scaled.numpy().tobytes()).decode()


def _entropy(counts: Counter[int]) -> float:
    total = sum(counts.values())
    return -sum(n / total * log(n / total) for n in counts.values())


def _short(values: Tensor) -> list[float | None]:
    """Numbers as a page needs them: four digits; None for what is not known."""
    return [float(f"{v:.4g}") if v == v else None for v in values.tolist()]
