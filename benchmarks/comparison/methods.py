"""The methods that are compared: published baselines weight by weight, and ours.

Every method gets the same model, the same calibration tokens and the same budget. A baseline cuts
every linear layer by the same fraction and leaves its approximation multiplied out in the dense
layer; what it would store is counted.
"""

from bisect import bisect_right
from collections.abc import Callable, Mapping
from copy import deepcopy
from dataclasses import dataclass, field
from math import ceil
from typing import Any

import numpy as np
import tensorly as tl
import torch
from tensorly.decomposition import tensor_train_matrix
from torch import Tensor, nn

import bondwise as bw
from bondwise.choose.select import select
from bondwise.fit.metric import Metric
from bondwise.flow.calibrate import Inputs
from bondwise.flow.forms.door import batches
from bondwise.flow.text import fitting
from bondwise.gauge.compact import pivot_bits, stored_numbers
from bondwise.network.shapes import balanced

BITS = 16  # of one stored number: everything is stored in bfloat16
TRAIN_MODES = 3  # modes on each side of a data-free tensor train
DEPENDENCE = 4  # tokens of a text that tell as much as one independent token
GROUP = 32  # entries that share one scale in round-to-nearest quantisation


@dataclass(frozen=True)
class Calibration:
    """The text that every method may fit to, and which windows of it."""

    text: str
    tokenizer: Any
    windows: int = 64
    length: int = 256
    seed: int = 0


@dataclass(frozen=True)
class Compressed:
    """A compressed model, and what its targeted weights store now and stored before.

    ``bits`` has everything: numbers, and masks, scales and pivots besides.
    """

    model: nn.Module
    before: int
    numbers: int
    bits: int
    steps: list[dict[str, Any]] = field(default_factory=list)


@dataclass(frozen=True)
class Approximation:
    """One weight multiplied out again, the numbers that stand for it, and all its bits."""

    weight: Tensor
    numbers: int
    bits: int


Compress = Callable[[nn.Module, float, Calibration], Compressed]
Approximate = Callable[[Tensor, Metric, float], Approximation]


@dataclass(frozen=True)
class Method:
    """A method, its name on the page, and whether the budget decides its size."""

    label: str
    compress: Compress
    sized: bool = True


def weightwise(approximate: Approximate, needs_data: bool = True) -> Compress:
    """The model with every linear layer approximated alone, by the same fraction."""

    def compress(model: nn.Module, keep: float, calibration: Calibration) -> Compressed:
        weights, _ = select(model)
        names = [weight.name for weight in weights if weight.chosen]
        metrics = input_metrics(model, names, calibration) if needs_data else _plain(model, names)
        result = deepcopy(model)
        numbers = bits = before = 0
        for name in names:
            layer = result.get_submodule(name)
            found = approximate(layer.weight.detach(), metrics[name], keep)
            layer.weight.data.copy_(found.weight)
            numbers += found.numbers
            bits += found.bits
            before += found.weight.numel()
        return Compressed(result, before, numbers, bits)

    return compress


def input_metrics(
    model: nn.Module, names: list[str], calibration: Calibration
) -> Mapping[str, Metric]:
    """The second moment of the inputs of each layer, from the calibration tokens."""
    shown = batches(
        calibration.text,
        calibration.tokenizer,
        count=calibration.windows,
        length=fitting(model, calibration.length),
        seed=calibration.seed,
    )
    inputs = Inputs({name: model.get_submodule(name) for name in names})
    inputs.watch(model, shown)
    found = {name: inputs.of(name) for name in names}
    return {name: metric for name, metric in found.items() if metric is not None}


def _plain(model: nn.Module, names: list[str]) -> Mapping[str, Metric]:
    widths = {name: model.get_submodule(name).weight.shape[1] for name in names}
    return {name: Metric(torch.eye(width), 1, 0.0) for name, width in widths.items()}


def plain_svd(weight: Tensor, _: Metric, keep: float) -> Approximation:
    """Truncated SVD of the weight, both factors stored: r (m + n) numbers."""
    return _low_rank(weight, None, _plain_rank(weight, keep))


def svd_llm(weight: Tensor, metric: Metric, keep: float) -> Approximation:
    """SVD in the metric of the inputs as published (Wang et al. 2024): no shrinkage, r (m + n)."""
    unshrunk = Metric(metric.second_moment, metric.tokens, 0.0)
    return _low_rank(weight, unshrunk, _plain_rank(weight, keep))


def gauge_free_svd(weight: Tensor, metric: Metric, keep: float) -> Approximation:
    """The same with the moment shrunk, stored without its gauge: r (m + n - r) and the pivots."""
    out, inp = weight.shape
    nets = [bw.lowrank(out, inp, rank) for rank in range(1, min(out, inp) + 1)]
    costs = [_stored(net) for net in nets]
    best = nets[bisect_right(costs, keep * weight.numel()) - 1]
    shrinkage = inp / (inp + metric.tokens / DEPENDENCE)
    found = bw.fit(weight, best, Metric(metric.second_moment, metric.tokens, shrinkage))
    cost = _stored(best)
    return Approximation(bw.dense(found.network, found.cores), cost, cost * BITS)


def _plain_rank(weight: Tensor, keep: float) -> int:
    out, inp = weight.shape
    return max(1, int(keep * out * inp / (out + inp)))


