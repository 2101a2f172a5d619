"""What the ways of all layers share: terms as they are stored, and a network beside the others."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from torch import Tensor

from bondwise.compute.fast.ready import Ready, Run, Way
from bondwise.layers.networks import Cores
from bondwise.layers.terms import Term
from bondwise.network.network import Network

BUILT = "as built"


@dataclass(frozen=True, eq=False)
class First:
    """The first network among terms.

    Attributes:
        network: out x in.
        cores: gives its cores, whole, in core-axis order.
        others: the places of the other terms.
    """

    network: Network
    cores: Callable[[], Sequence[Tensor]]
    others: tuple[int, ...]


def held(layer: Any) -> list[Term]:
    """The terms of a layer, without gradient."""
    return [
        replace(term, numbers=tuple(own.detach() for own in term.numbers)) for term in layer.terms
    ]


def numbers_of(terms: Sequence[Term]) -> tuple[Tensor, ...]:
    """All their numbers."""
    return tuple(own for term in terms for own in term.numbers)


def first_network(terms: Sequence[Term]) -> First | None:
    """The first network among terms; None where there is none."""
    for at, term in enumerate(terms):
        if isinstance(term.kind, Cores):
            cores = partial(term.kind.cores, term.numbers, term.places or ())
            others = tuple(k for k in range(len(terms)) if k != at)
            return First(term.kind.network, cores, others)
    return None


def beside(way: Way, terms: Sequence[Term], rest: Run) -> Way:
    """A way with what other terms add, as ``rest`` gives it; without some, the way itself."""
    if not terms:
        return way
    make = partial(_added, way.make, terms, rest)
    return Way(way.name, make, lambda: (beside(each, terms, rest) for each in way.finer()))


def _added(make: Callable[[], Ready], terms: Sequence[Term], rest: Run) -> Ready:
    ready = make()

    def run(x: Tensor, bias: Tensor | None) -> Tensor:
        y = ready.run(x, bias)
        return y + rest(x, None).to(y.dtype)

    return Ready(ready.name, (*ready.kept, *numbers_of(terms)), run)
