"""The ways to run a linear layer: its whole weight, or its network beside its other terms."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from bondwise.compute.fast.network_ways import network_ways
from bondwise.compute.fast.ready import Ready, Run, Way, matrix_ways
from bondwise.layers.networks import Cores
from bondwise.layers.terms import Term

BUILT = "as built"


def linear_ways(layer: Any, rows: int) -> Iterator[Way]:
    """As built, the weight made whole, and each order of a network's products.

    What is not the first network is run as it is stored, and added.

    Args:
        layer: a `bondwise.TensorLinear`.
        rows: of its input.
    """
    terms = [_plain(term) for term in layer.terms]
    yield Way(BUILT, partial(_ready, BUILT, _sum(terms), _numbers(terms)))
    yield from matrix_ways(lambda: layer.dense().detach(), layer.like, rows)
    with torch.no_grad():
        at = next((k for k, t in enumerate(terms) if isinstance(t.kind, Cores)), None)
        if at is None:
            return
        net, beside = terms[at], [t for k, t in enumerate(terms) if k != at]
        assert isinstance(net.kind, Cores)
        assert net.places is not None
        cores = net.kind.cores(net.numbers, net.places)
        for way in network_ways(net.kind.network, cores, rows):
            yield _beside(way, beside)


def _plain(term: Term) -> Term:
    return replace(term, numbers=tuple(own.detach() for own in term.numbers))


def _numbers(terms: list[Term]) -> tuple[Tensor, ...]:
    return tuple(own for term in terms for own in term.numbers)


def _ready(name: str, run: Run, kept: tuple[Tensor, ...]) -> Ready:
    return Ready(name, kept, run)


def _sum(terms: list[Term]) -> Run:
    """Terms as they are stored."""

    def run(x: Tensor, bias: Tensor | None) -> Tensor:
        first, *others = terms
        y = first.kind.apply(first.numbers, first.places or (), x, bias)
        for term in others:
            y = y + term.kind.apply(term.numbers, term.places or (), x).to(y.dtype)
        return y

    return run


def _beside(way: Way, terms: list[Term]) -> Way:
    if not terms:
        return way
    make = partial(_added, way.make, terms)
    return Way(way.name, make, lambda: (_beside(each, terms) for each in way.finer()))


def _added(make: Callable[[], Ready], terms: list[Term]) -> Ready:
    ready, rest = make(), _sum(terms)

    def run(x: Tensor, bias: Tensor | None) -> Tensor:
        y = ready.run(x, bias)
        return y + rest(x, None).to(y.dtype)

    return Ready(ready.name, (*ready.kept, *_numbers(terms)), run)
