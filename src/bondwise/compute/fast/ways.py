"""All ways to compute a network that are worth measuring: trees, each in several layouts."""

from collections.abc import Hashable, Iterator
from dataclasses import replace
from functools import cache
from math import prod

from bondwise.compute.lower import ends, operands, program
from bondwise.compute.plan import Plan, einsum, planned
from bondwise.compute.search import ALL_TREES, Pair, every, search
from bondwise.compute.steps import BATCH, Program, squeezed
from bondwise.network.network import Network

BATCHES = (4, 256)  # that layouts are chosen for, and that programs are for
COPYING = (1.0, 0.0, 8.0)  # a copy as `layouts` has it, free, and dear
SEARCHED = (1, 16, 256, 4096)  # batches that trees are sought for, where they are not all listed
WASTE = 2  # multiplications of a row over dense's, or the least, that no speed makes up for
MOST = 40

Pairs = tuple[Pair, ...]


@cache
def programs(net: Network) -> tuple[Program, ...]:
    """All programs that are worth measuring, at most 40, the most promising ones first.

    Every tree of up to five cores, and good ones of more, without those that waste multiplications,
    each in the layouts that are cheapest where copies are free, as they are, and dear, for 4 rows
    and for 256. Of programs that differ only in how the weights of the path are made, one. First
    come those that need the fewest multiplications for one row, for 256, or along the path alone,
    as where its weights are kept.
    The weight made whole is not among them: dense is measured anyway.

    >>> from bondwise import lowrank
    >>> found = programs(lowrank(64, 64, 8))
    >>> [[step.kind for step in each.path] for each in found]
    [['linear', 'linear']]
    """
    found: dict[Hashable, Program] = {}
    for pairs in _promising(net):
        for batch in BATCHES:
            for copying in COPYING:
                made = program(*einsum(net, batch), pairs, copying).resized(BATCHES[0])
                found.setdefault(_key(made), made)
        if len(found) >= MOST:
            break
    return tuple(found.values())[:MOST]


def as_plan(net: Network, program: Program, batch: int, chunk: int | None = None) -> Plan:
    """A program of the network as a plan for a batch, so many rows at a time.

    >>> from bondwise import lowrank
    >>> net = lowrank(64, 64, 8)
    >>> as_plan(net, programs(net)[0], batch=32, chunk=16).macs
    32768
    """
    return planned(net, program.resized(batch), batch, "time", chunk)


def _key(made: Program) -> Hashable:
    """Its path, and the cores that each weight of it is made of."""
    count = len(made.steps) + 1
    members = [frozenset([k]) for k in range(count)]
    for step in made.steps:
        members.append(members[step.left] | members[step.right])
    steps = (replace(step, left=0, right=0, right_view=None, over=()) for step in made.path)
    return tuple(steps), tuple(members[step.right] for step in made.path), made.result


def _promising(net: Network) -> list[Pairs]:
    """Trees, those first that are nearest to the best of all by one measure."""
    costs = {pairs: _costs(net, pairs) for pairs in _trees(net)}
    for pairs in [pairs for pairs in costs if len(net.cores) in pairs[-1]]:
        if costs[pairs][-1] == prod(net.shape):  # the input meets the weight made whole
            del costs[pairs]
    least = [min(each) for each in zip(*costs.values(), strict=True)]
    most = WASTE * max([*least[-1:], prod(net.shape)])

    def far(pairs: Pairs) -> tuple[float, tuple[int, ...]]:
        return min(c / best for c, best in zip(costs[pairs], least, strict=True)), costs[pairs]

    return sorted((pairs for pairs in costs if costs[pairs][-1] <= most), key=far)


def _costs(net: Network, pairs: Pairs) -> tuple[int, int, int]:
    """Multiplications for one row, for 256, and of a row along the path alone."""
    inputs, output, sizes = einsum(net, 1)
    values = [frozenset(names) for names in operands(inputs, output, sizes)]
    last, weights, path = ends(inputs, output, pairs), 0, 0
    for at, (a, b) in enumerate(pairs):
        both = values[a] | values[b]
        macs = prod(sizes[name] for name in both)
        weights, path = (weights, path + macs) if BATCH in both else (weights + macs, path)
        values.append(frozenset(name for name in both if last[name] > at))
    return weights + path, weights + 256 * path, path


def _trees(net: Network) -> list[Pairs]:
    count = len(net.cores)
    if count < ALL_TREES:
        return [tuple(tree) for tree in every(count + 1)]
    found = list[list[Pair]]()
    for batch in SEARCHED:
        inputs, output, sizes = einsum(net, batch)
        values, left = operands(inputs, output, sizes), squeezed(output, sizes)
        found.append(search(values, left, sizes))
    found += _in_turn(count)
    return list(dict.fromkeys(map(tuple, found)))


def _in_turn(cores: int) -> Iterator[list[Pair]]:
    """The input meets one core after another, from either end."""
    for order in (range(cores), reversed(range(cores))):
        at, pairs = cores, list[Pair]()
        for offset, core in enumerate(order):
            pairs.append((core, at))
            at = cores + 1 + offset
        yield pairs
