"""The ways to look rows up: in the whole table, or in cores that were cut and joined beforehand."""

from collections.abc import Callable, Iterator, Sequence
from functools import cache, partial
from itertools import combinations
from math import prod

import torch.nn.functional as F
from torch import Tensor

from bondwise.compute.fast.ready import Ready, Way
from bondwise.compute.lookup import beyond, looked, planned, tables
from bondwise.compute.lower import program
from bondwise.compute.product import contract
from bondwise.compute.steps import BATCH
from bondwise.network.network import Network

TRIED = 60  # ways to join cores that are looked at
LISTED = 4  # of which are offered
FEW, TIMES = 2**24, 64  # numbers that are never too many, and times those of the network
Groups = tuple[tuple[int, ...], ...]
"""Positions of cores that are joined."""


def largest(net: Network) -> int:
    """Numbers that may be kept for a network: a table of 10^8 rows is not even made to be measured.

    >>> from bondwise import lowrank
    >>> largest(lowrank(1000, 64, 8)), largest(lowrank(10**8, 640, 1)) < 10**8 * 640
    (64000, True)
    """
    return min(prod(net.shape), max(FEW, TIMES * net.parameters))


def table_way(weight: Callable[[], Tensor]) -> Way:
    """Rows of the whole table, (entries x width).

    >>> import torch
    >>> ready = table_way(lambda: torch.eye(3)).make()
    >>> ready.run(torch.tensor([2]), None)
    tensor([[0., 0., 1.]])
    """

    def make() -> Ready:
        own = weight().contiguous()

        def run(ids: Tensor, bias: Tensor | None) -> Tensor:  # noqa: ARG001
            try:
                return F.embedding(ids, own)
            except IndexError:
                raise beyond(ids, len(own)) from None

        return Ready("dense", (own,), run)

    return Way("dense", make)


def lookup_ways(net: Network, cores: Callable[[], Sequence[Tensor]]) -> Iterator[Way]:
    """Rows from cores that are cut into rows beforehand, some of them joined.

    Args:
        net: of the table; its cores joined to one are not among the ways.
        cores: gives them, whole, in core-axis order.

    >>> from bondwise import mpo
    >>> [way.name for way in lookup_ways(mpo((8, 8, 8), (4, 4, 4), 6), list)]
    ['rows of (0 1) 2', 'rows of 0 1 2']
    """
    for groups in joins(net):
        words = (" ".join(map(str, some)) for some in groups)
        name = "rows of " + " ".join(f"({w})" if " " in w else w for w in words)
        yield Way(name, partial(_laid, net, groups, cores, name))


def _laid(net: Network, groups: Groups, cores: Callable[[], Sequence[Tensor]], name: str) -> Ready:
    numbers, plan = cores(), planned(joined(net, groups))
    own = [_product(net, some, numbers) for some in groups]
    held = [table.contiguous() for table in tables(plan, own)]
    return Ready(name, tuple(held), lambda ids, bias: looked(plan, held, ids))  # noqa: ARG005


@cache
def joins(net: Network) -> tuple[Groups, ...]:
    """Which cores to join along their bonds, for few multiplications and fewer numbers than dense.

    Of those that no other beats in both, the four of fewest multiplications.
    """
    start: Groups = tuple((k,) for k in range(len(net.cores)))
    found: dict[Groups, tuple[int, int]] = {start: _cost(net, start)}
    waiting: list[Groups] = [start]
    most = largest(net)
    while waiting and len(found) < TRIED:
        for after in _shorter(net, waiting.pop(0)):
            if after not in found and (cost := _cost(net, after))[1] < most:
                found[after] = cost
                waiting.append(after)
    best, least = list[Groups](), max(most, net.parameters + 1)
    for groups in sorted(found, key=lambda g: (found[g], len(g))):
        if found[groups][1] < least:
            best.append(groups)
            least = found[groups][1]
    return tuple(best[:LISTED])


def _shorter(net: Network, groups: Groups) -> Iterator[Groups]:
    """With two of them joined, which share an index; never all, nor to what has no index left."""
    for one, two in combinations(groups if len(groups) > 2 else (), 2):
        share = [{n for k in some for n in net.names[k]} for some in (one, two)]
        both = tuple(sorted(one + two))
        if share[0] & share[1] and _names(net, both):
            yield tuple(sorted([*(some for some in groups if some not in (one, two)), both]))


def _cost(net: Network, groups: Groups) -> tuple[int, int]:
    """Multiplications for some ids, and numbers that are kept."""
    own = joined(net, groups)
    return planned(own).program.macs, own.parameters


def _names(net: Network, some: Sequence[int]) -> tuple[str, ...]:
    """The indices of some cores' product, in order of first use."""
    inside = dict.fromkeys(name for k in some for name in net.names[k])
    others = {name for k, names in enumerate(net.names) if k not in some for name in names}
    return tuple(name for name in inside if name in net.open or name in others)


def joined(net: Network, groups: Groups) -> Network:
    """The network of some cores as one each."""
    indices = {index.name: index for core in net.cores for index in core}
    cores = tuple(
        net.cores[some[0]] if len(some) == 1 else tuple(indices[name] for name in _names(net, some))
        for some in groups
    )
    return Network(cores, net.rows, net.cols)


def _product(net: Network, some: Sequence[int], cores: Sequence[Tensor]) -> Tensor:
    if len(some) == 1:
        return cores[some[0]]
    names = _names(net, some)
    made = program([net.names[k] for k in some], names, {**net.sizes, BATCH: 1})
    return contract(made, [cores[k] for k in some]).reshape([net.sizes[name] for name in names])
