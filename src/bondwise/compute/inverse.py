"""The inverse of a gauge, or a sentence that says why it has none."""

import torch
from torch import Tensor

from bondwise.errors import ShapeError


def inverse(X: Tensor, where: str) -> Tensor:
    """``X^-1`` in float64, for a square ``X``.

    Args:
        X: the gauge.
        where: the place that it is meant for, as in "bond a of size 4".

    >>> inverse(torch.diag(torch.tensor([2.0, 4.0])), "bond a of size 2").diag()
    tensor([0.5000, 0.2500], dtype=torch.float64)

    Raises:
        ShapeError: entries that are not finite, or a condition number with which nothing is left.
    """
    if not bool(X.isfinite().all()):
        raise ShapeError(f"X for {where} has entries that are not finite; give finite ones.")
    condition = float(torch.linalg.cond(X.double()))
    # the usual tolerance for a numerical rank, at the precision in which X came
    eps = torch.finfo(X.dtype if X.is_floating_point() else torch.float64).eps
    if not condition < 1 / (len(X) * eps):
        raise ShapeError(
            f"X for {where}, {len(X)} x {len(X)}, has condition number {condition:.3g}; "
            "write one with an inverse."
        )
    return torch.linalg.inv(X.double())
