"""How the error falls with the rank: all ranks of low rank from one decomposition.

The best low rank in the metric ``C = L L^T`` is ``U_r U_r^T W``, with ``U_r`` the r leading left
singular vectors of ``W L`` (see `bondwise.fit.whitened`). What it costs on other tokens, whose
second moment is ``D``, needs no further fit:

    tr (W - U_r U_r^T W) D (W - U_r U_r^T W)^T = tr W D W^T - sum_{k < r} u_k^T W D W^T u_k
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from bondwise.fit.moment import root


@dataclass(frozen=True, eq=False)
class Curve:
    """Squared output errors ``||(W - W~) X||^2`` at every rank from 0.

    Attributes:
        fitting: (1 + ranks,), on the tokens of the fit.
        held_out: the same on other tokens.
    """

    fitting: Float[Tensor, " ranks"]
    held_out: Float[Tensor, " ranks"]


@torch.no_grad()
def curve(
    weight: Float[Tensor, "out inp"],
    moment: Float[Tensor, "inp inp"],
    held_out: Float[Tensor, "inp inp"] | None = None,
) -> Curve:
    """Errors of low rank at every rank.

    Args:
        weight: float64.
        moment: second moment of the tokens that it is fitted on, float64.
        held_out: of other tokens; the same ones where none is given.

    >>> W, C = torch.diag(torch.tensor([2.0, 1.0])).double(), torch.eye(2).double()
    >>> curve(W, C).held_out.round(decimals=6)
    tensor([5., 1., 0.], dtype=torch.float64)
    """
    right = left_vectors(weight, moment).mT @ weight
    fitting = _errors(weight, right, moment)
    return Curve(fitting, fitting if held_out is None else _errors(weight, right, held_out))


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


def _errors(weight: Tensor, right: Tensor, moment: Tensor) -> Tensor:
    """``||(W - U_r U_r^T W) L||^2`` at every rank r, where ``right`` is ``U^T W``."""
    whole, ranks = (((m @ moment) * m).sum(1) for m in (weight, right))
    return (whole.sum() - torch.cat([ranks.new_zeros(1), ranks.cumsum(0)])).clamp(min=0)
