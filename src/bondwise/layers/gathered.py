"""Low rank as it is stored without its gauge: ``y = A (x[pivots] + F x[rest]) + b``.

``W = A [I | F] P``: the identity block needs no multiplication, so ``r (m + n - r)`` of them are
left. The inputs are gathered once, the pivots first.
"""

from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from bondwise.compute.machine import Rates
from bondwise.compute.path import BACKWARD_ROWS, graded


def inner(x: Tensor, order: Tensor, free: Tensor) -> Tensor:
    """What passes over the bond: ``x[order[:r]] + F x[order[r:]]``, the free part being r x (in-r).

    >>> inner(torch.tensor([[1., 2., 3.]]), torch.tensor([2, 0, 1]), torch.tensor([[10., 100.]]))
    tensor([[213.]])
    """
    rank, rest = free.shape
    if torch.compiler.is_compiling() or not rest:  # an export knows no slices
        first = x.index_select(-1, order[:rank])
        return first + F.linear(x.index_select(-1, order[rank:]), free) if rest else first
    first, others = x.index_select(-1, order).split((rank, rest), -1)
    return first + F.linear(others, free)


def linear(
    x: Tensor, order: Tensor, free: Tensor, outer: Tensor, bias: Tensor | None = None
) -> Tensor:
    """``A (x[order[:r]] + F x[order[r:]]) + b`` for every x of the batch.

    For the gradient only x is kept: what was gathered and what passed over the bond are made again.

    Args:
        x: (*batch, in).
        order: positions of the inputs, the r pivots first (int64).
        free: F, r x (in - r).
        outer: A, out x r.
        bias: (out,).

    >>> x, order = torch.tensor([[1., 2., 3.]]), torch.tensor([2, 0, 1])
    >>> linear(x, order, torch.tensor([[10., 100.]]), torch.tensor([[1.], [2.]]))
    tensor([[213., 426.]])
    """
    if not graded(x, free, outer) or torch.is_autocast_enabled(x.device.type):
        return F.linear(inner(x, order, free), outer, bias)
    y = cast(Tensor, _Gathered.apply(x.reshape(-1, x.shape[-1]), order, free, outer))
    y = y.reshape(*x.shape[:-1], outer.shape[0])
    return y if bias is None else y + bias.to(y.dtype)


def seconds(out: int, inp: int, rank: int, rows: int, rates: Rates, itemsize: int) -> float:
    """Modelled seconds of `linear`: the gather, two products and what joins them.

    >>> seconds(576, 576, 200, 1, Rates(), 4) < seconds(576, 576, 200, 256, Rates(), 4)
    True
    """
    products = [(1, rows, rank, max(1, inp - rank)), (1, rows, out, rank)]
    joined = 3 * rates.call + 3 * rows * rank * itemsize / rates.cached
    gather = 2 * rates.permuted(rows * inp, itemsize)  # one by one: half as fast as a permutation
    return gather + joined + sum(rates.product(each, itemsize) for each in products)


class _Gathered(torch.autograd.Function):
    """`linear` without a bias, on rows; its inner values are made again for the gradient."""

    @staticmethod
    def forward(x: Tensor, order: Tensor, free: Tensor, outer: Tensor) -> Tensor:  # type: ignore[override]
        return F.linear(inner(x, order, free), outer)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, ...], output: Any) -> None:  # noqa: ARG004
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, order, free, outer = ctx.saved_tensors
        needs = ctx.needs_input_grad
        rank, rest = free.shape
        back = torch.argsort(order)
        d_free, d_outer = torch.zeros_like(free), torch.zeros_like(outer)
        dx = x.new_empty(x.shape) if needs[0] else None
        for start in range(0, x.shape[0], BACKWARD_ROWS):
            rows, dy = (t[start : start + BACKWARD_ROWS] for t in (x, grads[0]))
            first, others = rows.index_select(-1, order).split((rank, rest), -1)
            if needs[3]:
                d_outer = d_outer + dy.mT @ (first + F.linear(others, free))
            dz = dy @ outer
            if needs[2]:
                d_free = d_free + dz.mT @ others
            if dx is not None:
                both = torch.cat([dz, dz @ free], -1)
                dx[start : start + BACKWARD_ROWS] = both.index_select(-1, back)
        return (
            dx,
            None,
            d_free if needs[2] else None,
            d_outer if needs[3] else None,
        )
