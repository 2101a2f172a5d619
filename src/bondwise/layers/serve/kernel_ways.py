"""The ways to run a convolution of terms: by its whole kernel, or by its network and the others."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import cache, partial
from typing import Any

from torch import Tensor

from bondwise.compute.fast.ready import Ready, Run, Way
from bondwise.compute.kernels.convolve import ConvPlan
from bondwise.compute.kernels.lay import Frame
from bondwise.compute.kernels.stacks import conv_plan
from bondwise.compute.kernels.ways import Call, framed, stack_ways, whole_ways
from bondwise.layers.kernels import convolved
from bondwise.layers.networks import Cores
from bondwise.layers.serve.linear_ways import BUILT
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
    terms = [_plain(term) for term in layer.terms]
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
    at = next((k for k, t in enumerate(terms) if isinstance(t.kind, Cores)), None)
    if at is None:
        return
    net = terms[at].kind
    assert isinstance(net, Cores)
    cores = partial(net.cores, terms[at].numbers, terms[at].places or ())
    others = [k for k in range(len(terms)) if k != at]
    beside = [terms[k] for k in others], [sized[k] for k in others]
    for way in stack_ways(net.network, cores, layer.like, call):
        yield _beside(way, *beside, geometry) if others else way


def _plain(term: Term) -> Term:
    return replace(term, numbers=tuple(own.detach() for own in term.numbers))


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


def _numbers(terms: Sequence[Term]) -> tuple[Tensor, ...]:
    return tuple(own for term in terms for own in term.numbers)


def _as_stored(name: str, terms: Sequence[Term], plans: Plans, call: Call) -> Ready:
    run = _sum(terms, plans, call.geometry)
    if call.last:  # what comes otherwise is turned
        run = partial(framed, Frame(), True, True, run)
    return Ready(name, _numbers(terms), run)


def _beside(way: Way, terms: Sequence[Term], plans: Plans, geometry: Any) -> Way:
    make = partial(_added, way.make, terms, plans, geometry)
    return Way(
        way.name, make, lambda: (_beside(each, terms, plans, geometry) for each in way.finer())
    )


def _added(make: Callable[[], Ready], terms: Sequence[Term], plans: Plans, geometry: Any) -> Ready:
    ready, rest = make(), _sum(terms, plans, geometry)

    def run(x: Tensor, bias: Tensor | None) -> Tensor:
        y = ready.run(x, bias)
        return y + rest(x, None).to(y.dtype)

    return Ready(ready.name, (*ready.kept, *_numbers(terms)), run)
