"""Data through one level of a stack: a matmul with the core, beside what only passes."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from bondwise.errors import ShapeError
from bondwise.network.network import Index
from bondwise.network.stack import Level


@dataclass(frozen=True)
class Passage:
    """A level lowered to one matmul, or one for each value of its block indices: plain data."""

    shape: tuple[int, int]  # (out, in) of the level
    sums: tuple[int, ...]  # axes of the core that are on no other
    core_order: tuple[int, ...]
    core_shape: tuple[int, int, int]  # block values, then rows and columns of the core's matrix
    entry: tuple[int, ...]  # the data before it, the rows of the batch apart
    entry_order: tuple[int, ...]  # block indices, rows of the batch, what passes, what comes in
    passing: int
    exit: tuple[tuple[int, ...], tuple[int, ...]]  # sizes of block indices; of passing, going out
    exit_order: tuple[int, ...]


def passage(level: Level) -> Passage:
    """How data goes through a level, decided once.

    >>> from bondwise import mpo
    >>> from bondwise.network.stack import levels
    >>> first = passage(levels(mpo((2, 3), (4, 5), 6), (1, 0))[0])
    >>> first.core_shape, first.passing      # one matrix (a o2) x (i2), for every value of i1
    ((1, 18, 5), 4)
    """
    block = [i for i in level.cols if i in level.rows]
    entering = [i for i in level.cols if i not in block]
    leaving = [i for i in level.rows if i not in block]
    passing = [i for i in level.before if i not in level.indices]
    core = [i for i in level.indices if i in (*level.before, *level.after)]
    data, result = (None, *level.before), (*block, None, *passing, *leaving)
    return Passage(
        level.shape,
        tuple(axis for axis, i in enumerate(level.indices) if i not in core),
        tuple(core.index(i) for i in (*block, *leaving, *entering)),
        (_size(block), _size(leaving), _size(entering)),
        tuple(i.size for i in level.before),
        tuple(data.index(i) for i in (*block, None, *passing, *entering)),
        _size(passing),
        (tuple(i.size for i in block), tuple(i.size for i in (*passing, *leaving))),
        tuple(result.index(i) for i in (None, *level.after)),
    )


def through(how: Passage, core: Tensor, x: Tensor) -> Float[Tensor, "*batch out"]:
    """The level's sparse matrix times every x, ``(*batch, in) -> (*batch, out)``; never built.

    >>> from bondwise import lowrank
    >>> from bondwise.network.stack import levels
    >>> how = passage(levels(lowrank(6, 4, 2), (1, 0))[0])
    >>> through(how, torch.ones(2, 4), torch.ones(3, 4)).shape
    torch.Size([3, 2])

    Raises:
        ShapeError: x is not as wide as the level.
    """
    out, inp = how.shape
    if x.shape[-1:] != (inp,):
        raise ShapeError(
            f"Inputs of width {x.shape[-1] if x.ndim else 'none'} came; this level takes {inp}: "
            f"write them as (.., {inp})."
        )
    rows, (blocks, leaving, entering) = prod(x.shape[:-1]), how.core_shape
    matrix = (core.sum(how.sums) if how.sums else core).permute(how.core_order)
    matrix = matrix.reshape(blocks, leaving, entering)
    data = x.reshape(rows, *how.entry).permute(how.entry_order)
    data = data.reshape(blocks, rows * how.passing, entering)
    y = F.linear(data[0], matrix[0]) if blocks == 1 else torch.bmm(data, matrix.mT)
    block, rest = how.exit
    return y.reshape(*block, rows, *rest).permute(how.exit_order).reshape(*x.shape[:-1], out)


def _size(indices: Sequence[Index]) -> int:
    return prod(index.size for index in indices)
