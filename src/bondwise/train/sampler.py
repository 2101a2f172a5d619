"""Which samples a step sees: from the seed and the number of the step alone."""

from collections.abc import Sequence
from functools import lru_cache
from math import ceil

import torch

from bondwise.errors import BudgetError
from bondwise.train.processes import rank, world


def sample_order(step: int, batch: int, count: int, seed: int) -> list[int]:
    """The samples of a step, of all processes together.

    The first time through they come in their own order, which is random already; every other time
    in another one.

    >>> sample_order(0, 3, 4, 0), sample_order(1, 3, 4, 0)[0]
    ([0, 1, 2], 3)
    """
    places = range(step * batch, (step + 1) * batch)
    return [_order(place // count, count, seed)[place % count] for place in places]


@lru_cache(maxsize=4)
def _order(again: int, count: int, seed: int) -> Sequence[int]:
    """The order of the samples the n-th time through."""
    if not again:
        return range(count)
    draw = torch.Generator().manual_seed(seed + again)
    return torch.randperm(count, generator=draw).tolist()


def micro_batches(batch: int, micro: int) -> list[range]:
    """The places in a batch that this process has, some at a time.

    Raises:
        BudgetError: a batch that cannot be shared evenly.

    >>> micro_batches(8, 3)
    [range(0, 3), range(3, 6), range(6, 8)]
    """
    many = world()
    if batch % many:
        raise BudgetError(
            f"batch={batch} came for {many} processes; write a multiple such as "
            f"{many * ceil(batch / many)}."
        )
    own = batch // many
    start = own * rank()
    return [range(k, min(k + micro, start + own)) for k in range(start, start + own, micro)]


def padded_shard(count: int) -> list[tuple[int, float]]:
    """The samples that this process judges, each with its weight: as many in every process.

    >>> padded_shard(2)
    [(0, 1.0), (1, 1.0)]
    """
    many = world()
    own = range(rank(), ceil(count / many) * many, many)
    return [(k % count, float(k < count)) for k in own]


def chunked(items: Sequence[tuple[int, float]], size: int) -> list[list[tuple[int, float]]]:
    """Some at a time."""
    return [list(items[k : k + size]) for k in range(0, len(items), size)]
