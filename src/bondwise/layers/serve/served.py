"""What a prepared layer runs by, beside its parameters, and when it must not."""

from collections.abc import Hashable, Mapping
from itertools import pairwise
from sys import maxsize

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad

from bondwise.compute.fast.ready import Ready, Run

_COMPILING, _GRADIENTS = torch.compiler.is_compiling, torch.is_grad_enabled
_AUTOCAST = torch._C._is_any_autocast_enabled  # pyright: ignore
_TRANSFORMS = torch._C._are_functorch_transforms_active  # pyright: ignore

Runs = tuple[tuple[int, Run], ...]
"""The most rows that each runs, ascending."""


class Served:
    """The chosen ways of one layer, for the calls that they were measured for.

    They are in use while the layer's parameters are those that they were made from, and nobody
    asks for gradients, autocast or a transform: else the layer runs as built. Parameters count as
    the same while they are the same tensors and nothing was written into them that torch noticed.

    Args:
        layer: whose parameters they were made from.
        chosen: for each kind of call (`TensorLayer.call`) the way for so many rows.
        dtype: of the inputs; None where any will do.
    """

    __slots__ = ("bias", "chosen", "device", "dtype", "made_from", "parameters", "runs")

    def __init__(
        self,
        layer: nn.Module,
        chosen: Mapping[Hashable, Mapping[int, Ready]],
        dtype: torch.dtype | None,
    ) -> None:
        self.parameters = layer._parameters  # pyright: ignore[reportPrivateUsage]
        own = [(name, p) for name, p in self.parameters.items() if p is not None]
        self.made_from = tuple((name, p, version(p)) for name, p in own)
        self.bias = self.parameters.get("bias")
        self.device, self.dtype = own[0][1].device.type, dtype
        self.chosen = {call: dict(found) for call, found in chosen.items()}
        self.runs = {call: runs(found) for call, found in self.chosen.items()}

    def output(self, x: Tensor, call: Hashable, rows: int) -> Tensor | None:
        """The output for so many rows of a kind of call; None where the layer runs as built."""
        if self.dtype is not None and x.dtype is not self.dtype:
            return None
        if _GRADIENTS() and self._asked(x):
            return None
        if _COMPILING():  # a graph is made for the parameters that there are
            if torch.is_autocast_enabled(self.device):
                return None
        elif _AUTOCAST() or _TRANSFORMS() or forward_ad._current_level >= 0 or self._other():  # pyright: ignore
            return None
        for most, run in self.runs.get(call, ()):
            if rows <= most:
                return run(x, self.bias)
        return None

    def _asked(self, x: Tensor) -> bool:
        """Whether a gradient is asked for, where some are."""
        return x.requires_grad or any(own.requires_grad for _, own, _ in self.made_from)

    def _other(self) -> bool:
        """Whether a parameter is another tensor, or was written into."""
        parameters = self.parameters
        for name, own, count in self.made_from:
            if parameters.get(name) is not own or (count is not None and own._version != count):
                return True
        return False

    def kept(self) -> list[Tensor]:
        """All tensors that it runs by."""
        return [own for found in self.chosen.values() for way in found.values() for own in way.kept]


def runs(found: Mapping[int, Ready]) -> Runs:
    """Which runs how many rows: each up to half way to the next, in ratio; the last any number.

    >>> one, two = Ready("a", (), lambda x, b: x), Ready("b", (), lambda x, b: x)
    >>> [most for most, _ in runs({1: one, 256: two})] == [16, maxsize]
    True
    """
    rows = sorted(found)
    mosts = [int((a * b) ** 0.5) for a, b in pairwise(rows)]
    return tuple((most, found[n].run) for most, n in zip([*mosts, maxsize], rows, strict=True))


def version(own: Tensor) -> int | None:
    """How often a tensor was written into; None for those of inference mode, which count nothing.

    >>> version(torch.zeros(2).add_(1))
    1
    """
    return None if own.is_inference() else own._version
