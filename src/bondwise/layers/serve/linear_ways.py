"""The ways to run a linear layer: its whole weight, or its network beside its other terms."""

from collections.abc import Iterator, Sequence
from functools import cache
from typing import Any

from torch import Tensor

from bondwise.compute.fast.network_ways import network_ways
from bondwise.compute.fast.ready import Ready, Run, Way, matrix_ways
from bondwise.layers.serve.terms import BUILT, beside, first_network, held, numbers_of
from bondwise.layers.terms import Term


def linear_ways(layer: Any, rows: int) -> Iterator[Way]:
    """As built, the weight made whole, and each order of a network's products.

    What is not the first network is run as it is stored, and added.

    Args:
        layer: a `bondwise.TensorLinear`.
        rows: of its input.
    """
    terms = held(layer)
    yield Way(BUILT, lambda: Ready(BUILT, numbers_of(terms), _sum(terms)))
    yield from matrix_ways(cache(lambda: layer.dense().detach()), layer.like, rows)
    first = first_network(terms)
    if first is not None:
        others = [terms[k] for k in first.others]
        for way in network_ways(first.network, first.cores(), rows):
            yield beside(way, others, _sum(others))


def _sum(terms: Sequence[Term]) -> Run:
    """Terms as they are stored."""

    def run(x: Tensor, bias: Tensor | None) -> Tensor:
        first, *others = terms
        y = first.kind.apply(first.numbers, first.places or (), x, bias)
        for term in others:
            y = y + term.kind.apply(term.numbers, term.places or (), x).to(y.dtype)
        return y

    return run
