"""Networks for weights that get one input, fitted in its metric, in plain form and float32."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

import torch
from torch import Tensor, nn

from bondwise.choose.candidates import Candidate, Group
from bondwise.choose.kinds.columns import low_rank_with_columns
from bondwise.fit.kernels.groups import fit_groups
from bondwise.fit.metric import Kronecker, Metric, held_out_shrinkage
from bondwise.fit.whitened import metric_norm
from bondwise.layers.convolution import TensorConv
from bondwise.layers.entries import Columns, columns
from bondwise.layers.hosts.registry import built
from bondwise.layers.module import TensorLayer
from bondwise.layers.networks import network
from bondwise.layers.terms import Term
from bondwise.network.network import Network

NEAR = (0.25, 1.0, 4.0)  # shrinkages to try, times what the number of tokens suggests


@dataclass(frozen=True, eq=False)
class New:
    """A layer in the place of a dense one.

    Attributes:
        layer: with its network in plain form, so that it can be trained.
        error: relative, on the tokens that were fitted on.
        held_out: the same on others.
    """

    layer: TensorLayer
    error: float
    held_out: float | None


def fit_group(
    group: Group, picks: Mapping[str, Candidate], layers: Mapping[str, nn.Module], seed: int
) -> dict[str, New]:
    """New layers for those weights of a group that were picked, by name.

    Args:
        group: the weights and what their inputs look like, its shrinkage chosen (`shrunk`).
        picks: what becomes of each weight.
        layers: the dense layers, by name.
        seed: of the starts of fits that have random ones.
    """
    new: dict[str, New] = {}
    for name in group.weights:
        net = picks[name].network if name in picks else None
        if net is None:
            continue
        kept = [term for term in picks[name].terms if isinstance(term, Columns)]
        if kept:
            new[name] = _beside_columns(name, net, kept[0].count, group, layers[name])
        else:
            new[name] = _alone(name, net, group, layers[name], seed)
    return new


def shrunk(group: Group, picks: Mapping[str, Candidate]) -> Group:
    """The group with the shrinkage, near what its tokens suggest, that is best on other tokens.

    Tried on the largest weight, at the rank that was chosen for it; one for all weights.
    """
    metric, held_out = group.metric, group.held_out  # a convolution has more patches than numbers
    name = max(picks.keys() & group.weights, key=lambda w: (group.weights[w].numel(), w))
    net = picks[name].network
    if (
        not isinstance(metric, Metric)
        or not isinstance(held_out, Metric)
        or net is None
        or not net.bonds
        or group.moves
    ):
        return group
    weight = group.weights[name].float()
    near = [min(1.0, factor * metric.shrinkage) for factor in NEAR]
    plain = replace(held_out, shrinkage=0.0)
    rank = min(max(net.bonds.values()), *weight.shape)
    return replace(group, metric=held_out_shrinkage(weight, metric, plain, rank, near))


def _alone(name: str, net: Network, group: Group, layer: nn.Module, seed: int) -> New:
    """One network of one weight."""
    held_out = _unshrunk(group.held_out)  # what is measured in is never shrunk
    weight = group.weights[name]
    wide = weight.to(torch.promote_types(weight.dtype, torch.float32))
    done = fit_groups(wide, net, group.metric, seed=seed, held_out=held_out)
    made = _plain(done.network, done.cores, layer)
    if isinstance(made, TensorConv) and name in group.moves:
        made.size = group.moves[name].size
    return New(made, done.error, done.held_out)


def _unshrunk(metric: Any) -> Any:
    if isinstance(metric, tuple):
        return tuple(_unshrunk(own) for own in cast(tuple[Any, ...], metric))
    if isinstance(metric, Kronecker):
        return replace(metric, channels=_unshrunk(metric.channels))
    return replace(metric, shrinkage=0.0) if isinstance(metric, Metric) else metric


def _beside_columns(name: str, net: Network, count: int, group: Group, layer: nn.Module) -> New:
    """Low rank with some columns dense beside it, both fitted at once."""
    weight, moments = group.weights[name].double(), group.moments()
    (rank,) = net.bonds.values()
    best = low_rank_with_columns(weight, moments[0], rank, count)
    cores = _balanced(best.left, best.right)
    beside = columns(best.positions, best.values.float(), net.shape)
    made = _plain(net, [core.float() for core in cores], layer, [beside])
    return New(made, *_errors(weight, best.dense(), moments))


def _balanced(left: Tensor, right: Tensor) -> tuple[Tensor, Tensor]:
    """The same product, with singular values split evenly, as training likes them."""
    rotation, scale, right = torch.linalg.svd(right, full_matrices=False)
    root = scale.sqrt()
    return left @ rotation * root, root[:, None] * right


def _errors(weight: Tensor, new: Tensor, moments: tuple[Tensor, Tensor]) -> tuple[float, float]:
    """Relative errors on the tokens that were fitted on, and on held-out ones."""
    fitting, held_out = (
        metric_norm(weight - new, m) / (metric_norm(weight, m) or 1.0) for m in moments
    )
    return fitting, held_out


def _plain(
    net: Network, cores: Sequence[Tensor], layer: nn.Module, beside: Sequence[Term] = ()
) -> TensorLayer:
    return built(layer, [network(net, cores), *beside])
