"""Networks without loops: truncated SVDs from the leaves inwards, then sweeps over pairs of cores.

The first pass is quasi-optimal and its error is exact, because each cut is orthogonal to those
before (TT-SVD, Oseledets 2011; hierarchical SVD, Grasedyck 2010; sequentially truncated HOSVD,
Vannieuwenhoven et al. 2012). Then every pair of neighbours in turn is replaced by the best pair
given all other cores, which never raises the error; on Tucker's star this is HOOI (De Lathauwer et
al. 2000), on a chain two-site DMRG.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise, product
from math import ceil, prod

import torch
from torch import Tensor

from bondwise.fit.named import Named, contract
from bondwise.fit.split import kept_rank, split, tails
from bondwise.fit.target import BLOCK, Target, core_names
from bondwise.network.network import Network
from bondwise.network.ranks import capped

_ROUNDING = 1e-14  # a relative squared error that is rounding in float64
_PROGRESS = 1e-6  # of the squared error in a sweep: below it, sweeping stops
_GRID = 8  # steps per factor of 2 in the error that is allowed per bond

Edge = tuple[int, int]


@dataclass(frozen=True)
class Tree:
    """Cores joined without loops; parallel bonds are one edge, loose parts have edges of rank 1."""

    names: tuple[tuple[str, ...], ...]
    edges: dict[Edge, tuple[str, ...]]

    def own(self, core: int) -> tuple[str, ...]:
        """Open indices of a core (each sits on one)."""
        bonds = {bond for group in self.edges.values() for bond in group}
        return tuple(name for name in self.names[core] if name not in bonds and name != BLOCK)

    def neighbours(self, core: int) -> list[int]:
        """Cores that share an edge with this one."""
        return [one + two - core for one, two in self.edges if core in (one, two)]

    def axes(self, core: int) -> tuple[str, ...]:
        """Axes of a core while edges are whole: slices, open indices, edges."""
        return (
            BLOCK,
            *self.own(core),
            *(edge_name(core, other) for other in self.neighbours(core)),
        )

    def rank(self, edge: Edge, sizes: dict[str, int]) -> int:
        """Rank of an edge whose bonds have the given sizes."""
        return prod(sizes[bond] for bond in self.edges[edge])

    @property
    def root(self) -> int:
        """The core with most neighbours, the last of them."""
        return max(range(len(self.names)), key=lambda core: (len(self.neighbours(core)), core))

    def beyond(self, core: int, parent: int) -> list[int]:
        """The cores on this core's side of the edge to ``parent``."""
        return [core] + [
            far
            for child in self.neighbours(core)
            if child != parent
            for far in self.beyond(child, core)
        ]


def tree_of(net: Network, goal: Target) -> Tree | None:
    """The network as a tree, or None where it has loops, or an index on too many cores."""
    names = core_names(net, goal)
    edges: dict[Edge, tuple[str, ...]] = {}
    for name in {name: None for core in names for name in core if name != BLOCK}:
        holders = [k for k, core in enumerate(names) if name in core]
        if len(holders) != (1 if name in net.open else 2):
            return None
        if len(holders) == 2:
            edge = (holders[0], holders[1])
            edges[edge] = (*edges.get(edge, ()), name)
    part = list(range(len(names)))
    for one, two in edges:
        if part[one] == part[two]:
            return None
        part = [part[one] if label == part[two] else label for label in part]
    firsts = [part.index(label) for label in dict.fromkeys(part)]
    edges |= dict.fromkeys(pairwise(firsts), ())
    return Tree(tuple(names), dict(sorted(edges.items())))


@torch.no_grad()
def fit_tree(tree: Tree, goal: Target, sizes: dict[str, int]) -> list[Named]:
    """The parts of a tree whose bonds have the given sizes."""
    ranks = {edge_name(*edge): tree.rank(edge, sizes) for edge in tree.edges}
    parts, error = from_leaves(tree, goal, ranks)
    if len(tree.edges) > 1:
        parts = _refine(tree, goal, ranks, parts, error * error)
    return [unfold(tree, core, part, sizes) for core, part in enumerate(parts)]


def from_leaves(tree: Tree, goal: Target, ranks: dict[str, int]) -> tuple[list[Named], float]:
    """One pass of truncated SVDs and its exact absolute error; all but the root are isometries."""
    rest, dropped = goal.values, 0.0
    parts: dict[int, Named] = {}
    for core, parent in _inwards(tree, tree.root, -1):
        edge = edge_name(core, parent)
        rows = [name for name in tree.axes(core) if name in rest.names and name != BLOCK]
        cols = [name for name in rest.names if name not in rows and name != BLOCK]
        shape = dict(zip(rest.names, rest.tensor.shape, strict=True))
        cut = split(rest.matrix([BLOCK], rows, cols), ranks[edge])
        dropped += cut.error**2
        left = cut.left.reshape(-1, *(shape[name] for name in rows), cut.rank)
        parts[core] = Named(left, (BLOCK, *rows, edge))
        right = cut.right.reshape(-1, cut.rank, *(shape[name] for name in cols))
        rest = Named(right, (BLOCK, edge, *cols))
    parts[tree.root] = rest
    return [parts[core] for core in range(len(tree.names))], dropped**0.5


