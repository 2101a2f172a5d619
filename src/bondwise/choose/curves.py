"""How the error falls with the rank: all ranks of low rank from one decomposition.

The best low rank in the metric ``C = L L^T`` is ``U_r U_r^T W``, with ``U_r`` the r leading left
singular vectors of ``W L`` (see `bondwise.fit.whitened`). What it costs on other tokens, whose
second moment is ``D``, needs no further fit:

    tr (W - U_r U_r^T W) D (W - U_r U_r^T W)^T = tr W D W^T - sum_{k < r} u_k^T W D W^T u_k

The same holds of stacked weights that share ``V``. There the error of one weight is a sum over the
leading r x r block of a fixed matrix, so it comes for all ranks at once too.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from bondwise.fit.whitened import metric_norm, root


@dataclass(frozen=True, eq=False)
class Curve:
    """Squared output errors ``||(W - W~) X||^2`` of each weight, at every rank from 0.

    Attributes:
        fitting: (weights, 1 + ranks), on the tokens of the fit.
        held_out: the same on other tokens.
    """

    fitting: Float[Tensor, "weights ranks"]
    held_out: Float[Tensor, "weights ranks"]


@torch.no_grad()
def curve(
    weights: Sequence[Tensor],
    moment: Float[Tensor, "inp inp"],
    held_out: Float[Tensor, "inp inp"] | None = None,
) -> Curve:
    """Errors of low rank with a common ``V``, at every rank; of one weight, of plain low rank.

    Args:
        weights: each out_k x in, float64.
        moment: second moment of the tokens that it is fitted on, float64.
        held_out: of other tokens; the same ones where none is given.

    >>> W, C = torch.diag(torch.tensor([2.0, 1.0])).double(), torch.eye(2).double()
    >>> curve([W], C).held_out.round(decimals=6)
    tensor([[5., 1., 0.]], dtype=torch.float64)
    """
    factors = balance(weights, moment)
    scaled = [w * f for w, f in zip(weights, factors, strict=True)]
    left = left_vectors(torch.cat(scaled), moment)
    squares = torch.tensor(factors, dtype=left.dtype, device=left.device).unsqueeze(1) ** 2
    fitting = _errors(scaled, left, moment) / squares
    same = held_out is None
    return Curve(fitting, fitting if same else _errors(scaled, left, held_out) / squares)


@torch.no_grad()
def shared_cores(
    weights: Sequence[Tensor], moment: Float[Tensor, "inp inp"], rank: int
) -> tuple[list[Tensor], Tensor]:
    """``U_k`` (out_k x rank) of every weight and the common ``V`` (rank x in), in closed form.

    The sum of the *relative* squared errors is smallest: a stack of the weights as they are would
    leave nothing to one whose outputs are quiet.

    >>> W = torch.eye(4).double()
    >>> (first, second), V = shared_cores([W[:2], 9 * W[2:]], W, rank=4)
    >>> torch.allclose(second @ V, 9 * W[2:])
    True
    """
    factors = balance(weights, moment)
    stack = torch.cat([w * f for w, f in zip(weights, factors, strict=True)])
    left = left_vectors(stack, moment)[:, :rank]
    parts = left.split([len(w) for w in weights])
    return [u / f for u, f in zip(parts, factors, strict=True)], left.mT @ stack


def balance(weights: Sequence[Tensor], moment: Float[Tensor, "inp inp"]) -> list[float]:
    """What each weight is multiplied by, so that all have outputs of the same size; 1 for none."""
    return [1 / (metric_norm(w, moment) or 1.0) for w in weights]


def left_vectors(
    weight: Float[Tensor, "out inp"], moment: Float[Tensor, "inp inp"]
) -> Float[Tensor, "out ranks"]:
    """Left singular vectors of ``W L``, the largest value first; min(out, in) of them."""
    out, inp = weight.shape
    if out <= inp:
        return _vectors(weight @ moment @ weight.mT)
    half = root(moment)
    vectors = _vectors(half @ (weight.mT @ weight) @ half)
    return torch.linalg.qr(weight @ (half @ vectors)).Q


def _vectors(gram: Tensor) -> Tensor:
    return torch.linalg.eigh((gram + gram.mT) / 2).eigenvectors.flip(-1)


def _errors(weights: Sequence[Tensor], left: Tensor, moment: Tensor) -> Tensor:
    """``||(W_k - U_k U^T W) L||^2`` of all weights k at every rank: weights x (1 + ranks)."""
    right = left.mT @ torch.cat(list(weights))
    seen = right @ moment
    gram = seen @ right.mT
    rows: list[Tensor] = []
    for weight, own in zip(weights, left.split([len(w) for w in weights]), strict=True):
        cross = ((seen @ weight.mT) * own.mT).sum(1)
        block = (own.mT @ own) * gram
        grown = block.diagonal() + 2 * block.tril(-1).sum(1)  # what each rank adds to the block
        whole = ((weight @ moment) * weight).sum()
        rows.append(whole + torch.cat([cross.new_zeros(1), (grown - 2 * cross).cumsum(0)]))
    return torch.stack(rows).clamp(min=0)
