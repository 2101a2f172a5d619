"""How a convolution moves over its input: stride, padding, dilation and groups, axis by axis."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import prod
from typing import Any

import torch.nn.functional as F
from torch import Tensor

from bondwise.errors import ShapeError

Sizes = tuple[int, ...]
_FORWARD = (F.conv1d, F.conv2d, F.conv3d)
_TRANSPOSED = (F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d)


@dataclass(frozen=True)
class Geometry:
    """A convolution without its weight, or a transposed one.

    Attributes:
        kernel: its sizes, one for each axis.
        stride: as torch has them, one for each axis.
        padding: before and after each axis.
        dilation: one for each axis.
        groups: of channels that do not meet.
        mode: what is padded with: "zeros", "reflect", "replicate", "circular".
        transposed: whether it spreads each input over a kernel of outputs.
        output_padding: of a transposed one, one for each axis.
    """

    kernel: Sizes
    stride: Sizes
    padding: tuple[tuple[int, int], ...]
    dilation: Sizes
    groups: int = 1
    mode: str = "zeros"
    transposed: bool = False
    output_padding: Sizes = ()

    @classmethod
    def of(cls, module: Any) -> "Geometry":
        """That of a module with torch's attributes.

        >>> from torch import nn
        >>> Geometry.of(nn.Conv1d(2, 3, 4, padding="same", dilation=3)).padding
        ((4, 5),)
        """
        kernel, dilation = tuple(module.kernel_size), tuple(module.dilation)
        if module.padding == "same":  # as torch: the larger half behind
            totals = [d * (k - 1) for d, k in zip(dilation, kernel, strict=True)]
            padding = tuple((total // 2, total - total // 2) for total in totals)
        elif module.padding == "valid":
            padding = ((0, 0),) * len(kernel)
        else:
            padding = tuple((int(p), int(p)) for p in module.padding)
        return cls(
            kernel,
            tuple(module.stride),
            padding,
            dilation,
            module.groups,
            module.padding_mode,
            module.transposed,
            tuple(module.output_padding) if module.transposed else (),
        )

    @property
    def axes(self) -> int:
        """How many the kernel has."""
        return len(self.kernel)

    def size(self, padded: Tensor) -> Sizes:
        """The size of the input that `pad` made (.., *spatial) of."""
        sides = [0 if self.transposed else sum(sides) for sides in self.padding]
        where = padded.shape[-self.axes :]
        return tuple(n - side for n, side in zip(where, sides, strict=True))

    @property
    def taps(self) -> int:
        """Numbers of a kernel between two channels."""
        return prod(self.kernel)

    def extent(self, axis: int, size: int) -> int:
        """The output's size along an axis, at least 1, for an input's."""
        reach = self.dilation[axis] * (self.kernel[axis] - 1)
        padded = sum(self.padding[axis])
        if self.transposed:
            size = (size - 1) * self.stride[axis] - padded + reach + self.output_padding[axis] + 1
        else:
            size = (size + padded - reach - 1) // self.stride[axis] + 1
        return max(1, size)

    def check(self, sizes: Sequence[int]) -> None:
        """Refuse an input that is smaller, with its padding, than the kernel.

        Raises:
            ShapeError: naming both.
        """
        if self.transposed:
            return
        for n, sides, k, d in zip(sizes, self.padding, self.kernel, self.dilation, strict=True):
            if n + sum(sides) < d * (k - 1) + 1:
                shown = [" x ".join(map(str, each)) for each in (sizes, self.kernel)]
                raise ShapeError(
                    f"An input of {shown[0]} came for a kernel of {shown[1]}, which is larger even "
                    "with the padding; give a larger input, or more padding."
                )

    def towards(self, sizes: Sizes, wanted: Sizes) -> "Geometry":
        """The same transposed convolution with the output padding that gives a size.

        Raises:
            ShapeError: it is none that is transposed, or no padding below the stride gives it.
        """
        plain = replace(self, output_padding=(0,) * self.axes)
        least = plain.extents(sizes) if self.transposed else ()
        more = tuple(n - m for n, m in zip(wanted, least, strict=False))
        if len(more) < self.axes or not all(
            0 <= n < step for n, step in zip(more, self.stride, strict=True)
        ):
            most = tuple(m + s - 1 for m, s in zip(least, self.stride, strict=False))
            raise ShapeError(
                f"output_size={wanted} came for an input of {sizes}; a transposed convolution of "
                f"this stride gives {least} to {most}."
                if self.transposed
                else f"output_size={wanted} came for a convolution that is not transposed; drop it."
            )
        return replace(self, output_padding=more)

    def extents(self, sizes: Sizes) -> Sizes:
        """The output's sizes for an input's."""
        return tuple(self.extent(axis, size) for axis, size in enumerate(sizes))

    def pad(self, x: Tensor, axes: Sizes | None = None) -> Tensor:
        """An input (.., *spatial) with its padding along some axes, or all."""
        chosen = range(self.axes) if axes is None else axes
        if self.transposed or not any(any(self.padding[axis]) for axis in chosen):
            return x
        sides = [side for a in reversed(range(self.axes))
                 for side in (self.padding[a] if a in chosen else (0, 0))]  # fmt: skip
        return F.pad(x, sides, mode="constant" if self.mode == "zeros" else self.mode)

    def along(self, axes: Sizes, groups: int) -> "Geometry":
        """The same along some axes, between other groups; along the others the kernel has one tap.

        >>> own = Geometry((3, 5), (2, 2), ((1, 1), (2, 2)), (1, 1)).along((1,), 4)
        >>> own.kernel, own.stride, own.padding, own.groups
        ((1, 5), (1, 2), ((0, 0), (2, 2)), 4)
        """

        def each(own: Sequence[Any], other: Any) -> tuple[Any, ...]:
            return tuple(n if a in axes else other for a, n in enumerate(own))

        return replace(
            self,
            kernel=each(self.kernel, 1),
            stride=each(self.stride, 1),
            padding=each(self.padding, (0, 0)),
            dilation=each(self.dilation, 1),
            groups=groups,
            output_padding=each(self.output_padding, 0),
        )

    @property
    def even(self) -> bool:
        """Whether torch's own padding does: zeros, as many before as behind."""
        return self.mode == "zeros" and all(before == after for before, after in self.padding)

    def convolve(
        self,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None = None,
        axes: Sizes | None = None,
        groups: int | None = None,
    ) -> Tensor:
        """A convolution along some axes, or all; along the others the kernel has one tap.

        Args:
            x: (n, groups * in, *spatial).
            weight: (groups * out, in, *kernel); of a transposed one (groups * in, out, *kernel).
            bias: (groups * out,).
            axes: those that are convolved.
            groups: of channels; those of the geometry by default.
        """
        chosen = tuple(range(self.axes)) if axes is None else axes
        groups = self.groups if groups is None else groups
        stride = [self.stride[a] if a in chosen else 1 for a in range(self.axes)]
        dilation = [self.dilation[a] if a in chosen else 1 for a in range(self.axes)]
        even = self.mode == "zeros" and all(
            self.padding[a][0] == self.padding[a][1] for a in chosen
        )
        if not even:
            x = self.pad(x, chosen)
        padding = [self.padding[a][0] if a in chosen and even else 0 for a in range(self.axes)]
        if self.transposed:
            run = _TRANSPOSED[self.axes - 1]
            more = [self.output_padding[a] if a in chosen else 0 for a in range(self.axes)]
            return run(x, weight, bias, stride, padding, more, groups, dilation)
        flat = self.axes == 2 and x.shape[3] == weight.shape[3] == 1
        if flat and (stride[1], padding[1]) == (1, 0):
            # kernels work along the last axis: (1, k) takes half the time of (k, 1)
            step, before, apart = stride[::-1], padding[::-1], dilation[::-1]
            return F.conv2d(x.mT, weight.mT, bias, step, before, apart, groups).mT
        return _FORWARD[self.axes - 1](x, weight, bias, stride, padding, dilation, groups)

    def run(self, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        """A convolution along all axes, as torch does it."""
        even = self.even
        x = x if even else self.pad(x)
        padding = tuple(before if even else 0 for before, _ in self.padding)
        if not self.transposed:
            run = _FORWARD[self.axes - 1]
            return run(x, weight, bias, self.stride, padding, self.dilation, self.groups)
        run, more = _TRANSPOSED[self.axes - 1], self.output_padding
        return run(x, weight, bias, self.stride, padding, more, self.groups, self.dilation)

    def weight(self, matrix: Tensor) -> Tensor:
        """The weight as torch has it, of the matrix: (groups * out, in * taps)."""
        rows = matrix.reshape(self.groups, len(matrix) // self.groups, -1, *self.kernel)
        if self.transposed:
            rows = rows.transpose(1, 2)
        return rows.reshape(-1, *rows.shape[2:])

    def matrix(self, weight: Tensor) -> Tensor:
        """The matrix, (groups * out, in * taps), of the weight as torch has it."""
        rows = weight.reshape(self.groups, len(weight) // self.groups, *weight.shape[1:])
        if self.transposed:
            rows = rows.transpose(1, 2)
        return rows.reshape(rows.shape[0] * rows.shape[1], -1)


def turned(x: Tensor) -> Tensor:
    """A view (n, c, h, w) as (n, c, w, h), one of these two being 1, that lies as torch has it.

    Of channels that are last they are so again, also in the strides of axes of size 1, which tell
    torch what to write.

    >>> import torch
    >>> x = torch.zeros(2, 3, 5, 1).to(memory_format=torch.channels_last)
    >>> turned(x).stride()
    (15, 1, 15, 3)
    """
    count, channels, height, width = x.shape
    if x.is_contiguous():
        return x.view(count, channels, width, height)
    return x.permute(0, 2, 3, 1).reshape(count, width, height, channels).permute(0, 3, 1, 2)


def batched(x: Tensor, axes: int, channels: int) -> tuple[Tensor, bool]:
    """An input with its batch, and whether that is new.

    Raises:
        ShapeError: neither (n, channels, *spatial) nor (channels, *spatial).
    """
    alone = x.ndim == axes + 1
    if x.ndim not in (axes + 1, axes + 2) or x.shape[-axes - 1] != channels:
        raise ShapeError(
            f"An input of shape {tuple(x.shape)} came; write (samples, {channels}, "
            f"{', '.join(('depth', 'height', 'width')[3 - axes :])})."
        )
    return (x[None] if alone else x), alone
