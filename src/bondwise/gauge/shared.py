"""Low-rank weights that share a core, without its gauge."""

from collections.abc import Sequence

import torch
from torch import Tensor

from bondwise.compute.run import check_cores
from bondwise.errors import ShapeError
from bondwise.fit.metric import Metric
from bondwise.gauge.compact import Compact, GaugeForm, compact
from bondwise.network.network import Network, parse


def compact_shared(
    networks: Sequence[Network],
    cores: Sequence[Sequence[Tensor]],
    dtype: torch.dtype | None = None,
    scale: Tensor | Metric | None = None,
) -> list[Compact]:
    """Low-rank weights with one second core, ``[W1; W2; ..] = [U1; U2; ..] V``, without its gauge.

    The identity block lies in ``V``, so every result has the same tensors ``free[1]`` and
    ``pivots[1]``, its own ``free[0]``, and the form that `bondwise.TensorLinear` runs as it is
    stored. Together they store ``r (sum of outs + in - r)`` numbers.

    Raises:
        ShapeError: no network, one that is not low rank over the same inputs and rank, second
            cores that differ, or a rank above the number of inputs.
        FitError: a core holds values that are not finite, or the scale is none.

    >>> from bondwise import lowrank
    >>> V = torch.rand(2, 5)
    >>> q, k = compact_shared(
    ...     [lowrank(6, 5, 2), lowrank(3, 5, 2)], [[torch.rand(6, 2), V], [torch.rand(3, 2), V]]
    ... )
    >>> k.free[1] is q.free[1], k.free[0].shape
    (True, torch.Size([3, 2]))
    """
    bonds = [_low_rank(net) for net in networks]
    for net, own in zip(networks, cores, strict=True):
        check_cores(net, own)
    if not bonds:
        raise ShapeError("No networks came to share a second core; give one or more.")
    second, rank = cores[0][1], networks[0].bonds[bonds[0]]
    inp = networks[0].shape[1]
    for at, (net, (_, other)) in enumerate(zip(networks, cores, strict=True)):
        if net.shape[1] != inp or other.numel() != second.numel():
            raise ShapeError(
                f"Network {at}, '{net}' of shape {net.shape} and bonds {net.bonds}, came to share "
                f"a second core of {inp} inputs and rank {rank}; share equal ones."
            )
        if not torch.equal(other.reshape(rank, inp), second.reshape(rank, inp)):
            raise ShapeError(f"Second core {at} came with other values than the first; share one.")
    outs = [net.shape[0] for net in networks]
    stacked = parse("o a, a i -> (o) (i)", o=sum(outs), a=rank, i=inp)
    first = torch.cat([own[0].reshape(-1, rank) for own in cores])
    both = compact(
        stacked, [first, second.reshape(rank, inp)], dtype, scale, GaugeForm((None, "a"))
    )
    return [
        Compact(net, GaugeForm((None, bond)), (part.contiguous(), both.free[1]), both.pivots)
        for net, bond, part in zip(networks, bonds, both.free[0].split(outs), strict=True)
    ]


def _low_rank(net: Network) -> str:
    """The bond of ``rows a, a cols``."""
    bonds = list(net.bonds)
    rows, cols = ([index.name for index in side] for side in (net.rows, net.cols))
    if len(bonds) != 1 or [list(n) for n in net.names] != [[*rows, *bonds], [*bonds, *cols]]:
        raise ShapeError(f"'{net}' came to share its second core; give low rank, 'o a, a i'.")
    return bonds[0]
