"""Block by block: weights fitted to what the compressed blocks before give them, then refined.

Two streams run side by side: what enters the dense block, and what enters the same block once all
before it are networks. The second is what the weights are fitted on, the dense block's output is
what the whole block is refined towards (Wang et al. 2025, AA-SVD).
"""

from collections.abc import Iterable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field, replace
from typing import cast

import torch
from torch import Tensor, nn

from bondwise.choose.candidates import COLUMNS, EXACT, Candidate, Site, sites
from bondwise.choose.columns import low_rank_with_columns
from bondwise.choose.curves import shared_cores
from bondwise.compress.refine import Refined, refine
from bondwise.fit.fit import fit
from bondwise.fit.metric import Metric, held_out_shrinkage
from bondwise.fit.whitened import metric_norm
from bondwise.flow.blocks import Stream, holds
from bondwise.flow.calibrate import Inputs
from bondwise.flow.data import fitted_on
from bondwise.gauge.compact import Compact, compact
from bondwise.gauge.storage import compact_shared
from bondwise.layers.embedding import TensorEmbedding
from bondwise.layers.layers import TensorLinear
from bondwise.layers.remainder import Columns
from bondwise.layers.storage import TensorLayer, share
from bondwise.network.network import Network
from bondwise.progress import Progress

NEAR = (0.25, 1.0, 4.0)  # shrinkages to try, times what the number of tokens suggests
ROUGH = 4  # bytes of a number from which on its rounding is nothing

Weighing = Metric | Tensor | None


@dataclass(frozen=True)
class Effort:
    """How much work a block is worth.

    Attributes:
        drawn: windows that a language model draws itself, for each that is given.
        steps: of refinement.
        rate: its largest step.
        every: sensitivities are measured in every so many blocks.
        alphas: powers of the sensitivities to try; the best by held-out output is taken.
        exact: formats whose curves are in closed form, one decomposition for all ranks.
        formats: networks to try beside them; each takes fits of its own.
    """

    drawn: int
    steps: int
    rate: float
    every: int
    alphas: tuple[float, ...]
    exact: tuple[str, ...]


EFFORT = {
    "fast": Effort(
        drawn=1,
        steps=64,
        rate=1e-3,
        every=4,
        alphas=(1.0,),
        exact=EXACT,
    ),
    "best": Effort(
        drawn=3,
        steps=160,
        rate=1e-3,
        every=2,
        alphas=(0.75, 1.0, 1.25),
        exact=(*EXACT, COLUMNS),
    ),
}


@dataclass
class Fitted:
    """What was found for the weights of a chain.

    Attributes:
        blocks: the new blocks, by path.
        errors: of every fit, on its own tokens and on held-out ones, before refinement.
        refined: the error of every block's output before and after refinement.
        unseen: weights that no token reached, fitted to the weight alone.
    """

    blocks: dict[str, nn.Module] = field(default_factory=dict[str, nn.Module])
    errors: dict[str, tuple[float, float | None]] = field(
        default_factory=dict[str, tuple[float, float | None]]
    )
    refined: dict[str, Refined] = field(default_factory=dict[str, Refined])
    unseen: list[str] = field(default_factory=list[str])


def fit_chain(
    teacher: nn.Module,
    blocks: Sequence[str],
    picks: Mapping[str, Candidate],
    stream: Stream,
    entering: Stream,
    given: int,
    held_out: Sequence[int],
    *,
    steps: int,
    rate: float,
    seed: int,
    progress: Progress,
) -> Fitted:
    """New blocks for a chain, one after another; the teacher is not changed.

    Args:
        teacher: the dense model.
        blocks: paths of its blocks, in the order in which they run.
        picks: what becomes of each weight.
        stream: what enters the first block of the teacher.
        entering: what enters it where all before it is compressed.
        given: batches that the user gave; what the model drew comes after them, for refinement
            only, since its inputs are not spread as theirs are.
        held_out: batches that nothing is fitted on.
        steps: of refinement for each block; 0 for none.
        rate: its largest step.
        seed: of the order of batches, and the starts of fits that have random ones.
        progress: called with ("fit", done, total).
    """
    found = Fitted()
    progress("fit", 0, len(blocks))
    for at, name in enumerate(blocks):
        dense = teacher.get_submodule(name)
        wanted = stream.after(dense)
        chosen = {w: c for w, c in picks.items() if holds(name, w) and c.networks}
        if chosen:
            block, metrics = _fit_block(dense, name, chosen, entering, given, held_out, seed, found)
            if steps:
                found.refined[name] = refine(
                    block,
                    entering.to(torch.float32),
                    wanted.hidden,
                    held_out,
                    steps=steps,
                    rate=rate,
                    seed=seed + at,
                )
            found.blocks[name] = _stored(block, dense, name, chosen, metrics)
        new = found.blocks.get(name, dense)
        entering, stream = entering.after(new), wanted
        progress("fit", at + 1, len(blocks))
    return found