def _low_rank(weight: Tensor, metric: Metric | None, rank: int) -> Approximation:
    found = bw.fit(weight, bw.lowrank(*weight.shape, rank), metric)
    numbers = found.parameters
    return Approximation(bw.dense(found.network, found.cores), numbers, numbers * BITS)


def _stored(net: bw.Network) -> int:
    return stored_numbers(net) + ceil(pivot_bits(net) / BITS)


def train_svd(weight: Tensor, _: Metric, keep: float) -> Approximation:
    """TT-SVD of the weight alone (Oseledets 2011), by TensorLy, which TensorLy-Torch calls."""
    rows, cols = (balanced(size, TRAIN_MODES) for size in weight.shape)
    values = weight.to(torch.float64).numpy().reshape(*rows, *cols)
    train = tensor_train_matrix(values, rank=_train_ranks(rows, cols, keep))
    found = np.asarray(tl.tt_matrix.tt_matrix_to_tensor(train)).reshape(tuple(weight.shape))
    numbers = sum(core.size for core in train)
    return Approximation(torch.from_numpy(found), numbers, numbers * BITS)


def _train_ranks(rows: tuple[int, ...], cols: tuple[int, ...], keep: float) -> tuple[int, ...]:
    """The ranks of one common cap, the largest that stores at most ``keep``.

    TensorLy's own ranks for a fraction are not capped by what a bond can use, and then store less.
    """
    sites = [row * col for row, col in zip(rows, cols, strict=True)]
    total = int(np.prod(sites))
    useful = [min(int(np.prod(sites[:k])), int(np.prod(sites[k:]))) for k in range(1, len(sites))]

    def ranks(cap: int) -> tuple[int, ...]:
        return (1, *(min(cap, bond) for bond in useful), 1)

    def numbers(cap: int) -> int:
        bonds = ranks(cap)
        return sum(bonds[k] * site * bonds[k + 1] for k, site in enumerate(sites))

    return ranks(max(1, bisect_right(range(1, max(useful) + 1), keep * total, key=numbers)))


def wanda(weight: Tensor, metric: Metric, keep: float) -> Approximation:
    """The largest ``|W| * rms(input)`` of every output row stay (Sun et al. 2023)."""
    rms = (metric.second_moment.diagonal() / metric.tokens).sqrt()
    kept = int(keep * weight.shape[1])
    places = (weight.abs() * rms).topk(kept, dim=1).indices
    mask = torch.zeros_like(weight).scatter_(1, places, 1.0)
    numbers = kept * weight.shape[0]
    return Approximation(weight * mask, numbers, numbers * BITS + weight.numel())


def rounded(bits: int) -> Approximate:
    """Round to nearest, symmetric, one 16-bit scale per 32 entries of a row."""
    top = 2 ** (bits - 1) - 1

    def approximate(weight: Tensor, _: Metric, __: float) -> Approximation:
        out, inp = weight.shape
        groups = weight.reshape(out, inp // GROUP, GROUP)
        scale = (groups.abs().amax(dim=-1, keepdim=True) / top).clamp(min=1e-12)
        scale = scale.to(torch.bfloat16).to(weight.dtype)
        whole = (groups / scale).round().clamp(-top - 1, top)
        size = weight.numel() * bits + weight.numel() // GROUP * BITS
        return Approximation((whole * scale).reshape(out, inp), weight.numel(), size)

    return approximate


def ours(**choices: Any) -> Compress:
    """`bondwise.tensorize` with the given format, effort or preference."""

    def compress(model: nn.Module, keep: float, calibration: Calibration) -> Compressed:
        result = bw.tensorize(
            model,
            keep,
            calibration.text,
            tokenizer=calibration.tokenizer,
            windows=calibration.windows,
            length=calibration.length,
            seed=calibration.seed,
            **choices,
        )
        before, after = result.table.targeted
        return Compressed(
            result.model, before, after, after * BITS, [dict(step) for step in result.steps]
        )

    return compress


METHODS: dict[str, Method] = {
    "svd": Method("SVD of the weight", weightwise(plain_svd, needs_data=False)),
    "tt-svd": Method("TT-SVD of the weight (TensorLy)", weightwise(train_svd, needs_data=False)),
    "svd-llm": Method("SVD in the metric (SVD-LLM)", weightwise(svd_llm)),
    "gauge-free": Method("the same, shrunk and gauge-free", weightwise(gauge_free_svd)),
    "lowrank": Method("ours, low rank only", ours(format="lowrank")),
    "mpo": Method("ours, MPO only", ours(format="mpo")),
    "btt": Method("ours, block tensor train only", ours(format="btt")),
    "tree": Method("ours, tree only", ours(format="tree")),
    "tucker": Method("ours, Tucker only", ours(format="tucker")),
    "fast": Method("ours, fast", ours(effort="fast")),
    "best": Method("ours, best", ours(effort="best")),
    "wanda": Method("Wanda pruning, masks not counted", weightwise(wanda)),
    "int8": Method("8-bit rounding, groups of 32", weightwise(rounded(8), False), sized=False),
    "int4": Method("4-bit rounding, groups of 32", weightwise(rounded(4), False), sized=False),
}
REFERENCES = ("wanda", "int8", "int4")
