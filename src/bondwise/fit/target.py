"""What a network can reach of a weight: a tensor over its open indices, in slices."""

from dataclasses import dataclass
from math import prod

import torch
from torch import Tensor

from bondwise.fit.named import Named
from bondwise.network.network import Network

BLOCK = ""  # name of the axis that counts the slices; no index can have it


@dataclass(frozen=True, eq=False)
class Target:
    """A weight as a tensor with one axis per open index.

    Block indices (open, and on every core) split the fit into slices: their axes are one,
    ``BLOCK``, and come first. An index that is open on both sides has one axis, the diagonal: no
    core can reach what is off it.
    """

    values: Named
    blocks: tuple[str, ...]

    @property
    def open(self) -> frozenset[str]:
        """Names of all axes."""
        return frozenset(self.values.names)


def target(weight: Tensor, net: Network) -> Target:
    """The target of a fit; ``weight`` is float64, out x in."""
    return slices(reach(weight, net), net)


def reach(weight: Tensor, net: Network) -> Named:
    """The entries of a matrix that the network can reach, one axis per open index."""
    names = tuple(index.name for index in (*net.rows, *net.cols))
    return diagonal(Named(weight.reshape([net.sizes[name] for name in names]), names))


def diagonal(tensor: Named) -> Named:
    """Axes of equal name made one, their diagonal."""
    values, names = tensor
    for name in dict.fromkeys(name for name in names if names.count(name) > 1):
        one, two = (axis for axis, other in enumerate(names) if other == name)
        values = values.diagonal(dim1=one, dim2=two)
        names = (*(other for other in names if other != name), name)
    return Named(values, names)


def slices(entries: Named, net: Network) -> Target:
    """The reachable entries with all block indices as one axis."""
    every = len(net.cores)
    blocks = tuple(name for name in entries.names if len(net.places[name]) == every > 1)
    rest = tuple(name for name in entries.names if name not in blocks)
    sizes = [net.sizes[name] for name in rest]
    values = entries.to(*blocks, *rest)
    values = values.reshape(prod(net.sizes[name] for name in blocks), *sizes)
    return Target(Named(values, (BLOCK, *rest)), blocks)


def core_names(net: Network, goal: Target) -> list[tuple[str, ...]]:
    """Axes of the cores as they are fitted: slices first, no block indices, no bonds of size 1."""
    idle = {name for name, size in net.bonds.items() if size == 1} | set(goal.blocks)
    return [(BLOCK, *(name for name in names if name not in idle)) for names in net.names]


def as_cores(net: Network, goal: Target, parts: list[Named]) -> list[Tensor]:
    """The fitted parts in the axes of the network's cores."""
    blocks = [net.sizes[name] for name in goal.blocks]
    result: list[Tensor] = []
    for core, part in zip(net.names, parts, strict=True):
        tensor = part.tensor.reshape([*blocks, *part.tensor.shape[1:]])
        names = (*goal.blocks, *part.names[1:])
        idle = [name for name in core if name not in names]
        tensor = tensor.reshape([*tensor.shape, *(1 for _ in idle)])
        result.append(Named(tensor, (*names, *idle)).to(*core).contiguous())
    return result


def zeros(net: Network, like: Tensor) -> list[Tensor]:
    """Cores of zeros."""
    return [torch.zeros(shape, dtype=like.dtype, device=like.device) for shape in net.core_shapes]
