"""The metric of a convolution: second moments of the patches that its kernel meets.

A patch is one row of the matrix ``in * kernel``: the inputs that one output is a sum over. Where
that is too wide for a full second moment, it is taken as a product of channels and kernel.
"""

from math import ceil, prod

import torch
from torch import Tensor

from bondwise.compute.geometry import Geometry
from bondwise.errors import DataError
from bondwise.fit.metric import Kronecker, Metric

PATCH = 2304  # numbers of a patch (256 channels of 3 x 3) up to which its moment is full
ROWS = 4096  # patches of a batch that are looked at, evenly spread
FEW = 64  # of the channels of a patch that the kernel's moment is taken from

Weighing = Metric | Kronecker | tuple[Metric | Kronecker, ...]


class Patches:
    """Accumulates the metric of a convolution over batches of what enters it.

    Args:
        geometry: of the convolution.
        channels: that enter.
        device: where the sums are.

    >>> patches = Patches(Geometry((3,), (1,), ((0, 0),), (1,)), 2)
    >>> patches.add(torch.randn(4, 2, 9))       # 7 patches each, of 2 channels and 3 taps
    >>> patches.tokens, patches.metric().second_moment.shape
    (28, torch.Size([6, 6]))
    """

    def __init__(
        self, geometry: Geometry, channels: int, device: torch.device | None = None
    ) -> None:
        self.geometry, self.tokens = geometry, 0
        groups, taps = geometry.groups, geometry.taps
        self.inputs = channels // groups
        self.full = self.inputs * taps <= PATCH and not geometry.transposed
        size = self.inputs * taps if self.full else self.inputs
        self.moment = torch.zeros(groups, size, size, device=device)
        self.kernel = torch.zeros(taps, taps, device=device)

    @classmethod
    def of(cls, geometry: Geometry, x: Tensor) -> "Patches":
        """Those of a convolution that is given ``x``."""
        return cls(geometry, x.shape[1], x.device)

    @torch.no_grad()
    def add(self, x: Tensor) -> None:
        """Count what enters, with its padding: (n, channels, *spatial).

        Raises:
            DataError: no batch of images, or a value that is NaN or infinite.
        """
        geometry = self.geometry
        if x.ndim != geometry.axes + 2 or x.shape[1] != self.inputs * geometry.groups:
            raise DataError(
                f"Inputs of shape {tuple(x.shape)} came; write (samples, "
                f"{self.inputs * geometry.groups} channels) and {geometry.axes} sizes."
            )
        if not torch.isfinite(x).all():
            raise DataError("Inputs with NaN or infinity came; clean the data or the model first.")
        if geometry.transposed:
            self._count(_some(x.movedim(1, -1), geometry.axes))
            return
        rows = _some(patches(x, geometry), geometry.axes)  # (rows, channels, taps)
        if self.full:
            self._count(rows)
            return
        self._count(rows[..., rows.shape[-1] // 2])  # one tap: the channels at one position
        step = max(1, rows.shape[1] // FEW)
        taps = rows[: ROWS // 8, ::step].flatten(0, 1)
        self.kernel.addmm_(taps.T, taps)

    def _count(self, rows: Tensor) -> None:
        grouped = rows.reshape(len(rows), len(self.moment), -1).transpose(0, 1).float()
        self.moment.baddbmm_(grouped.mT, grouped)
        self.tokens += len(rows)

    @property
    def empty(self) -> bool:
        """Whether there is no metric to be had: nothing was counted, or nothing but zeros."""
        return not bool(self.moment.any())

    def metric(self) -> Weighing:
        """The metric of what was counted; one for each group where there are several.

        Shrunk as `bondwise.fit.metric.Moments` does, as if neighbours told the same.

        Raises:
            DataError: nothing was counted, or nothing but zeros.
        """
        if self.empty:
            raise DataError("No input but zeros was counted; call add(x) with others first.")
        size = self.moment.shape[-1]
        shrinkage = size / (size + self.tokens / 4)
        whole = self.moment.sum(0) / len(self.moment)  # in the place of a group of zeros
        found: list[Metric | Kronecker] = []
        for own in self.moment:
            moment = own if own.any() else whole
            metric = Metric(moment.clone(), self.tokens, shrinkage)
            found.append(metric if self.full else Kronecker(metric, self._taps()))
        return found[0] if len(found) == 1 else tuple(found)

    def _taps(self) -> Tensor:
        if not self.kernel.any():  # transposed: no two inputs meet one output alike
            return torch.eye(len(self.kernel), device=self.kernel.device)
        return self.kernel / self.kernel.diagonal().mean()


def patches(x: Tensor, geometry: Geometry) -> Tensor:
    """What a kernel meets, as a view: (n, *positions, channels, *kernel); x has its padding.

    >>> patches(torch.arange(6.0).reshape(1, 1, 6), Geometry((2,), (2,), ((0, 0),), (3,)))
    tensor([[[[0., 3.]],
    <BLANKLINE>
             [[2., 5.]]]])
    """
    for axis, (taps, apart) in enumerate(zip(geometry.kernel, geometry.dilation, strict=True)):
        reach = apart * (taps - 1) + 1
        if x.shape[2 + axis] < reach:
            raise DataError(
                f"An input of {tuple(x.shape[2:])} came, padded, for a kernel that reaches over "
                f"{reach}; give larger ones."
            )
        x = x.unfold(2 + axis, reach, geometry.stride[axis])[..., ::apart]
    return x.movedim(1, 1 + geometry.axes)


def _some(x: Tensor, axes: int) -> Tensor:
    """At most `ROWS` rows of (n, *positions, channels, *kernel), the kernel as one axis."""
    where = x.shape[: 1 + axes]
    total = prod(where)
    rows = torch.arange(0, total, max(1, ceil(total / ROWS)), device=x.device)
    return x[torch.unravel_index(rows, where)].flatten(2)
