"""Fits group by group: the blocks on the diagonal of a weight, each in the metric of its inputs."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from bondwise.errors import FitError, ShapeError
from bondwise.fit.fit import Fit, fit
from bondwise.network.groups import group_count, group_indices, one_group
from bondwise.network.network import Network

GroupMetric = Any  # a metric, or a sequence with one for each group


def fit_groups(
    matrix: Tensor,
    net: Network,
    metric: GroupMetric = None,
    *,
    held_out: Any = None,
    **options: Any,
) -> Fit:
    """`fit` for every group of a weight, with one network for all.

    Args:
        matrix: (groups * out, in), the matrices of the groups below each other.
        net: with an index of the groups that is open on both sides; without one there is one group.
        metric: of all groups, or a sequence with that of each.
        held_out: the same, of other inputs.
        options: of `fit`.

    Raises:
        ShapeError: a network of another shape.
        FitError: as `fit`, or metrics of another number than there are groups.
    """
    groups = group_count(net)
    if groups == 1:
        return fit(matrix, net, metric, held_out=held_out, **options)
    if len(matrix) % groups or net.shape != (len(matrix), groups * matrix.shape[1]):
        raise ShapeError(
            f"A weight of {groups} groups of shape {tuple(matrix.shape)} came for a network of "
            f"shape {net.shape}; write one of {(len(matrix), groups * matrix.shape[1])}."
        )
    blocks = matrix.reshape(groups, -1, matrix.shape[1])
    alone = one_group(net)
    if alone is None:
        return _together(blocks, net, metric, held_out, options)
    metrics, others = each_group(metric, groups), each_group(held_out, groups)
    found = [
        fit(block, alone, own, held_out=other, **options)
        for block, own, other in zip(blocks, metrics, others, strict=True)
    ]
    return _stacked(blocks, net, found)


def _stacked(blocks: Tensor, net: Network, found: Sequence[Fit]) -> Fit:
    """The fits of all groups as one, whose error is that of all, weighed by their norms."""
    ranks = {b: max(each.network.bonds[b] for each in found) for b in found[0].network.bonds}
    shapes = found[0].network.resize(**ranks).core_shapes
    (name,) = group_indices(net)  # goes where the network has it
    net = net.resize(**ranks)
    cores: list[Tensor] = []
    for k, (names, shape) in enumerate(zip(net.names, shapes, strict=True)):
        parts = [_padded(each.cores[k], shape) for each in found]
        cores.append(torch.stack(parts, names.index(name)))
    norms = torch.tensor([float(block.double().norm()) for block in blocks])

    def total(errors: Sequence[float]) -> float:
        norm = float(norms.norm())
        return float((norms * torch.tensor(errors)).norm()) / norm if norm else 0.0

    others = [each.held_out for each in found if each.held_out is not None]
    return replace(
        found[0],
        network=net,
        cores=tuple(cores),
        error=total([each.error for each in found]),
        held_out=total(others) if others else None,
        seconds=sum(each.seconds for each in found),
        sweeps=(),
    )


def _padded(core: Tensor, shape: Sequence[int]) -> Tensor:
    """A core with zeros up to a shape: a tolerance gave another group a larger rank."""
    if tuple(core.shape) == tuple(shape):
        return core
    made = core.new_zeros(tuple(shape))
    made[tuple(slice(n) for n in core.shape)] = core
    return made


def each_group(metric: Any, groups: int) -> list[Any]:
    """The metric of each group: one for all, or one for each.

    Raises:
        FitError: another number of metrics than groups.
    """
    several = isinstance(metric, Sequence)
    found = list(metric) if several else [metric] * groups
    if len(found) != groups:
        raise FitError(
            f"{len(found)} metrics came for {groups} groups; write one, or one for each."
        )
    return found


def _together(blocks: Tensor, net: Network, metric: Any, held_out: Any, options: Any) -> Fit:
    """A network with cores that several groups share: all groups at once."""
    whole = torch.block_diag(*blocks)
    metrics = [_block(own, len(blocks)) for own in (metric, held_out)]
    return fit(whole, net, metrics[0], held_out=metrics[1], **options)


def _block(metric: Any, groups: int) -> Tensor | None:
    if metric is None:
        return None
    moments = [m if isinstance(m, Tensor) else m.shrunk() for m in each_group(metric, groups)]
    return torch.block_diag(*moments)
