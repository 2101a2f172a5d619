"""Several processes that train one student: who is who, and what they agree on."""

from collections.abc import Sequence
from typing import Literal

import torch
import torch.distributed as dist


def world() -> int:
    """How many processes train together: those of torch's group, where there is one."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """Which of them this is, from 0."""
    return dist.get_rank() if dist.is_available() and dist.is_initialized() else 0


def agreed(
    values: Sequence[float], how: Literal["sum", "max", "first"], device: torch.device | None = None
) -> list[float]:
    """The sums or the largest of each value over all processes, or what the first one has.

    >>> agreed([1.0, 2.0], "sum")
    [1.0, 2.0]
    """
    if world() == 1:
        return list(values)
    on = torch.device("cpu") if device is None or dist.get_backend() == "gloo" else device
    both = torch.tensor(values, dtype=torch.float64, device=on)
    if how == "first":
        dist.broadcast(both, 0)
    else:
        dist.all_reduce(both, dist.ReduceOp.SUM if how == "sum" else dist.ReduceOp.MAX)
    return both.tolist()


def wait() -> None:
    """Until all processes are here."""
    agreed([0.0], "sum", torch.device("cuda") if torch.cuda.is_available() else None)
