"""The ways to run a convolution of terms: by its whole kernel, or by its network and the others."""

from collections.abc import Iterator, Sequence
from functools import cache, partial
from typing import Any

from torch import Tensor

from bondwise.compute.fast.ready import Ready, Run, Way
from bondwise.compute.kernels.convolve import ConvPlan
from bondwise.compute.kernels.lay import Frame
from bondwise.compute.kernels.stacks import conv_plan
from bondwise.compute.kernels.ways import Call, framed, stack_ways, whole_ways
from bondwise.layers.kernels import convolved
from bondwise.layers.serve.terms import BUILT, beside, first_network, held, numbers_of
from bondwise.layers.terms import Term

Plans = Sequence[ConvPlan | None]


def conv_ways(layer: Any, x: Tensor) -> Iterator[Way]:
    """As built, the whole kernel, and each stack of its network.

    What is not the first network is run as it is stored, and added.

    Args:
        layer: a convolution of `bondwise.layers`.
        x: (n, channels, *spatial), of the layer's dtype.
    """
    geometry, plans = layer.geometry, layer.plans
    call = Call.of(geometry, x)
    terms = held(layer)
    yield Way(BUILT, partial(_as_stored, BUILT, terms, plans, call))
    sized = [
        plan and conv_plan(term.kind.network, geometry, call.size)  # pyright: ignore
        for term, plan in zip(terms, plans, strict=True)
    ]
    if sized != list(plans):
        name = f"{BUILT}, for its size"
        yield Way(name, partial(_as_stored, name, terms, sized, call))
    whole = cache(layer.whole)
    yield from whole_ways(whole, layer.like, call)
    first = first_network(terms)
    if first is not None:
        others = [terms[k] for k in first.others]
        rest = _sum(others, [sized[k] for k in first.others], geometry)
        for way in stack_ways(first.network, first.cores, layer.like, call):
            yield beside(way, others, rest)


def _sum(terms: Sequence[Term], plans: Plans, geometry: Any) -> Run:
    """Terms as they are stored."""

    def run(x: Tensor, bias: Tensor | None) -> Tensor:
        y = None
        for term, plan in zip(terms, plans, strict=True):
            own = convolved(term.kind, term.numbers, term.places or (), plan, geometry, x, bias)
            y, bias = own if y is None else y + own.to(y.dtype), None
        assert y is not None
        return y

    return run


def _as_stored(name: str, terms: Sequence[Term], plans: Plans, call: Call) -> Ready:
    run = _sum(terms, plans, call.geometry)
    if call.last:  # what comes otherwise is turned
        run = partial(framed, Frame(), True, True, run)
    return Ready(name, numbers_of(terms), run)
