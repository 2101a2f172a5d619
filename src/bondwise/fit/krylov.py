"""Conjugate gradients: the minimum of a quadratic that is only known by what it does to a step."""

from collections.abc import Callable

import torch
from torch import Tensor

Operator = Callable[[Tensor], Tensor]


def conjugate_gradients(
    apply: Operator, right: Tensor, precondition: Operator, most: int, enough: float
) -> Tensor:
    """The step ``x`` with ``H x = right`` nearly (Hestenes and Stiefel 1952), from ``x = 0``.

    Every iterate lowers ``x.Hx / 2 - right.x``. It stops after ``most`` products with ``H``, or
    where the residual in the preconditioner's norm is below ``enough`` of the first.

    >>> H = torch.tensor([[4.0, 1.0], [1.0, 3.0]])
    >>> conjugate_gradients(H.mv, torch.tensor([1.0, 2.0]), lambda r: r, 2, 0.0)
    tensor([0.0909, 0.6364])
    """
    step = torch.zeros_like(right)
    residual = right
    direction = precondition(residual)
    size = first = float((residual * direction).sum())
    for _ in range(most):
        if not size > enough * enough * first:
            break
        pushed = apply(direction)
        curvature = float((direction * pushed).sum())
        if not curvature > 0:
            break
        length = size / curvature
        step = step + length * direction
        residual = residual - length * pushed
        toward = precondition(residual)
        before, size = size, float((residual * toward).sum())
        direction = toward + (size / before) * direction
    return step