def fit_layers(
    model: nn.Module, picks: Mapping[str, Candidate], places: Iterable[Site], seed: int
) -> Fitted:
    """New layers for weights outside the blocks, fitted to the dense model's inputs."""
    found = Fitted()
    layers = {name: model.get_submodule(name) for name in picks}
    for place in places:
        chosen = [w for w in place.weights if w in picks]
        if not chosen:
            continue
        site = _shrunk(place, picks)
        if site.metric is None:
            found.unseen += [w for w in chosen if not isinstance(layers[w], nn.Embedding)]
        for candidate in dict.fromkeys(picks[w] for w in chosen):
            new = _networks(candidate, site, layers, seed, found)
            kinds = [site.weights[w].dtype for w in candidate.weights]
            found.blocks |= _compacted(candidate, new, layers, kinds[0], site.metric)
    return found


def _fit_block(
    dense: nn.Module,
    name: str,
    chosen: Mapping[str, Candidate],
    entering: Stream,
    given: int,
    held_out: Sequence[int],
    seed: int,
    found: Fitted,
) -> tuple[nn.Module, dict[str, Weighing]]:
    """The block with its networks in plain form and float32, ready to be trained; their metrics."""
    block = deepcopy(dense)
    layers = {w: _inside(block, name, w) for w in chosen}
    seen, unseen = Inputs(layers), Inputs(layers)
    entering.part(fitted_on(given, held_out)).after(block, seen)
    if held_out:
        entering.part(held_out).after(block, unseen)
    new: dict[str, nn.Module] = {}
    metrics: dict[str, Weighing] = {}
    for place in sites(layers, seen, unseen):
        site = _shrunk(place, chosen)
        metrics |= dict.fromkeys(site.weights, site.metric)
        found.unseen += [] if site.metric is not None else list(site.weights)
        for candidate in dict.fromkeys(chosen[w] for w in site.weights):
            new |= _networks(candidate, site, layers, seed, found)
    for w, layer in new.items():
        block = _put(block, name, w, layer)
    return block.float(), metrics


def _shrunk(site: Site, chosen: Mapping[str, Candidate]) -> Site:
    """The site with the shrinkage, near what its tokens suggest, that is best on other tokens.

    Tried on the largest weight, at the rank that was chosen for it; one for all weights.
    """
    metric, held_out = site.metric, site.held_out
    name = max(chosen.keys() & site.weights, key=lambda w: (site.weights[w].numel(), w))
    bonds = [size for net in chosen[name].networks for size in net.bonds.values()]
    if not isinstance(metric, Metric) or not isinstance(held_out, Metric) or not bonds:
        return site
    weight = site.weights[name].float()
    near = [min(1.0, factor * metric.shrinkage) for factor in NEAR]
    plain = replace(held_out, shrinkage=0.0)
    rank = min(max(bonds), *weight.shape)
    return replace(site, metric=held_out_shrinkage(weight, metric, plain, rank, near))


def _networks(
    candidate: Candidate,
    site: Site,
    layers: Mapping[str, nn.Module],
    seed: int,
    found: Fitted,
) -> dict[str, nn.Module]:
    """Layers for the weights of one candidate, fitted in the metric of their inputs."""
    name, *others = candidate.weights
    if others:
        return _shared(candidate, site, layers, found)
    (net,) = candidate.networks
    if candidate.remainder:
        return {name: _beside_columns(name, net, candidate.remainder, site, layers[name], found)}
    held_out = site.held_out  # what is measured in is never shrunk
    if isinstance(held_out, Metric):
        held_out = replace(held_out, shrinkage=0.0)
    done = fit(site.weights[name].float(), net, site.metric, seed=seed, held_out=held_out)
    found.errors[name] = (done.error, done.held_out)
    return {name: _plain(done.network, done.cores, layers[name])}


def _shared(
    candidate: Candidate, site: Site, layers: Mapping[str, nn.Module], found: Fitted
) -> dict[str, nn.Module]:
    """Low rank of several weights with one common core on the side of the inputs."""
    names = candidate.weights
    moments = site.moments()
    weights = [site.weights[name].double() for name in names]
    ((rank,),) = {tuple(net.bonds.values()) for net in candidate.networks}
    lefts, right = shared_cores(weights, moments[0], rank)
    lefts, right = _balanced(lefts, right)
    made: list[TensorLayer] = []
    for name, net, weight, left in zip(names, candidate.networks, weights, lefts, strict=True):
        found.errors[name] = _errors(weight, left @ right, moments)
        made.append(_plain(net, (left.float(), right.float()), layers[name]))
    share(made)
    return dict(zip(names, made, strict=True))


