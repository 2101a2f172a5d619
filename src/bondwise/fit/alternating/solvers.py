"""The linear system of a half-step: by Cholesky, or by conjugate gradients."""

from collections.abc import Callable

import torch
from torch import Tensor

Operator = Callable[[Tensor], Tensor]

SMALL = 1536  # unknowns of a system that is solved by Cholesky
ENTRIES = 2**26  # of the largest intermediate of its matrix
_RIDGE = 1e-12  # of the mean of diag G


def solve(gram: Tensor, right: Tensor) -> Tensor:
    """``right (G + lambda I)^-1``, with lambda raised until the factorisation holds."""
    size = gram.shape[-1]
    mean = gram.diagonal(dim1=-2, dim2=-1).mean(-1).clamp(min=torch.finfo(gram.dtype).tiny)
    eye = torch.eye(size, dtype=gram.dtype, device=gram.device)
    ridge = _RIDGE
    while True:
        factor, info = torch.linalg.cholesky_ex(gram + (ridge * mean)[:, None, None] * eye)
        if not info.any() or ridge >= 1:
            return torch.cholesky_solve(right.mT, factor).mT
        ridge *= 100


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
