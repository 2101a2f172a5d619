"""Low rank as it is stored without its gauge: ``y = A (x[pivots] + F x[rest]) + b``.

``W = A [I | F] P``: the identity block needs no multiplication, so ``r (m + n - r)`` of them are
left. The inputs are gathered once, the pivots first.
"""

from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

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
    numbers = outer.shape[0] * x.shape[-1] - free.numel() - outer.numel()
    if not graded(x, free, outer) or x.numel() <= numbers:
        return _both(x, order, free, outer, bias)
    rows = x.reshape(-1, x.shape[-1]).split(BACKWARD_ROWS)
    parts = [_remade(part, order, free, outer, bias) for part in rows]
    return torch.cat(parts).reshape(*x.shape[:-1], outer.shape[0])


def _remade(*given: Tensor | None) -> Tensor:
    made = checkpoint(
        _both, *given, use_reentrant=False, preserve_rng_state=False, determinism_check="none"
    )
    return cast(Tensor, made)


def _both(x: Tensor, order: Tensor, free: Tensor, outer: Tensor, bias: Tensor | None) -> Tensor:
    return F.linear(inner(x, order, free), outer, bias)
