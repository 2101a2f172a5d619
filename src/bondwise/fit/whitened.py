"""Low rank in the metric of the inputs, in closed form: an SVD of ``W L`` with ``C = L L^T``.

The best ``A B`` of rank r makes ``||(W - A B) L||`` smallest. With ``U`` the leading left singular
vectors of ``W L`` it is ``A = U``, ``B = U^T W`` (Eckart and Young 1936 in whitened coordinates;
Yuan et al. 2023, Wang et al. 2024 for language models). No inverse of ``C`` is needed, so inputs
that are always zero do no harm. With a metric ``G = M M`` of the outputs too, ``U`` and ``S`` are
those of ``M W L``, and ``A = W L (M W L)^T U S^-2``, ``B = U^T M W``: no inverse of ``M`` either.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from bondwise.fit.split import GRAM_IS_ENOUGH, Split, kept_rank, split, tails

_SINGLE_IS_ENOUGH = 1e-5  # the same as GRAM_IS_ENOUGH, of a Gram matrix in float32
_NOTHING = 1e-26  # of the largest squared singular value: rounding


@torch.no_grad()
def whitened_split(
    weight: Float[Tensor, "out inp"],
    moment: Float[Tensor, "inp inp"],
    rank: int,
    tol: float | None = None,
    outputs: Float[Tensor, "out out"] | None = None,
) -> Split:
    """Best low rank in the metric; ``error`` and the absolute ``tol`` are norms in the metric.

    Computed in the dtype of the weight and the moment: float32 takes half the time of float64, and
    changes to float64 by itself where next to nothing is dropped. Where ``outputs`` is given, all
    is float64, and ``left`` has no orthonormal columns.

    >>> W, C = torch.eye(3), torch.diag(torch.tensor([1.0, 100.0, 4.0]))
    >>> cut = whitened_split(W.double(), C.double(), rank=1)
    >>> (cut.left @ cut.right).diagonal()  # the loud input is kept
    tensor([0., 1., 0.], dtype=torch.float64)
    """
    out, inp = weight.shape
    if tol is None and rank >= min(out, inp):
        return split(weight, rank)
    if outputs is not None:
        return _both(weight.double(), root(moment.double()), root(outputs.double()), rank, tol)
    if out <= inp:
        half, gram = None, weight @ moment @ weight.mT
    else:
        half = root(moment)
        gram = half @ (weight.mT @ weight) @ half
    values, vectors = torch.linalg.eigh((gram + gram.mT) / 2)
    dropped = tails(values.flip(-1).clamp(min=0).sqrt())
    most = min(rank, out, inp)
    allowed = dropped[most] if tol is None else max(dropped[most], dropped.new_tensor(tol * tol))
    double = weight.dtype == torch.float64
    if allowed <= (GRAM_IS_ENOUGH if double else _SINGLE_IS_ENOUGH) * dropped[0]:
        precise = half if half is not None and double else root(moment.double())
        weight = weight.double()
        left, kept, error = _exact(weight, precise, most, tol)
    else:
        kept = kept_rank(dropped, most, tol)
        vectors, error = vectors.flip(-1)[:, :kept], float(dropped[kept].sqrt())
        left = vectors if half is None else torch.linalg.qr(weight @ (half @ vectors)).Q
    left = left[:, :kept]
    return Split(left, left.mT @ weight, error)


def metric_norm(
    weight: Float[Tensor, "out inp"],
    moment: Float[Tensor, "inp inp"],
    outputs: Float[Tensor, "out out"] | None = None,
) -> float:
    """``||L_G^T W L|| = sqrt(tr G W C W^T)``; without ``outputs``, ``G`` is the identity."""
    pushed = weight @ moment
    if outputs is not None:
        pushed = outputs @ pushed
    return float((pushed * weight).sum().clamp(min=0).sqrt())


def root(moment: Float[Tensor, "inp inp"]) -> Float[Tensor, "inp inp"]:
    """The symmetric ``L`` with ``C = L L``; negative eigenvalues are rounding and count as zero."""
    values, vectors = torch.linalg.eigh(moment)
    return (vectors * values.clamp(min=0).sqrt()) @ vectors.mT


def _both(weight: Tensor, half: Tensor, out: Tensor, rank: int, tol: float | None) -> Split:
    pushed = out @ weight
    white = pushed @ half
    cut = split(white, rank, tol)
    left = weight @ (half @ (white.mT @ cut.left))
    energy = (cut.left.mT @ white).square().sum(-1)
    kept = energy > _NOTHING * energy.max()
    left = torch.where(kept, left / torch.where(kept, energy, 1.0), 0.0)
    return Split(left, cut.left.mT @ pushed, cut.error)


def _exact(weight: Tensor, half: Tensor, most: int, tol: float | None) -> tuple[Tensor, int, float]:
    white = weight @ half
    cut = split(white, most, tol)
    return cut.left, cut.rank, cut.error
