"""Which rows of a tall matrix make the best identity block, and how their positions are stored."""

import torch
from jaxtyping import Float, Integer
from torch import Tensor

from bondwise.errors import ShapeError

BOUND = 1.05
"""Largest entry, in absolute value, that is left beside an identity block."""


def dominant_rows(Q: Float[Tensor, "rows rank"]) -> Integer[Tensor, "rank"]:
    """Rows p, ascending, of near maximum volume: no entry of ``Q Q[p]^-1`` is above `BOUND`.

    Pivoted LU gives the first choice; then the row with the largest entry takes the place that it
    points at, until none is above the bound (Goreinov, Tyrtyshnikov and Zamarashkin 1997; Goreinov
    et al. 2010). Every swap raises the volume by the bound or more; at most 100 + 10 rank are made
    (random matrices take about a tenth of their rank).

    >>> dominant_rows(torch.tensor([[0.1, 0.0], [1.0, 0.0], [0.0, 0.2], [0.5, 0.9]])).tolist()
    [1, 3]
    """
    count, rank = Q.shape
    order = list(range(count))
    for k, swap in enumerate(torch.linalg.lu_factor(Q)[1].tolist()):
        order[k], order[swap - 1] = order[swap - 1], order[k]
    chosen = order[:rank]
    entries = torch.linalg.solve(Q[chosen], Q, left=False)
    for _ in range(100 + 10 * rank):
        row, place = divmod(int(entries.abs().argmax()), rank)
        largest = float(entries[row, place])
        if abs(largest) <= BOUND:
            break
        change = entries[row].clone()
        change[place] -= 1
        entries.addr_(entries[:, place].clone(), change, alpha=-1 / largest)
        chosen[place] = row
    return torch.tensor(sorted(chosen), device=Q.device)


def pack(positions: Integer[Tensor, "chosen"], count: int) -> Tensor:
    """Positions out of ``count`` as stored: a mask of bits (uint8), or int32 where that is smaller.

    >>> pack(torch.tensor([0, 6]), 9).tolist()      # 1000 0010 0...
    [130, 0]
    """
    if packed(len(positions), count)[1] == torch.int32:
        return positions.int()
    bits = torch.zeros(-(-count // 8) * 8, dtype=torch.uint8, device=positions.device)
    bits[positions] = 1
    weights = 2 ** torch.arange(7, -1, -1, device=positions.device)
    return (bits.view(-1, 8) * weights).sum(1).to(torch.uint8)


def packed(chosen: int, count: int) -> tuple[int, torch.dtype]:
    """Length and dtype of ``chosen`` positions out of ``count`` as `pack` stores them."""
    return (-(-count // 8), torch.uint8) if count <= 32 * chosen else (chosen, torch.int32)


def unpack(stored: Tensor, count: int) -> Tensor:
    """The mask (bool, ``count``) of stored positions.

    Raises:
        ShapeError: positions that repeat, are out of order, or lie outside.

    >>> unpack(torch.tensor([1, 3], dtype=torch.int32), 4)
    tensor([False,  True, False,  True])
    """
    if stored.dtype != torch.uint8:
        at = stored.long()
        if bool((at < 0).any() | (at >= count).any() | (at[1:] <= at[:-1]).any()):
            raise ShapeError(
                f"Positions {at[:3].tolist()}.. came out of {count}; write each once, in ascending "
                f"order, from 0 to {count - 1}."
            )
        return torch.zeros(count, dtype=torch.bool, device=stored.device).index_fill(0, at, True)
    shifts = torch.arange(7, -1, -1, device=stored.device, dtype=torch.uint8)
    return ((stored[:, None] >> shifts) & 1).reshape(-1)[:count].bool()
