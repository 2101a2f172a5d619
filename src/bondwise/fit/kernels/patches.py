"""What a convolution's matrix meets: second moments of the patches of its inputs.

A patch is the piece of the input under the kernel at one place, (in, *kernel) row-major. Where it
is small its full second moment is counted. Where it is large, the two marginals of that moment are:
of the channels (over all taps) and of the taps (over all channels). Their product has its trace,
and is it where the two do not depend on each other.
"""

from collections.abc import Sequence
from math import prod

import torch
from torch import Tensor

from bondwise.errors import DataError, ShapeError
from bondwise.fit.metric import DEPENDENCE, Kronecker, Metric

PATCH = 2304  # numbers of a patch up to which its full second moment is counted
Weighing = Metric | Kronecker | tuple[Metric | Kronecker, ...]
ROWS = 8192  # patches, or positions, that are counted of one input
SMALL = 640  # numbers of a patch up to which products of patches are in float64
_ENTRIES = 2**22  # of the patches that the moment of the taps is counted of


class Patches:
    """Accumulates second moments of patches over inputs of a convolution, padded by the caller.

    Of an input with more than 8,192 patches, as many are drawn, the same ones in every run; what is
    counted keeps its scale.

    A transposed convolution has no patches: every position meets all taps, so its metric is that of
    the channels, and the identity over the taps.

    Args:
        channels: of the input, all groups together.
        kernel: size along each spatial dimension, one to three.
        stride: of the patches; a number for each dimension, or one for all.
        dilation: between taps.
        groups: of the channels; each has a metric of its own.
        transposed: whether the convolution is.
        device: where sums are kept; that of the first input by default.
        dtype: of the sums.

    >>> patches = Patches(3, (2, 2))
    >>> patches.add(torch.ones(5, 3, 4, 4))
    >>> patches.tokens, patches.metric().second_moment.shape
    (45, torch.Size([12, 12]))
    >>> patches = Patches(1024, (64,))
    >>> patches.add(torch.ones(1, 1024, 80))
    >>> patches.metric().sizes
    (1024, 64)

    Raises:
        ShapeError: sizes below 1, or channels that do not split into the groups.
    """

    def __init__(
        self,
        channels: int,
        kernel: Sequence[int],
        *,
        stride: int | Sequence[int] = 1,
        dilation: int | Sequence[int] = 1,
        groups: int = 1,
        transposed: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        self.kernel = tuple(kernel)
        self.stride, self.dilation = _each(stride, self.kernel), _each(dilation, self.kernel)
        if min(channels, groups, *self.kernel, *self.stride, *self.dilation) < 1 or (
            channels % groups
        ):
            raise ShapeError(
                f"Patches of {channels} channels in {groups} groups under a kernel of "
                f"{self.kernel} came; give sizes of at least 1 and channels that split evenly."
            )
        self.groups, self.inp, self.taps = groups, channels // groups, prod(self.kernel)
        self.transposed, self.device, self.dtype = transposed, device, dtype
        self.whole = not transposed and self.inp * self.taps <= PATCH
        self.tokens = 0
        self._rows = 0.0  # vectors in the sum: patches, or positions
        self._met = 0.0  # how often the taps met those positions
        self._sum: Tensor | None = None
        self._kernel: Tensor | None = None

    @torch.no_grad()
    def add(self, x: Tensor) -> None:
        """Count the patches of inputs (n, channels, *spatial), already padded.

        Raises:
            DataError: another shape, an input smaller than the kernel, or NaN or infinity.
        """
        self._check(x)
        if not len(x):
            return
        x = x.detach().to(self._sums(x).device)
        counts = [1] * len(self.kernel) if self.transposed else self._places(x.shape[2:])
        patches = len(x) * (prod(x.shape[2:]) if self.transposed else prod(counts))
        draw = torch.Generator().manual_seed(self.tokens)
        self.tokens += patches
        if self.whole:
            rows = self._drawn(x, draw, ROWS).flatten(2)
            self._add_moment(rows, len(rows))
            self._rows += len(rows)
            return
        self._add_channels(x, draw)
        if not self.transposed:
            most = max(1, min(ROWS, _ENTRIES // (self.groups * self.inp * self.taps)))
            rows = self._drawn(x, draw, most).to(self.dtype)
            taps = rows.movedim(1, 0).reshape(self.groups, -1, self.taps)
            assert self._kernel is not None
            self._kernel.baddbmm_(taps.mT, taps, alpha=patches / len(rows))

    @property
    def empty(self) -> bool:
        """Whether there is no metric to be had: nothing was counted, or nothing but zeros."""
        return self._sum is None or not bool(self._sum.any())

    def metric(self, shrinkage: float | None = None) -> Weighing:
        """The metric of what was counted, or one for each group where there are more than one.

        Shrunk as `Moments.metric` is, of a product the channels alone. A group whose inputs were
        all zero has the identity.

        Raises:
            DataError: no input was counted, or all of them were zero.
        """
        if self._sum is None or self.tokens == 0:
            raise DataError("No inputs were counted; call add(x) with at least one input first.")
        if self.empty:
            raise DataError(
                f"All {self.tokens} patches were zero; a metric needs inputs that are not."
            )
        found = tuple(self._of_group(group, shrinkage) for group in range(self.groups))
        return found[0] if self.groups == 1 else found

    def _of_group(self, group: int, shrinkage: float | None) -> Metric | Kronecker:
        assert self._sum is not None
        assert self._kernel is not None
        moment, count = self._sum[group], max(1, round(self._rows))
        moment = (
            moment + moment.mT
        ) / 2  # a product of many rows is not symmetric to the last bits
        if not moment.any():
            moment = torch.eye(len(moment), dtype=self.dtype, device=moment.device)
        if shrinkage is None:
            shrinkage = len(moment) / (len(moment) + count / DEPENDENCE)
        if self.whole:
            return Metric(moment, count, shrinkage)
        kernel = (self._kernel[group] + self._kernel[group].mT) / 2
        if not kernel.any():
            kernel = torch.eye(self.taps, dtype=self.dtype, device=kernel.device)
        kernel *= self.taps / kernel.trace()
        return Kronecker(Metric(moment * (self._rows / self._met), count, shrinkage), kernel)

    def _add_channels(self, x: Tensor, draw: torch.Generator) -> None:
        """Every position as often as taps meet it."""
        weights = self._meetings(x.shape[2:], x.device)
        total = len(x) * prod(x.shape[2:])
        at = _draw(total, ROWS, draw).to(x.device)
        rows = x.movedim(1, -1)[torch.unravel_index(at, (len(x), *x.shape[2:]))]
        often = weights.flatten()[at % weights.numel()].to(self.dtype)
        self._add_moment(rows, len(at), often * (total / len(at)))
        self._rows += total
        self._met += float(weights.sum()) * len(x)

    def _add_moment(self, rows: Tensor, count: int, often: Tensor | None = None) -> None:
        assert self._sum is not None
        wide = rows.to(self.dtype).reshape(count, self.groups, -1).movedim(1, 0)
        if wide.shape[-1] <= SMALL:  # rows that are all alike round to no second moment else
            wide = wide.double()
        left = wide if often is None else wide * often[:, None]
        with torch.autocast(wide.device.type, enabled=False):  # blocks may run in bfloat16
            self._sum += torch.bmm(left.to(wide.dtype).mT, wide).to(self._sum.dtype)

    def _drawn(self, x: Tensor, draw: torch.Generator, most: int) -> Tensor:
        """At most so many patches: (rows, groups, in, taps)."""
        views = x
        for axis, (size, stride, gap) in enumerate(
            zip(self.kernel, self.stride, self.dilation, strict=True)
        ):
            views = views.unfold(2 + axis, gap * (size - 1) + 1, stride)[..., ::gap]
        places = views.movedim(1, 1 + len(self.kernel))  # n, *places, channels, *kernel
        sizes = places.shape[: 1 + len(self.kernel)]
        at = _draw(prod(sizes), most, draw).to(x.device)
        rows = places[torch.unravel_index(at, sizes)]
        return rows.reshape(len(at), self.groups, self.inp, self.taps)

    def _places(self, spatial: Sequence[int]) -> list[int]:
        """How many patches there are along each dimension."""
        return [
            (n - gap * (size - 1) - 1) // stride + 1
            for n, size, stride, gap in zip(
                spatial, self.kernel, self.stride, self.dilation, strict=True
            )
        ]

    def _meetings(self, spatial: Sequence[int], device: torch.device) -> Tensor:
        """How many patches each position is in."""
        if self.transposed:
            return torch.ones(*spatial, device=device)
        often = torch.ones((), device=device)
        for n, count, size, stride, gap in zip(
            spatial, self._places(spatial), self.kernel, self.stride, self.dilation, strict=True
        ):
            starts = stride * torch.arange(count, device=device)
            taps = gap * torch.arange(size, device=device)
            along = torch.bincount((starts[:, None] + taps).flatten(), minlength=n)
            often = often[..., None] * along
        return often

    def _sums(self, x: Tensor) -> Tensor:
        if self._sum is None:
            device = x.device if self.device is None else self.device
            size = self.inp * self.taps if self.whole else self.inp
            self._sum = torch.zeros(self.groups, size, size, device=device, dtype=self.dtype)
            taps = 0 if self.whole else self.taps
            self._kernel = torch.zeros(self.groups, taps, taps, device=device, dtype=self.dtype)
        return self._sum

    def _check(self, x: Tensor) -> None:
        channels, dims = self.groups * self.inp, len(self.kernel)
        if x.ndim != 2 + dims or x.shape[1] != channels:
            raise DataError(
                f"Inputs of shape {tuple(x.shape)} came; give (samples, {channels}, and {dims} "
                "spatial sizes)."
            )
        if not self.transposed and min(self._places(x.shape[2:])) < 1:
            raise DataError(
                f"Inputs of spatial size {tuple(x.shape[2:])} came, smaller than a kernel of "
                f"{self.kernel}; give larger ones, or pad them."
            )
        if not torch.isfinite(x).all():
            raise DataError("Inputs with NaN or infinity came; clean the data or the model first.")


def _draw(total: int, most: int, draw: torch.Generator) -> Tensor:
    if total <= most:
        return torch.arange(total)
    return torch.randperm(total, generator=draw)[:most].sort().values


def _each(value: int | Sequence[int], kernel: Sequence[int]) -> tuple[int, ...]:
    found = (value,) * len(kernel) if isinstance(value, int) else tuple(value)
    if len(found) != len(kernel):
        raise ShapeError(
            f"{len(found)} numbers came for a kernel of {tuple(kernel)}; give one for each size."
        )
    return found
