"""Which columns of a weight to keep dense beside its low rank, and the fit of both at once.

With the columns J free, whatever the inputs of J can say about the others costs nothing. So the low
rank ``A B`` is fitted in what is left of the metric, its Schur complement, and the columns take up
the regression on the inputs of J:

    C' = C - C[:, J] C[J, J]^-1 C[J, :],    S = (W - A B) C[:, J] C[J, J]^-1
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from bondwise.choose.curves import left_vectors

SHARE = 100  # a remainder holds at most one in so many entries


@dataclass(frozen=True, eq=False)
class LowRankWithColumns:
    """``W ~ left right``, plus ``values`` (out x k) on the columns at ``positions``."""

    left: Tensor
    right: Tensor
    positions: Tensor
    values: Tensor

    def dense(self) -> Float[Tensor, "out inp"]:
        """The weight that it stands for."""
        return (self.left @ self.right).index_add(1, self.positions, self.values)


@torch.no_grad()
def loudest(
    weight: Float[Tensor, "out inp"], moment: Float[Tensor, "inp inp"], count: int
) -> Tensor:
    """The columns that lose most when half of the ranks are gone, ascending.

    >>> W = torch.eye(300).double()
    >>> loudest(W, torch.arange(1.0, 301).diag().double(), 3)
    tensor([147, 148, 149])
    """
    left = left_vectors(weight, moment)
    left = left[:, : left.shape[1] // 2]
    off = weight - left @ (left.mT @ weight)
    energy = (off * off).sum(0) * moment.diagonal()
    return energy.topk(count).indices.sort().values


def regression(moment: Float[Tensor, "inp inp"], positions: Tensor) -> Float[Tensor, "inp k"]:
    """``C[:, J] C[J, J]^-1``: how the inputs of J predict all inputs."""
    inner = moment[positions][:, positions]
    return moment[:, positions] @ torch.linalg.pinv(inner, hermitian=True)


def rest(
    moment: Float[Tensor, "inp inp"], positions: Tensor, predicted: Float[Tensor, "inp k"]
) -> Float[Tensor, "inp inp"]:
    """Second moment of what the prediction from the inputs of J leaves."""
    keep = torch.eye(len(moment), dtype=moment.dtype, device=moment.device)
    keep[:, positions] -= predicted
    return keep @ moment @ keep.mT


@torch.no_grad()
def low_rank_with_columns(
    weight: Float[Tensor, "out inp"], moment: Float[Tensor, "inp inp"], rank: int, count: int
) -> LowRankWithColumns:
    """The best low rank and dense columns together, for the columns that are `loudest`.

    >>> W = torch.eye(300).double()
    >>> W[:, 7] = 5.0
    >>> found = low_rank_with_columns(W, W.new_ones(300).diag(), rank=299, count=1)
    >>> torch.allclose(found.dense(), W)
    True
    """
    positions = loudest(weight, moment, count)
    predicted = regression(moment, positions)
    left = left_vectors(weight, rest(moment, positions, predicted))[:, :rank]
    right = left.mT @ weight
    return LowRankWithColumns(left, right, positions, (weight - left @ right) @ predicted)
