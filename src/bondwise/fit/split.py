"""Truncated SVD at one bond, with its exact error."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

# A Gram matrix knows squared singular values to about 1e-16 of their sum. Where less than this part
# of the sum is dropped, the SVD itself is taken.
GRAM_IS_ENOUGH = 1e-9


@dataclass(frozen=True, eq=False)
class Split:
    """``A ~ left @ right``: orthonormal columns left, the rest right, and what was dropped.

    ``error`` is the Frobenius norm of what was dropped, over all matrices of the batch together.
    """

    left: Float[Tensor, "*batch m r"]
    right: Float[Tensor, "*batch r n"]
    error: float

    @property
    def rank(self) -> int:
        """Size of the bond."""
        return self.left.shape[-1]


@torch.no_grad()
def split(
    matrix: Float[Tensor, "*batch m n"], rank: int | None = None, tol: float | None = None
) -> Split:
    """Best rank-r ``A ~ L R`` in Frobenius norm (Eckart and Young 1936), computed in float64.

    The rank is the given one, or the smallest whose error is at most the absolute ``tol``, or the
    smaller of both; a batch of matrices shares it. Wide and tall matrices go through the smaller
    Gram matrix, unless that would blur the error.

    >>> cut = split(torch.diag(torch.tensor([3.0, 2.0, 1.0])), rank=2)
    >>> cut.rank, round(cut.error, 12)
    (2, 1.0)
    >>> split(torch.eye(4), tol=1.5).rank
    2
    """
    matrix = matrix.to(torch.float64)
    most = min(matrix.shape[-2:])
    most = most if rank is None else min(rank, most)
    if tol is None and most == matrix.shape[-2]:
        eye = torch.eye(most, dtype=matrix.dtype, device=matrix.device)
        return Split(eye.expand(*matrix.shape[:-2], most, most), matrix, 0.0)
    left, tails = _left_basis(matrix, most, tol)
    kept = kept_rank(tails, most, tol)
    left = left[..., :kept]
    return Split(left, left.mT @ matrix, float(tails[kept].sqrt()))


def kept_rank(tails: Tensor, most: int, tol: float | None) -> int:
    """The smallest rank whose dropped energy ``tails[rank]`` is at most ``tol**2``; at least 1."""
    if tol is None:
        return most
    enough = int((tails > tol * tol).sum())
    return max(1, min(most, enough))


def tails(values: Float[Tensor, "*batch k"]) -> Float[Tensor, "k_and_one"]:
    """Energy dropped at rank 0, 1, .., k, from singular values (largest first), over the batch."""
    energy = values.reshape(-1, values.shape[-1]).square().sum(0)
    dropped = energy.flip(0).cumsum(0).flip(0)
    return torch.cat([dropped, dropped.new_zeros(1)])


def _left_basis(matrix: Tensor, rank: int, tol: float | None) -> tuple[Tensor, Tensor]:
    """Left singular vectors (at least ``rank`` of them), and the energy dropped at each rank."""
    wide = matrix.shape[-2] <= matrix.shape[-1]
    values, vectors = torch.linalg.eigh(matrix @ matrix.mT if wide else matrix.mT @ matrix)
    dropped = tails(values.flip(-1).clamp(min=0).sqrt())
    allowed = dropped[rank] if tol is None else max(dropped[rank], dropped.new_tensor(tol * tol))
    if allowed <= GRAM_IS_ENOUGH * dropped[0]:
        left, values, _ = torch.linalg.svd(matrix, full_matrices=False)
        return left, tails(values)
    vectors = vectors.flip(-1)[..., :rank]
    return (vectors if wide else torch.linalg.qr(matrix @ vectors).Q), dropped
