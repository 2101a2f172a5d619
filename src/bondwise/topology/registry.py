"""Which topologies there are: one file each, found by looking into this folder."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module
from pkgutil import iter_modules
from typing import Literal

from bondwise.errors import NetworkError
from bondwise.network.network import Network

Modes = tuple[int, ...]
Split = tuple[Modes, Modes]
"""Modes of the rows, and of the columns."""
OfKernel = Callable[[int, int, Modes, int], Network]
"""From (out, in, kernel, rank) the network of a convolution, the kernel its last column modes."""


@dataclass(frozen=True)
class Topology:
    """A known topology: all that any room needs to know of it.

    Attributes:
        name: of the function.
        build: makes a network of rows, columns and rank.
        modes: how it likes to split an ``out x inp`` weight.
        scouted: the effort from which on it is tried beside low rank; None: never.
        shapes: the splits that are then tried, for ``out``, ``inp`` and the number of heads that
            the rows are (0: none).
        convolution: makes a network of out, inp, kernel and rank: that of a convolution's group.
        kernel_only: whether it says nothing of a weight without a kernel.
    """

    name: str
    build: Callable[..., Network]
    modes: Callable[[int, int], Split]
    scouted: Literal["fast", "best"] | None
    shapes: Callable[[int, int, int], Sequence[Split]]
    convolution: OfKernel
    kernel_only: bool = False

    def sized(self, out: int, inp: int, rank: int, kernel: Modes = ()) -> Network:
        """The network for an ``out x inp`` weight, or with a kernel, and one rank for every bond.

        Raises:
            NetworkError: it is one of convolutions alone, and no kernel came.
        """
        if kernel:
            return self.convolution(out, inp, kernel, rank)
        if self.kernel_only:
            raise NetworkError(
                f"{self.name} came for a weight without a kernel; write lowrank, or target "
                "convolutions alone."
            )
        return self.build(*self.modes(out, inp), rank)


_known: dict[str, Topology] = {}


def register(
    modes: Callable[[int, int], Split],
    scouted: Literal["fast", "best"] | None = None,
    shapes: Callable[[int, int, int], Sequence[Split]] | None = None,
    convolution: OfKernel | None = None,
    *,
    kernel_only: bool = False,
) -> Callable[[Callable[..., Network]], Callable[..., Network]]:
    """Decorator of a topology function: its place in the table of those known.

    The arguments are those of `Topology`. Without ``shapes`` the split of ``modes`` alone is tried;
    without ``convolution`` a kernel's sizes are further modes of the columns.

    Raises:
        NetworkError: another module has registered a topology of that name.
    """

    def keep(build: Callable[..., Network]) -> Callable[..., Network]:
        there = _known.get(build.__name__)
        if there is not None and there.build.__module__ != build.__module__:
            raise NetworkError(
                f"{build.__module__} registers a topology {build.__name__!r}, which "
                f"{there.build.__module__} has; give the function another name."
            )
        tried = shapes or (lambda out, inp, _heads: [modes(out, inp)])

        def beside(out: int, inp: int, kernel: Modes, rank: int) -> Network:
            rows, cols = modes(out, inp)
            return build(rows, (*cols, *kernel), rank)

        _known[build.__name__] = Topology(
            build.__name__, build, modes, scouted, tried, convolution or beside, kernel_only
        )
        return build

    return keep


def names(*, kernels: bool = False) -> list[str]:
    """Names of all known topologies: of each file in this folder, and what else is registered.

    Args:
        kernels: also of those that are of convolutions alone.
    """
    package = import_module("bondwise.topology")
    for module in iter_modules(package.__path__):
        import_module(f"bondwise.topology.{module.name}")
    return sorted(name for name, known in _known.items() if kernels or not known.kernel_only)


def scouted(effort: str) -> tuple[str, ...]:
    """Names of those that are tried beside low rank at an effort, "fast" or "best".

    >>> "btt" in scouted("fast"), "mpo" in scouted("fast"), "mpo" in scouted("best")
    (True, False, True)
    """
    efforts = ("fast",) if effort == "fast" else ("fast", "best")
    return tuple(name for name in names() if _known[name].scouted in efforts)


def find(name: str) -> Topology:
    """The topology of that name.

    Raises:
        NetworkError: there is none; the message lists those that there are.
    """
    if name not in _known and name not in names(kernels=True):
        known = ", ".join(names(kernels=True))
        raise NetworkError(f"Topology {name!r} is not known; write one of {known}, or an einsum.")
    return _known[name]
