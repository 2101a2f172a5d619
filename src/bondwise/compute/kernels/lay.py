"""A convolution whose weight is laid out beforehand, and whose input lies as its kernels want it.

Kernels work along the last axis, and most of them fastest with the channels last. So one axis is
seen as the second of two, and an axis of size 1 comes first. Where the channels are last inside,
the input is copied before the first step and the output after the last, unless it came that way.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor

from bondwise.compute.fast.ready import Ready, onednn_has
from bondwise.compute.kernels.geometry import Geometry, Sizes, turned

Lay = Callable[[Tensor, Geometry, Sizes], Ready]
"""Lays out a weight (as torch has it) for inputs of a shape (n, channels, *spatial)."""


def last_format(axes: int) -> torch.memory_format:
    """Channels last, of an input with so many axes."""
    return torch.channels_last_3d if axes == 3 else torch.channels_last


def lies_last(x: Tensor) -> bool:
    """Whether the channels of an input (n, channels, *spatial) lie last in memory.

    >>> lies_last(as_last(torch.zeros(2, 3, 4, 4))), lies_last(as_last(torch.zeros(2, 1, 4, 4)))
    (True, True)
    >>> lies_last(torch.zeros(2, 1, 4, 4)), lies_last(torch.zeros(2, 3, 1, 1))
    (False, False)
    """
    return x.stride(1) == 1 and any(n != 1 for n in x.shape[2:])


def as_last(x: Tensor) -> Tensor:
    """An input with its channels last, also in the strides of axes of size 1."""
    if x.shape[1] > 1 and x.ndim > 3:
        return x.contiguous(memory_format=last_format(x.ndim - 2))
    rows = x.movedim(1, -1).contiguous()
    if x.ndim > 3:  # of one axis torch knows no such order, and reads other strides otherwise
        rows = rows.reshape(-1).view(rows.shape)
    return rows.movedim(-1, 1)


@dataclass(frozen=True)
class Frame:
    """How the input of a convolution is seen.

    Attributes:
        kind: "line": one axis, as rows of height 1; "column": of width 1, turned to such rows;
            "plain": as it is.
    """

    kind: Literal["plain", "line", "column"] = "plain"

    @classmethod
    def of(cls, geometry: Geometry, size: Sizes) -> "Frame":
        """That of inputs of a size.

        >>> Frame.of(Geometry((5, 1), (2, 1), ((2, 2), (0, 0)), (1, 1)), (9, 1)).kind
        'column'
        """
        if geometry.axes == 1:
            return cls("line")
        flat = geometry.axes == 2 and (size[1], geometry.kernel[1], geometry.stride[1]) == (1, 1, 1)
        still = flat and geometry.padding[1] == (0, 0) and not any(geometry.output_padding[1:])
        return cls("column" if still else "plain")

    def geometry(self, own: Geometry) -> Geometry:
        """The convolution as it is run."""
        if self.kind == "plain":
            return own
        line, more = self.kind == "line", own.output_padding
        return replace(
            own,
            kernel=(1, *own.kernel) if line else own.kernel[::-1],
            stride=(1, *own.stride) if line else own.stride[::-1],
            padding=((0, 0), *own.padding) if line else own.padding[::-1],
            dilation=(1, *own.dilation) if line else own.dilation[::-1],
            output_padding=(0, *more) if line and more else more[::-1],
        )

    def weight(self, own: Tensor) -> Tensor:
        """A weight, as torch has it, as it is run."""
        if self.kind == "plain":
            return own
        return own.unsqueeze(2) if self.kind == "line" else own.mT

    def size(self, own: Sizes) -> Sizes:
        """An input's."""
        return {"plain": own, "line": (1, *own), "column": own[::-1]}[self.kind]

    def enter(self, x: Tensor) -> Tensor:
        """An input as it is run; a view."""
        if self.kind == "plain":
            return x
        return x.unsqueeze(2) if self.kind == "line" else turned(x)

    def leave(self, y: Tensor, last: bool) -> Tensor:
        """What was made, with its channels last or not, in the strides that torch gives it."""
        count, channels, *where = y.shape
        if self.kind != "plain":
            where = where[1:] if self.kind == "line" else where[::-1]
        if not last:
            return y.contiguous().view(count, channels, *where)
        rows = y.movedim(1, -1).contiguous().view(count, *where, channels)
        return rows.movedim(-1, 1)


def plain(weight: Tensor, geometry: Geometry, shape: Sizes) -> Ready:  # noqa: ARG001
    """The weight as torch makes it: the output lies as the input."""
    own = weight.contiguous()
    return Ready("", (own,), lambda x, bias: geometry.run(x, own, bias))


def last(weight: Tensor, geometry: Geometry, shape: Sizes) -> Ready:  # noqa: ARG001
    """Its channels last, and so are the output's."""
    own = as_last(weight)
    return Ready("", (own,), lambda x, bias: geometry.run(x, own, bias))


def packed(weight: Tensor, geometry: Geometry, shape: Sizes) -> Ready:
    """The weight in the blocks that oneDNN wants; the output's channels are last.

    It is right for inputs of any shape, and fastest for the one given.
    """
    kernels: Any = torch.ops.mkldnn
    even = geometry.even
    padding = [before if even else 0 for before, _ in geometry.padding]
    sides = [0 if even or geometry.transposed else sum(pair) for pair in geometry.padding]
    where = [n + more for n, more in zip(shape[2:], sides, strict=True)]
    moves = [list(geometry.stride), list(geometry.dilation), geometry.groups]
    if geometry.transposed:
        moves.insert(0, list(geometry.output_padding))
        make = kernels._reorder_convolution_transpose_weight
        product = kernels._convolution_transpose_pointwise
    else:
        make, product = kernels._reorder_convolution_weight, kernels._convolution_pointwise
    own = make(weight.contiguous(), padding, *moves, [*shape[:2], *where])

    def run(x: Tensor, bias: Tensor | None) -> Tensor:
        x = x if even else geometry.pad(x)
        return product(x, own, bias, padding, *moves, "none", [], "")

    return Ready("", (own,), run)


def packs(weight: Tensor, geometry: Geometry) -> bool:
    """Whether oneDNN has such a convolution for such numbers here."""
    if any(more >= s for more, s in zip(geometry.output_padding, geometry.stride, strict=False)):
        return False
    return onednn_has("_reorder_convolution_weight", weight)
