"""The graph of a network's bonds: its edges, spanning forests, and one core seen from a bond."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import prod

import torch
from torch import Tensor

from bondwise.compute.run import check_cores
from bondwise.errors import FitError
from bondwise.network.network import Network


@dataclass(frozen=True, slots=True)
class Edge:
    """Two cores and the bonds between them, seen as one."""

    cores: tuple[int, int]
    bonds: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Branch:
    """An edge of a rooted tree: what the core loses on the bonds, its parent absorbs."""

    core: int
    parent: int
    bonds: tuple[str, ...]


def edges_of(net: Network) -> list[Edge]:
    """Every pair of cores that shares ordinary bonds (on two cores), in order of first use."""
    pairs: dict[tuple[int, int], list[str]] = {}
    for bond in net.bonds:
        places = net.places[bond]
        if len(places) == 2:
            pairs.setdefault((places[0], places[1]), []).append(bond)
    return [Edge(pair, tuple(bonds)) for pair, bonds in pairs.items()]


def hyperedges(net: Network) -> list[str]:
    """Summed indices on three or more cores."""
    return [bond for bond in net.bonds if len(net.places[bond]) > 2]


def forest(edges: Iterable[Edge], count: int) -> list[Edge]:
    """The edges that close no loop, first come first kept (Kruskal 1956)."""
    piece = list(range(count))
    kept: list[Edge] = []
    for edge in edges:
        one, two = (piece[k] for k in edge.cores)
        if one != two:
            piece = [one if label == two else label for label in piece]
            kept.append(edge)
    return kept


def branches(tree: Sequence[Edge], root: int) -> list[Branch]:
    """From the leaves to the root: one for every other core that the tree joins to it."""
    seen, found = [root], list[Branch]()
    for parent in seen:
        for edge in tree:
            if parent in edge.cores:
                core = edge.cores[0] + edge.cores[1] - parent
                if core not in seen:
                    seen.append(core)
                    found.append(Branch(core, parent, edge.bonds))
    return found[::-1]


@dataclass(frozen=True, slots=True)
class Unfolding:
    """A core as one matrix per block value: (blocks, rest, bonds)."""

    order: tuple[int, ...]
    sizes: tuple[int, ...]
    shape: tuple[int, int, int]

    def matrix(self, core: Tensor) -> Tensor:
        """The core unfolded."""
        return core.permute(self.order).reshape(self.shape)

    def core(self, matrix: Tensor) -> Tensor:
        """The core folded again."""
        back = [self.order.index(axis) for axis in range(len(self.order))]
        return matrix.reshape(self.sizes).permute(back)


def unfolding(net: Network, branch: Branch, at: int) -> Unfolding:
    """How one end of a branch unfolds; open indices that both ends share are its blocks."""
    names, sizes = net.names[at], net.sizes
    shared = set(net.names[branch.core]) & set(net.names[branch.parent]) & net.open
    hyper = any(len(net.places[bond]) > 2 for bond in branch.bonds)
    blocks = [] if hyper else [name for name in sizes if name in shared]
    rest = [name for name in names if name not in branch.bonds and name not in blocks]
    order = [*blocks, *rest, *branch.bonds]
    return Unfolding(
        tuple(names.index(name) for name in order),
        tuple(sizes[name] for name in order),
        (
            prod(sizes[name] for name in blocks),
            prod(sizes[name] for name in rest),
            prod(sizes[name] for name in branch.bonds),
        ),
    )


def absorb(net: Network, branch: Branch, parent: Tensor, factor: Tensor) -> Tensor:
    """The parent times what the core lost: ``sum_a factor[j, a] parent[.., a]``, per block."""
    view = unfolding(net, branch, branch.parent)
    return view.core(view.matrix(parent) @ factor.mT)


def checked(net: Network, cores: Sequence[Tensor]) -> list[Tensor]:
    """The cores in float64, after a look at their shapes and values.

    Raises:
        ShapeError: another number of cores, or a core of another shape, than the network's.
        FitError: a core holds values that are not finite.
    """
    check_cores(net, cores)
    for k, core in enumerate(cores):
        if not bool(core.isfinite().all()):
            raise FitError(f"Core {k} holds values that are not finite; give finite ones.")
    return [core.double() for core in cores]


def even_norms(net: Network, cores: Sequence[Tensor]) -> list[Tensor]:
    """The same weight with equal norms on all sides of every value of a bond, to a power of two.

    An exact change of gauge; without it, scales that cancel around a loop drown small entries.
    """
    result = list(cores)
    for bond, places in net.places.items():
        if bond in net.open or len(places) == 1:
            continue
        ends = [result[k].movedim(net.names[k].index(bond), -1) for k in places]
        norms = [end.reshape(-1, end.shape[-1]).norm(dim=0) for end in ends]
        logs = torch.stack(norms).log2()
        shifts = (logs.mean(0) - logs).round()[:-1]
        shifts = torch.cat([shifts, -shifts.sum(0, keepdim=True)])
        shifts = torch.where(logs.isfinite().all(0), shifts, 0.0)
        for k, end, shift in zip(places, ends, shifts, strict=True):
            result[k] = torch.ldexp(end, shift).movedim(-1, net.names[k].index(bond))
    return result
