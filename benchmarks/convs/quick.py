"""Convolutions along one axis of two, run along the other: the same sums, in half the time.

The processor's kernels work on a row at a time, and a k x 1 kernel over inputs of width 1 leaves
them rows of one number. Only judging and healing run so, for every method alike; what is timed runs
as its makers wrote it.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch.nn.functional as F
from torch import Tensor

_conv2d = F.conv2d


def _turned(value: Any) -> Any:
    return value if isinstance(value, int | str) else tuple(value)[::-1]


def conv2d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> Tensor:
    """``F.conv2d``, with the two axes in the other order where the second has size 1."""
    if x.ndim != 4 or x.shape[3] != 1 or weight.shape[3] != 1:
        return _conv2d(x, weight, bias, stride, padding, dilation, groups)
    flat = x.contiguous().view(*x.shape[:2], 1, -1)
    thin = weight.transpose(2, 3)
    out = _conv2d(flat, thin, bias, _turned(stride), _turned(padding), _turned(dilation), groups)
    return out.transpose(2, 3)


@contextmanager
def turned() -> Iterator[None]:
    """Everything that calls ``F.conv2d`` in here gets the one above."""
    F.conv2d = conv2d
    try:
        yield
    finally:
        F.conv2d = _conv2d
