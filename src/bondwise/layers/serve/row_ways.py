"""The ways to run an embedding: its whole table, or rows of its network beside its other terms."""

from collections.abc import Iterator, Sequence
from functools import cache
from math import prod
from typing import Any

from torch import Tensor

from bondwise.compute.fast.lookup_ways import largest, lookup_ways, table_way
from bondwise.compute.fast.ready import Ready, Run, Way
from bondwise.layers.networks import Cores
from bondwise.layers.serve.terms import BUILT, beside, first_network, held, numbers_of
from bondwise.layers.terms import Term


def row_ways(layer: Any) -> Iterator[Way]:
    """As built, the whole table, and rows of its network from cores laid out beforehand.

    Args:
        layer: a `bondwise.TensorEmbedding`.
    """
    terms = held(layer)
    yield Way(BUILT, lambda: Ready(BUILT, numbers_of(terms), _sum(terms)))
    nets = [term.kind.network for term in terms if isinstance(term.kind, Cores)]
    if all(prod(layer.shape) <= largest(net) for net in nets):
        yield table_way(cache(lambda: layer.dense().detach()))
    first = first_network(terms)
    if first is not None:
        others = [terms[k] for k in first.others]
        for way in lookup_ways(first.network, first.cores):
            yield beside(way, others, _sum(others))


def _sum(terms: Sequence[Term]) -> Run:
    """Terms as they are stored."""

    def run(ids: Tensor, bias: Tensor | None) -> Tensor:  # noqa: ARG001
        first, *others = terms
        rows = first.kind.rows(first.numbers, first.places or (), ids)
        for term in others:
            rows = rows + term.kind.rows(term.numbers, term.places or (), ids)
        return rows

    return run