def _beside_columns(
    name: str, net: Network, count: int, site: Site, layer: nn.Module, found: Fitted
) -> TensorLayer:
    """Low rank with some columns dense beside it, both fitted at once."""
    weight, moments = site.weights[name].double(), site.moments()
    (rank,) = net.bonds.values()
    best = low_rank_with_columns(weight, moments[0], rank, count)
    found.errors[name] = _errors(weight, best.dense(), moments)
    (left,), right = _balanced([best.left], best.right)
    rest = Columns(best.positions, best.values)
    return _plain(net, (left.float(), right.float()), layer, rest)


def _balanced(lefts: Sequence[Tensor], right: Tensor) -> tuple[list[Tensor], Tensor]:
    """The same products, with singular values split evenly, as training likes them."""
    rotation, scale, right = torch.linalg.svd(right, full_matrices=False)
    root = scale.sqrt()
    return [left @ rotation * root for left in lefts], root[:, None] * right


def _errors(weight: Tensor, new: Tensor, moments: tuple[Tensor, Tensor]) -> tuple[float, float]:
    """Relative errors on the tokens that were fitted on, and on held-out ones."""
    fitting, held_out = (
        metric_norm(weight - new, m) / (metric_norm(weight, m) or 1.0) for m in moments
    )
    return fitting, held_out


def _plain(
    net: Network, cores: Sequence[Tensor], layer: nn.Module, rest: Columns | None = None
) -> TensorLayer:
    if isinstance(layer, nn.Embedding):
        return TensorEmbedding(net, cores)
    bias = cast(Tensor | None, layer.bias)
    return TensorLinear(net, cores, bias, origin=type(layer).__name__, remainder=rest)


def _stored(
    block: nn.Module,
    dense: nn.Module,
    name: str,
    chosen: Mapping[str, Candidate],
    metrics: Mapping[str, Weighing],
) -> nn.Module:
    """The block as it is kept: networks without their gauge, everything in its old dtype."""
    for candidate in dict.fromkeys(chosen.values()):
        layers = {w: _inside(block, name, w) for w in candidate.weights}
        first = candidate.weights[0]
        kind, metric = cast(Tensor, _inside(dense, name, first).weight).dtype, metrics[first]
        for w, layer in _compacted(candidate, layers, layers, kind, metric).items():
            block = _put(block, name, w, layer)
    _restore(block, dense)
    return block


def _compacted(
    candidate: Candidate,
    layers: Mapping[str, nn.Module],
    sources: Mapping[str, nn.Module],
    dtype: torch.dtype,
    metric: Weighing,
) -> dict[str, nn.Module]:
    """Layers without their gauge; biases and the like come from their sources."""
    plain = [cast(TensorLayer, layers[w]) for w in candidate.weights]
    nets = [layer.network for layer in plain]
    cores = [[core.detach() for core in layer.cores()] for layer in plain]
    scale = metric if dtype.itemsize < ROUGH else None  # it costs time, and rounding is no loss
    if len(plain) > 1:
        forms = compact_shared(nets, cores, dtype, scale)
    else:
        forms = [compact(nets[0], cores[0], dtype, scale)]
    made = [
        _layer(form, sources[w], layer)
        for form, w, layer in zip(forms, candidate.weights, plain, strict=True)
    ]
    if len(made) > 1:
        share(made)
    return dict(zip(candidate.weights, made, strict=True))


def _layer(form: Compact, source: nn.Module, plain: TensorLayer) -> TensorLayer:
    if isinstance(source, nn.Embedding):
        return TensorEmbedding.from_compact(form, source)
    rest = plain.rest() if isinstance(plain, TensorLinear) else None
    made = TensorLinear.from_compact(form, source, rest)
    made.origin = source.origin if isinstance(source, TensorLinear) else made.origin
    return made


def _restore(block: nn.Module, dense: nn.Module) -> None:
    """Give everything else the dtype, and the wish for gradients, that it had."""
    old = dict(dense.named_parameters()) | dict(dense.named_buffers())
    for path, tensor in [*block.named_parameters(), *block.named_buffers()]:
        if path in old and tuple(old[path].shape) == tuple(tensor.shape):
            tensor.data = tensor.data.to(old[path].dtype)
            tensor.requires_grad_(old[path].requires_grad)
    for layer in block.modules():
        if isinstance(layer, TensorLayer):
            for name, parameter in layer.named_parameters():
                if name != "bias":  # a frozen one stays frozen
                    parameter.requires_grad_(True)


def _inside(block: nn.Module, name: str, path: str) -> nn.Module:
    """A layer of a block that stands alone, by its path in the model."""
    return block.get_submodule(path[len(name) :].lstrip("."))


def _put(block: nn.Module, name: str, path: str, layer: nn.Module) -> nn.Module:
    """The block with another layer at a path; the layer itself where the block is no more."""
    inside = path[len(name) :].lstrip(".")
    if not inside:
        return layer
    parent, _, last = inside.rpartition(".")
    setattr(block.get_submodule(parent), last, layer)
    return block