def _refine(
    tree: Tree, goal: Target, ranks: dict[str, int], parts: list[Named], dropped: float
) -> list[Named]:
    """Sweeps over pairs of neighbours until they no longer gain."""
    total = float(goal.values.tensor.square().sum())
    for _ in range(_sweeps(goal)):
        if dropped <= _ROUNDING * total:
            break
        before = dropped
        for left, right in _tour(tree, tree.root, -1):
            dropped = _update(goal, ranks, parts, left, right)
        if before - dropped <= _PROGRESS * before:
            break
    return parts


def _update(
    goal: Target, ranks: dict[str, int], parts: list[Named], left: int, right: int
) -> float:
    """The best pair of cores given the others, ``left`` becoming an isometry; the squared error."""
    edge = edge_name(left, right)
    rows = [name for name in parts[left].names if name not in (edge, BLOCK)]
    cols = [name for name in parts[right].names if name not in (edge, BLOCK)]
    others = [part for core, part in enumerate(parts) if core not in (left, right)]
    pair = Named(contract([goal.values, *others], [BLOCK, *rows, *cols]), (BLOCK, *rows, *cols))
    shape = dict(zip(pair.names, pair.tensor.shape, strict=True))
    cut = split(pair.matrix([BLOCK], rows, cols), ranks[edge])
    parts[left] = Named(
        cut.left.reshape(-1, *(shape[name] for name in rows), cut.rank), (BLOCK, *rows, edge)
    )
    parts[right] = Named(
        cut.right.reshape(-1, cut.rank, *(shape[name] for name in cols)), (BLOCK, edge, *cols)
    )
    total = goal.values.tensor.square().sum()
    return max(0.0, float(total - cut.right.square().sum()))


def smaller_trees(tree: Tree, goal: Target, net: Network, tol: float) -> Iterator[Network]:
    """Networks of growing ranks, none above those of ``net``, of which the last is ``net`` itself.

    Every bond drops at most the same absolute error, from the whole of ``tol`` (which one bond may
    use) down to nothing; at ``tol / sqrt(bonds)`` the sum of all is sure to be allowed.
    """
    spectra = {
        edge: tails(_spectrum(tree, goal, *edge)) for edge, bonds in tree.edges.items() if bonds
    }
    before = None
    for step in range(12 * _GRID):
        allowed = tol * 2 ** (-step / _GRID)
        sizes = {
            bond: size
            for edge, dropped in spectra.items()
            for bond, size in shared(
                kept_rank(dropped, len(dropped) - 1, allowed), tree.edges[edge], net
            ).items()
        }
        smaller = capped(net.resize(**sizes))
        if smaller != before:
            yield smaller
        before = smaller
    if before != net:
        yield net


def _spectrum(tree: Tree, goal: Target, one: int, two: int) -> Tensor:
    """Singular values of the target across an edge."""
    rows = [name for core in tree.beyond(one, two) for name in tree.own(core)]
    cols = [name for name in goal.values.names if name not in rows and name != BLOCK]
    return torch.linalg.svdvals(goal.values.matrix([BLOCK], rows, cols))


def shared(rank: int, bonds: tuple[str, ...], net: Network) -> dict[str, int]:
    """Sizes of parallel bonds whose product reaches a rank: the smallest, then the most even."""
    limits = [net.bonds[bond] for bond in bonds]
    choices = (
        (*some, ceil(rank / prod(some)))
        for some in product(*(range(1, n + 1) for n in limits[:-1]))
    )
    fitting = [sizes for sizes in choices if sizes[-1] <= limits[-1]]
    best = min(fitting, key=lambda sizes: (prod(sizes), max(sizes)), default=tuple(limits))
    return dict(zip(bonds, best, strict=True))


def _inwards(tree: Tree, core: int, parent: int) -> Iterator[Edge]:
    """(core, parent) of all cores but the root, children first."""
    for child in tree.neighbours(core):
        if child != parent:
            yield from _inwards(tree, child, core)
            yield child, core


def _tour(tree: Tree, core: int, parent: int) -> Iterator[Edge]:
    """Pairs, in the order in which the one core that is no isometry moves out and back."""
    for child in tree.neighbours(core):
        if child == parent:
            continue
        if len(tree.neighbours(child)) > 1:
            yield core, child
            yield from _tour(tree, child, core)
        yield child, core


def unfold(tree: Tree, core: int, part: Named, sizes: dict[str, int]) -> Named:
    """A part with its edges split into bonds, filled up with zeros to their sizes."""
    tensor = Named(part.tensor, part.names).to(*tree.axes(core))
    names: list[str] = list(tree.axes(core)[: 1 + len(tree.own(core))])
    shape = list(tensor.shape[: len(names)])
    for other in tree.neighbours(core):
        bonds = tree.edges[min(core, other), max(core, other)]
        axis = len(shape)
        missing = prod(sizes[bond] for bond in bonds) - tensor.shape[axis]
        more = [*tensor.shape[:axis], missing, *tensor.shape[axis + 1 :]]
        tensor = torch.cat([tensor, tensor.new_zeros(more)], dim=axis)
        rest = tensor.shape[axis + 1 :]
        shape += [sizes[bond] for bond in bonds]
        names += bonds
        tensor = tensor.reshape(*shape, *rest)
    return Named(Named(tensor, tuple(names)).to(*tree.names[core]), tree.names[core])


def edge_name(one: int, two: int) -> str:
    """Name of an edge; no index can have it."""
    return f"{min(one, two)}-{max(one, two)}"


def _sweeps(goal: Target) -> int:
    """How many sweeps are worth their time: 100 for a small weight, 10 for a large one."""
    return min(100, max(10, int(1e7 / goal.values.tensor.numel())))
