"""A weight that is made whole for one product, and gone again: some of its rows at a time.

A layer that trains would else hold its cores, their weight and its gradient at once, which is more
than the dense layer holds. So the weight is made in parts, each part is used and let go, and what
the gradient needs of it is made again.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from math import prod
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.graph import get_gradient_edge

from bondwise.compute import layouts
from bondwise.compute.lower import operands, program
from bondwise.compute.path import fits, through
from bondwise.compute.plan import FEWEST_ROWS, Plan, again, einsum, planned
from bondwise.compute.product import prepare
from bondwise.compute.search import rebuilt
from bondwise.compute.steps import Step, squeezed
from bondwise.network.network import Network

Some = TypeVar("Some", Tensor, Tensor | None)
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

    def of(self, cores: Sequence[Some]) -> list[Some]:
        """What the part needs of each core, or of what stands for one: views."""
        return [
            core if core is None or axis is None else core.narrow(axis, self.start, self.count)
            for core, axis in zip(cores, self.cuts, strict=True)
        ]

    def add(self, totals: Sequence[Tensor | None], found: Sequence[Tensor | None]) -> None:
        """Add the gradients of what it needs to those of the whole cores."""
        for total, own in zip(self.of(totals), found, strict=True):
            if total is not None and own is not None:
                total.add_(own)


def linear(plan: Plan, cores: Sequence[Tensor], rows: Tensor) -> Tensor:
    """``rows W^T`` by a plan that makes W whole; W is not kept, and its gradient neither.

    Args:
        plan: one with ``plan.whole``.
        cores: in core-axis order.
        rows: (batch, in).
    """
    return through(_Whole, plan, rows, *cores)


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


def made_whole(net: Network, batch: int) -> Plan:
    """The plan that makes the weight first, in its cheapest order; `Plan.whole` where that is it.

    >>> from bondwise import lowrank
    >>> made_whole(lowrank(8, 6, 2), batch=4).whole
    True
    """
    inputs, output, sizes = einsum(net, batch)
    pairs = rebuilt(operands(inputs, output, sizes), squeezed(output, sizes), sizes)
    return planned(net, program(inputs, output, sizes, pairs), batch)


def for_gradients(plan: Plan, rows: int) -> Plan:
    """The plan, or the weight made whole: which costs less forward and back, and fits beside dense.

    Both count as in `bondwise.compute.layouts`; what is made twice counts twice.

    >>> from bondwise import mpo
    >>> from bondwise.compute.plan import plan
    >>> made = plan(mpo((8, 8, 12), (8, 8, 12), 8), batch=64)
    >>> [for_gradients(made, rows).whole for rows in (16, 2048)]
    [False, True]
    """
    return plan if plan.whole else _cheaper(plan, 2 ** (max(rows, 1) - 1).bit_length())


@cache
def _cheaper(plan: Plan, rows: int) -> Plan:
    other = made_whole(plan.network, plan.batch)
    if not other.whole:
        return plan
    path, product = (made.program.resized(rows).path for made in (plan, other))
    ours = _cost(path, 3 if fits(plan, rows) else 4) + _cost(plan.weights, 3)
    theirs = _cost(product, 3) + _cost(other.weights, 4)
    return plan if fits(plan, FEWEST_ROWS) and ours <= theirs else other


def _cost(steps: Sequence[Step], times: int) -> float:
    moved = sum((layouts.copied(step.moved) for step in steps if step.moved), 0.0)
    return times * (moved + sum(layouts.product(step.extents) for step in steps))


class _Whole(torch.autograd.Function):
    """`linear`: only the input and the cores are kept for the gradient."""

    @staticmethod
    def forward(ctx: Any, plan: Plan, rows: Tensor, *cores: Tensor) -> Tensor:
        ctx.plan = plan
        ctx.save_for_backward(rows, *cores)
        y = rows.new_empty(rows.shape[0], plan.shape[0])
        for part in parts(plan):
            (weight,) = prepare(part.plan, part.of(cores))
            torch.mm(rows, weight.mT, out=y[:, part.rows])
        return y

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        rows, *cores = ctx.saved_tensors
        wanted = ctx.needs_input_grad[1:]
        if torch.is_grad_enabled():  # a second gradient follows: plain products, kept
            return (None, *_plainly(ctx.plan, rows, cores, grads[0], wanted))
        return (None, *_back(ctx.plan, rows, cores, grads[0], wanted))


def _back(
    plan: Plan, rows: Tensor, cores: Sequence[Tensor], grad: Tensor, wanted: Sequence[bool]
) -> list[Tensor | None]:
    d_rows: Tensor | None = None
    totals = [
        torch.zeros_like(core) if asked else None
        for core, asked in zip(cores, wanted[1:], strict=True)
    ]
    for part in parts(plan):
        own, d_own = part.of(cores), grad[:, part.rows]
        asked = list(wanted[1:])
        with torch.enable_grad():
            own = [c.detach().requires_grad_(a) for c, a in zip(own, asked, strict=True)]
            (weight,) = prepare(part.plan, own)
        edge = get_gradient_edge(weight) if weight.requires_grad else None
        if wanted[0]:
            made = weight.detach()
            d_rows = d_own @ made if d_rows is None else d_rows.addmm_(d_own, made)
            del made
        del weight  # before its gradient, which is as large, is made
        if edge is not None:
            found = iter(
                torch.autograd.grad([edge], [c for c in own if c.requires_grad], [d_own.mT @ rows])
            )
            part.add(totals, [next(found) if a else None for a in asked])
    return [d_rows, *totals]


def _plainly(
    plan: Plan, rows: Tensor, cores: Sequence[Tensor], grad: Tensor, wanted: Sequence[bool]
) -> list[Tensor | None]:
    (weight,) = prepare(plan, cores)
    y = F.linear(rows, weight)
    asked = [t for t, a in zip((rows, *cores), wanted, strict=True) if a]
    found = iter(torch.autograd.grad(y, asked, grad, create_graph=True))
    return [next(found) if a else None for a in wanted]
