"""How weights are stored: the smallest rounding error in so many bytes; a core that they share."""

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor

from bondwise.compute.run import check_cores, dense
from bondwise.errors import BudgetError, ShapeError
from bondwise.fit.metric import Metric
from bondwise.fit.whitened import metric_norm
from bondwise.gauge.compact import Compact, GaugeForm, compact, gauge_forms
from bondwise.gauge.pivots import packed
from bondwise.gauge.rounding import moment_of
from bondwise.network.network import Network, parse


@torch.no_grad()
def choose_storage(
    net: Network,
    cores: Sequence[Tensor],
    dtype: torch.dtype | Sequence[torch.dtype] = torch.bfloat16,
    scale: Tensor | Metric | None = None,
    budget: int | None = None,
) -> Compact:
    """Of all ways to store a weight in at most ``budget`` bytes the one that rounds it least.

    Without its gauge, in each of the `bondwise.gauge.compact.gauge_forms`, and with it (the plain
    cores, ``form.pinned`` all None), in each dtype. Errors are measured (`rounding_error`); among
    equals the fewest bytes win.

    Args:
        net: the network.
        cores: one tensor per core, in core-axis order, in the precision in which they were fitted.
        dtype: one or several to choose from.
        scale: how errors are weighed, as `bondwise.gauge.compact.compact` takes it.
        budget: bytes of numbers and pivots; by default what the smallest way takes.

    Raises:
        BudgetError: no way fits the budget; the message names the smallest.
        ShapeError: cores that are not the network's.
        FitError: cores that are not finite, or a scale that is none.

    >>> from bondwise import lowrank
    >>> cores = [torch.rand(6, 2), torch.rand(2, 4)]
    >>> tight = choose_storage(lowrank(6, 4, 2), cores)                       # 16 numbers, 1 byte
    >>> roomy = choose_storage(lowrank(6, 4, 2), cores, budget=40)            # all 20 fit
    >>> any(tight.form.pinned), tight.bytes, roomy.bytes <= 40
    (True, 33, True)
    """
    dtypes = [dtype] if isinstance(dtype, torch.dtype) else list(dtype)
    forms = [*gauge_forms(net), GaugeForm((None,) * len(net.cores))]
    ways = [compact(net, cores, d, scale, form) for d in dtypes for form in dict.fromkeys(forms)]
    smallest = min(way.bytes for way in ways)
    if budget is not None and budget < smallest:
        raise BudgetError(
            f"A budget of {budget} bytes came for '{net}'; the smallest way takes {smallest}."
        )
    fit = [way for way in ways if way.bytes <= (budget or smallest)]
    error = partial(rounding_error, cores=cores, scale=scale)
    return min(fit, key=lambda way: (error(way), way.bytes))


@torch.no_grad()
def rounding_error(
    stored: Compact, cores: Sequence[Tensor], scale: Tensor | Metric | None = None
) -> float:
    """How far a stored weight is from its cores: ``||(W - W~) L|| / ||W L||``, ``C = L L^T``.

    Measured in float64; 0 where the cores are all zero in the metric.

    >>> from bondwise import lowrank
    >>> cores = [torch.rand(6, 2), torch.rand(2, 4)]
    >>> rounding_error(compact(lowrank(6, 4, 2), cores, torch.float64), cores) < 1e-12
    True
    """
    moment = moment_of(scale, stored.network.shape[1])
    wanted = dense(stored.network, [core.double() for core in cores])
    missed = wanted - dense(stored.network, [core.double() for core in stored.cores()])
    if moment is None:
        return float(missed.norm() / (wanted.norm() or 1.0))
    return metric_norm(missed, moment) / (metric_norm(wanted, moment) or 1.0)


def compact_shared(
    networks: Sequence[Network],
    cores: Sequence[Sequence[Tensor]],
    dtype: torch.dtype | None = None,
    scale: Tensor | Metric | None = None,
) -> list[Compact]:
    """Low-rank weights with one second core, ``[W1; W2; ..] = [U1; U2; ..] V``, without its gauge.

    The identity block lies in ``V``, so every result has the same tensors ``free[1]`` and
    ``pivots[1]``, its own ``free[0]``, and the form that `bondwise.TensorLinear` runs as it is
    stored. Together they store `shared_numbers`.

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


def shared_numbers(outs: Sequence[int], inp: int, rank: int) -> int:
    """Numbers that low-rank weights with one second core store: ``r (sum of outs + in - r)``.

    >>> shared_numbers([6, 3], inp=5, rank=2)
    24
    """
    return rank * (sum(outs) + inp - rank)


def shared_bits(inp: int, rank: int) -> int:
    """Bits of the one set of pivots that they store.

    >>> shared_bits(inp=576, rank=100)
    576
    """
    length, dtype = packed(rank, inp)
    return length * dtype.itemsize * 8


def _low_rank(net: Network) -> str:
    """The bond of ``rows a, a cols``."""
    bonds = list(net.bonds)
    rows, cols = ([index.name for index in side] for side in (net.rows, net.cols))
    if len(bonds) != 1 or [list(n) for n in net.names] != [[*rows, *bonds], [*bonds, *cols]]:
        raise ShapeError(f"'{net}' came to share its second core; give low rank, 'o a, a i'.")
    return bonds[0]
