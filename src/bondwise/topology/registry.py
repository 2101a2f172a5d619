"""Which topologies there are: one file each, found by looking into this folder."""

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from pkgutil import iter_modules

from bondwise.errors import NetworkError
from bondwise.network.network import Network

Modes = tuple[int, ...]


@dataclass(frozen=True)
class Topology:
    """A known topology: the function that builds it, and the modes it likes for a shape."""

    name: str
    build: Callable[..., Network]
    modes: Callable[[int, int], tuple[Modes, Modes]]

    def sized(self, out: int, inp: int, rank: int) -> Network:
        """The network for an ``out x inp`` weight, with one rank for every bond."""
        return self.build(*self.modes(out, inp), rank)


_known: dict[str, Topology] = {}


def register(
    modes: Callable[[int, int], tuple[Modes, Modes]],
) -> Callable[[Callable[..., Network]], Callable[..., Network]]:
    """Decorator of a topology function; ``modes(out, inp)`` splits a weight's shape for it."""

    def keep(build: Callable[..., Network]) -> Callable[..., Network]:
        _known[build.__name__] = Topology(build.__name__, build, modes)
        return build

    return keep


def names() -> list[str]:
    """Names of all known topologies."""
    package = import_module("bondwise.topology")
    for module in iter_modules(package.__path__):
        import_module(f"bondwise.topology.{module.name}")
    return sorted(_known)


def find(name: str) -> Topology:
    """The topology of that name.

    Raises:
        NetworkError: there is none; the message lists those that there are.
    """
    if name not in names():
        raise NetworkError(
            f"Topology {name!r} is not known; write one of {', '.join(names())}, or an einsum."
        )
    return _known[name]
