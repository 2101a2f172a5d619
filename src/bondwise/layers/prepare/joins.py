"""Ways to run layers that meet one input: apart, their weights below each other, or the first cores."""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from bondwise.compute.product import prepare
from bondwise.compute.ready import (
    WIDE,
    Ready,
    Run,
    Way,
    as_it_lies,
    cast,
    matrix_ways,
    packed,
    packs,
    widens,
)
from bondwise.compute.ways import as_plan, programs
from bondwise.layers.linear import TensorLinear
from bondwise.layers.networks import Cores
from bondwise.layers.prepare.joined import Joined, biases, split, together

APART = "apart"
Lay = Callable[[Tensor], Ready]


def joined_ways(layers: Sequence[TensorLinear], apart: Sequence[Ready], rows: int) -> Iterator[Way]:
    """Ways to run some layers on one input; each gives the outputs of all as a tuple.

    Args:
        layers: of one width.
        apart: how each runs on its own.
        rows: of the input.
    """
    yield Way(APART, partial(_apart, layers, apart))
    sizes = [layer.out_features for layer in layers]
    with torch.no_grad():
        whole = torch.cat([layer.dense().detach() for layer in layers])
    for way in matrix_ways(whole, rows, "joined dense"):
        yield Way(way.name, partial(_split, way, biases(layers), sizes))
    pairs = [_pair(layer) for layer in layers]
    if all(pair is not None for pair in pairs):
        own = [pair for pair in pairs if pair is not None]
        for name, lay in _lays(whole, rows):
            yield Way(name, partial(_together, name, lay, own, layers))


def members(ready: Ready, count: int) -> list[Ready]:
    """What each layer runs by, of a way that runs all of them: the first one asked runs it."""
    shared = Joined(lambda x: ready.run(x, None), count)  # pyright: ignore
    return [Ready(ready.name, ready.kept, partial(_member, shared, k)) for k in range(count)]


def _member(shared: Joined, k: int, x: Tensor, bias: Tensor | None) -> Tensor:  # noqa: ARG001
    if torch.compiler.is_compiling():  # a compiler sees what two products share
        return shared.run(x)[k]
    return shared.take(x, k)


def _apart(layers: Sequence[TensorLinear], apart: Sequence[Ready]) -> Ready:
    pairs = list(zip(layers, apart, strict=True))

    def run(x: Tensor, bias: Tensor | None) -> Any:  # noqa: ARG001
        return tuple(way.run(x, layer.bias) for layer, way in pairs)

    return Ready(APART, tuple(own for way in apart for own in way.kept), run)


def _split(way: Way, bias: Callable[[], Tensor | None], sizes: Sequence[int]) -> Ready:
    ready = way.make()
    outputs = split(ready.run, bias, sizes)
    return Ready(ready.name, ready.kept, lambda x, _: outputs(x))  # pyright: ignore


def _pair(layer: TensorLinear) -> tuple[Tensor, Tensor] | None:
    """Two matrices whose product is the weight, where its network has two cores on one bond."""
    term = layer.terms[0]
    if len(layer.terms) > 1 or not isinstance(term.kind, Cores) or term.places is None:
        return None
    net = term.kind.network
    numbers = tuple(own.detach() for own in term.numbers)
    for program in programs(net):
        plan = as_plan(net, program, 1)
        flat = all(step.kind == "linear" for step in plan.path) and len(plan.path) == 2
        moved = any(step.left_view and step.left_view.order for step in plan.path)
        if flat and not moved and not (plan.program.result and plan.program.result.order):
            inner, outer = prepare(plan, term.kind.cores(numbers, term.places))
            return inner, outer
    return None


def _lays(like: Tensor, rows: int) -> Iterator[tuple[str, Lay]]:
    name = "joined first cores"
    yield name, as_it_lies
    if packs(like, rows):
        yield f"{name}, packed", partial(packed, rows=rows)
    if widens(like):
        yield f"{name}, in float32", lambda own: as_it_lies(own.to(WIDE))
        yield f"{name}, cast to float32", cast


def _together(
    name: str, lay: Lay, pairs: Sequence[tuple[Tensor, Tensor]], layers: Sequence[TensorLinear]
) -> Ready:
    inner = lay(torch.cat([first for first, _ in pairs]))
    outer = [lay(second) for _, second in pairs]
    wide = name.endswith("float32")
    ends = [partial(_end, own.run, layer) for own, layer in zip(outer, layers, strict=True)]
    outputs = together(inner.run, [len(first) for first, _ in pairs], ends)

    def run(x: Tensor, bias: Tensor | None) -> Any:  # noqa: ARG001
        return outputs(x.to(WIDE) if wide else x)

    return Ready(name, (*inner.kept, *(t for own in outer for t in own.kept)), run)


def _end(run: Run, layer: TensorLinear, x: Tensor) -> Tensor:
    bias = None if layer.bias is None else layer.bias.to(x.dtype)
    return run(x, bias).to(layer.like.dtype)
