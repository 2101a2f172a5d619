"""A weight that is made whole for one product, and gone again: some of its rows at a time.

A layer that trains would else hold its cores, their weight and its gradient at once, which is more
than the dense layer holds. So the weight is made in parts, each part is used and let go, and what
the gradient needs of it is made again.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from math import prod

import torch
import torch.nn.functional as F
from torch import Tensor

from bondwise.compute.path import in_one_dtype, remade
from bondwise.compute.plan import Plan, again
from bondwise.compute.product import prepare

MOST = 8  # parts of a weight
ROOM = 0.7  # of what dense holds (its weight and gradient): for a part, its product and the cores


@dataclass(frozen=True, eq=False)
class Part:
    """Some rows of a weight: the plan that makes them, and where they are cut out of.

    Attributes:
        plan: of the network with fewer values of one row mode.
        rows: which rows of the weight.
        cuts: for each core the axis of that mode, None where it has none.
        start, count: which values of the mode.
    """

    plan: Plan
    rows: slice
    cuts: tuple[int | None, ...]
    start: int
    count: int

    def of(self, cores: Sequence[Tensor]) -> list[Tensor]:
        """What the part needs of each core: views."""
        return [
            core if axis is None else core.narrow(axis, self.start, self.count)
            for core, axis in zip(cores, self.cuts, strict=True)
        ]


def linear(plan: Plan, cores: Sequence[Tensor], rows: Tensor) -> Tensor:
    """``rows W^T`` by a plan that makes W whole; W is not kept, and its gradient neither.

    Args:
        plan: one with ``plan.whole``.
        cores: in core-axis order.
        rows: (batch, in).
    """
    return in_one_dtype(_in_parts, plan, rows, *cores)


def _in_parts(plan: Plan, rows: Tensor, *cores: Tensor) -> Tensor:
    found = [remade(_one, part, rows, *part.of(cores)) for part in parts(plan)]
    return found[0] if len(found) == 1 else torch.cat(found, 1)


def _one(part: Part, rows: Tensor, *cores: Tensor) -> Tensor:
    (weight,) = prepare(part.plan, cores)
    return F.linear(rows, weight)


@cache
def parts(plan: Plan) -> tuple[Part, ...]:
    """The parts of the weight of a plan: as few as leave room, of its slowest row mode.

    >>> from bondwise import mpo
    >>> from bondwise.compute.plan import plan
    >>> made = plan(mpo((16, 16), (16, 16), 9), batch=4096)  # the weight made whole is cheapest
    >>> [(part.rows.start, part.rows.stop) for part in parts(made)]
    [(0, 128), (128, 256)]
    """
    net = plan.network
    mode = next((index for index in net.rows if index.size > 1), None)
    if mode is None or mode in net.cols:
        return (_part(plan, plan, None, 0, 0),)
    numbers, weight = net.parameters, prod(net.shape)
    counts = [k for k in range(2, MOST + 1) if mode.size % k == 0] or [mode.size]
    fits = (k for k in counts if 2 * weight / k + 3 * numbers <= 2 * ROOM * weight)
    size = mode.size // next(fits, counts[-1])
    small = again(plan, net.resize(**{mode.name: size}))
    if not small.whole:
        return (_part(plan, plan, None, 0, 0),)
    return tuple(_part(plan, small, mode.name, at, size) for at in range(0, mode.size, size))


def _part(plan: Plan, small: Plan, mode: str | None, start: int, count: int) -> Part:
    if mode is None:
        return Part(plan, slice(0, plan.shape[0]), (None,) * len(plan.core_shapes), 0, 0)
    each = small.shape[0]
    rows = slice(start // count * each, (start // count + 1) * each)
    cuts = tuple(n.index(mode) if mode in n else None for n in plan.network.names)
    return Part(small, rows, cuts, start, count)
