"""What a prepared layer runs by, beside its parameters, and when it must not."""

from collections.abc import Hashable, Mapping
from itertools import pairwise
from sys import maxsize

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad

from bondwise.compute.ready import Ready, Run

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
        device, dtype: of the inputs; dtype None where any will do.
    """

    __slots__ = ("chosen", "device", "dtype", "names", "parameters", "runs")

    def __init__(
        self,
        layer: nn.Module,
        chosen: Mapping[Hashable, Mapping[int, Ready]],
        device: torch.device,
        dtype: torch.dtype | None,
    ) -> None:
        self.parameters = layer._parameters  # pyright: ignore[reportPrivateUsage]
        own = [(name, p) for name, p in self.parameters.items() if p is not None]
        self.names = tuple((name, p, _version(p)) for name, p in own)
        self.device, self.dtype = device, dtype
        self.runs = {call: runs(found) for call, found in chosen.items()}
        self.chosen = {call: dict(found) for call, found in chosen.items()}

    def find(self, x: Tensor, call: Hashable, rows: int) -> Run | None:
        """What runs so many rows of a kind of call; None where the layer has to run as built."""
        if self.dtype is not None and x.dtype is not self.dtype:
            return None
        if x.device != self.device or not self.serves(x):
            return None
        found = self.runs.get(call)
        if found is None:
            return None
        for most, run in found:
            if rows <= most:
                return run
        return None

    def serves(self, x: Tensor) -> bool:
        """Whether nobody asks for more than the output, and the parameters are the same."""
        if torch.is_grad_enabled() and (
            x.requires_grad or any(p.requires_grad for _, p, _ in self.names)
        ):
            return False
        if torch.is_autocast_enabled(self.device.type):
            return False
        if torch.compiler.is_compiling():
            return True  # a graph is made for the parameters that there are
        if torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0:  # pyright: ignore
            return False
        get = self.parameters.get
        return all(
            get(name) is own and (version is None or own._version == version)
            for name, own, version in self.names
        )

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


def _version(own: Tensor) -> int | None:
    try:
        return own._version
    except RuntimeError:
        return None  # made in inference mode: nothing counts what is written into it
