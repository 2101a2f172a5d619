"""The ways to run an embedding: its whole table, or rows of its network beside its other terms."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import cache, partial
from math import prod
from typing import Any

from torch import Tensor

from bondwise.compute.fast.lookup_ways import largest, lookup_ways, table_way
from bondwise.compute.fast.ready import Ready, Run, Way
from bondwise.layers.networks import Cores
from bondwise.layers.serve.linear_ways import BUILT
from bondwise.layers.terms import Term


def row_ways(layer: Any) -> Iterator[Way]:
    """As built, the whole table, and rows of its network from cores laid out beforehand.

    Args:
        layer: a `bondwise.TensorEmbedding`.
    """
    terms = [
        replace(term, numbers=tuple(own.detach() for own in term.numbers)) for term in layer.terms
    ]
    yield Way(BUILT, lambda: Ready(BUILT, _numbers(terms), _sum(terms)))
    nets = [term.kind.network for term in terms if isinstance(term.kind, Cores)]
    if all(prod(layer.shape) <= largest(net) for net in nets):
        yield table_way(cache(lambda: layer.dense().detach()))
    at = next((k for k, t in enumerate(terms) if isinstance(t.kind, Cores)), None)
    if at is None:
        return
    net, beside = terms[at], [term for k, term in enumerate(terms) if k != at]
    assert isinstance(net.kind, Cores)
    for way in lookup_ways(
        net.kind.network, partial(net.kind.cores, net.numbers, net.places or ())
    ):
        yield Way(way.name, partial(_added, way.make, beside)) if beside else way


def _numbers(terms: Sequence[Term]) -> tuple[Tensor, ...]:
    return tuple(own for term in terms for own in term.numbers)


def _sum(terms: Sequence[Term]) -> Run:
    """Terms as they are stored."""

    def run(ids: Tensor, bias: Tensor | None) -> Tensor:  # noqa: ARG001
        first, *others = terms
        rows = first.kind.rows(first.numbers, first.places or (), ids)
        for term in others:
            rows = rows + term.kind.rows(term.numbers, term.places or (), ids)
        return rows

    return run


def _added(make: Callable[[], Ready], terms: Sequence[Term]) -> Ready:
    ready, rest = make(), _sum(terms)
    kept = (*ready.kept, *_numbers(terms))
    return Ready(ready.name, kept, lambda ids, bias: ready.run(ids, bias) + rest(ids, None))
