"""Which core to make the centre of the gauge, so that the fewest numbers are left."""

from collections.abc import Sequence
from functools import cache
from itertools import chain, combinations

from bondwise.gauge.bonds import Branch, Edge, branches, edges_of, forest, hyperedges, unfolding
from bondwise.network.network import Network

Pins = tuple[str | None, ...]


@cache
def spanning_trees(net: Network) -> dict[Pins, tuple[Branch, ...]]:
    """The branches that save most, leaves first, by the bonds that each core is pinned on.

    A spanning tree over the cores, the bonds that save most first; one way for each centre that
    leaves most saved. Every other core gets an identity block on the bond to its parent, if the
    rest of the core is at least as large.
    """
    count = len(net.cores)
    tree = _heaviest_tree(net)
    pieces = [_best(net, tree, piece) for piece in _pieces(tree, count)]
    first = [ways[0] for ways in pieces]
    found: dict[Pins, tuple[Branch, ...]] = {}
    for at, ways in enumerate(pieces):
        for way in ways:
            chosen = tuple(chain(*first[:at], way, *first[at + 1 :]))
            found.setdefault(_pins(count, chosen), chosen)
    return found


def _heaviest_tree(net: Network) -> list[Edge]:
    """The spanning forest whose edges save most."""
    shared = [
        Edge(pair, (bond,))
        for bond in hyperedges(net)
        for pair in combinations(net.places[bond], 2)
    ]

    def worth(edge: Edge) -> int:
        one, two = edge.cores
        ways = Branch(one, two, edge.bonds), Branch(two, one, edge.bonds)
        return max(_pin(net, way)[1] for way in ways)

    return forest(sorted([*edges_of(net), *shared], key=worth, reverse=True), len(net.cores))


def _pieces(tree: Sequence[Edge], count: int) -> list[list[int]]:
    """The cores of each piece that no bond joins to another."""
    pieces: list[list[int]] = []
    left = list(range(count))
    while left:
        piece = sorted({left[0], *(branch.core for branch in branches(tree, left[0]))})
        pieces.append(piece)
        left = [k for k in left if k not in piece]
    return pieces


def _best(net: Network, tree: Sequence[Edge], piece: Sequence[int]) -> list[tuple[Branch, ...]]:
    """The branches of a piece for each of its centres that leaves most saved."""
    ways = [[_pin(net, branch) for branch in branches(tree, center)] for center in piece]
    saved = [sum(each for _, each in way) for way in ways]
    return [
        tuple(branch for branch, each in way if each)
        for way, total in zip(ways, saved, strict=True)
        if total == max(saved)
    ]


def _pins(count: int, chosen: Sequence[Branch]) -> Pins:
    pins: list[str | None] = [None] * count
    for branch in chosen:
        pins[branch.core] = " ".join(branch.bonds)
    return tuple(pins)


def _pin(net: Network, branch: Branch) -> tuple[Branch, int]:
    """The branch on as many of its bonds as save most, and the numbers saved."""
    if len(net.places[branch.bonds[0]]) > 2:
        return branch, net.sizes[branch.bonds[0]]
    choices = [branch, *(Branch(branch.core, branch.parent, (bond,)) for bond in branch.bonds)]
    return max(((choice, _saved(net, choice)) for choice in choices), key=lambda pair: pair[1])


def _saved(net: Network, branch: Branch) -> int:
    blocks, rest, bond = unfolding(net, branch, branch.core).shape
    return blocks * bond**2 if rest >= bond else 0
