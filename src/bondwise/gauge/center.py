"""From which core a gauge can be taken out so that the fewest numbers are left."""

from collections.abc import Sequence
from functools import cache
from itertools import chain, combinations

from bondwise.gauge.bonds import Joint, Push, forest, hyperedges, joints, pushes, unfolding
from bondwise.network.network import Network


@cache
def rootings(net: Network) -> dict[tuple[str | None, ...], tuple[Push, ...]]:
    """The pushes that save most, leaves first, by the bonds that each core is pinned on.

    A spanning tree over the cores, the bonds that save most first; one way for each root that
    leaves most saved. Every other core is pushed to its parent, if its rest is at least as large as
    the bond between them.
    """
    count = len(net.cores)
    shared = [
        Joint(pair, (bond,))
        for bond in hyperedges(net)
        for pair in combinations(net.places[bond], 2)
    ]

    def worth(edge: Joint) -> int:
        one, two = edge.cores
        return max(
            _pin(net, Push(one, two, edge.bonds))[1], _pin(net, Push(two, one, edge.bonds))[1]
        )

    tree = forest(sorted([*joints(net), *shared], key=worth, reverse=True), count)
    choices: list[list[tuple[Push, ...]]] = []  # of each piece that no bond joins to another
    left = list(range(count))
    while left:
        piece = sorted({left[0], *(push.core for push in pushes(tree, left[0]))})
        rooted = [[_pin(net, push) for push in pushes(tree, root)] for root in piece]
        saved = [sum(each for _, each in pins) for pins in rooted]
        choices.append(
            [
                tuple(push for push, each in pins if each)
                for pins, total in zip(rooted, saved, strict=True)
                if total == max(saved)
            ]
        )
        left = [k for k in left if k not in piece]
    first = [roots[0] for roots in choices]
    found: dict[tuple[str | None, ...], tuple[Push, ...]] = {}
    for at, roots in enumerate(choices):
        for root in roots:
            pushed = tuple(chain(*first[:at], root, *first[at + 1 :]))
            found.setdefault(_pins(count, pushed), pushed)
    return found


def _pins(count: int, pushed: Sequence[Push]) -> tuple[str | None, ...]:
    pins: list[str | None] = [None] * count
    for push in pushed:
        pins[push.core] = " ".join(push.bonds)
    return tuple(pins)


def _pin(net: Network, push: Push) -> tuple[Push, int]:
    """The push on as many of its bonds as save most, and the numbers saved."""
    if len(net.places[push.bonds[0]]) > 2:
        return push, net.sizes[push.bonds[0]]
    choices = [push, *(Push(push.core, push.parent, (bond,)) for bond in push.bonds)]
    return max(((choice, _saved(net, choice)) for choice in choices), key=lambda pair: pair[1])


def _saved(net: Network, push: Push) -> int:
    blocks, rest, bond = unfolding(net, push, push.core).shape
    return blocks * bond**2 if rest >= bond else 0
