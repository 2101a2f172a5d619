"""Layers that meet one input, such as q, k and v: run together where that measures faster."""

from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor

from bondwise.compute.fast.network_ways import flat
from bondwise.compute.fast.ready import (
    WIDE,
    Lay,
    Ready,
    Run,
    Way,
    as_it_lies,
    bytes_beside,
    cast,
    lays,
    matrix_ways,
)
from bondwise.compute.fast.ways import as_plan, programs
from bondwise.compute.product import prepare
from bondwise.layers.linear import TensorLinear
from bondwise.layers.networks import Cores
from bondwise.layers.prepare.contest import Contest, Entrant, decide, made_again, windows
from bondwise.layers.prepare.joined import Joined, biases, split, together
from bondwise.layers.prepare.result import Choice
from bondwise.layers.serve.served import Served

APART = "apart"


@dataclass(eq=False)
class Group:
    """Prepared linear layers that meet one input.

    Attributes:
        layers: by path, in the order in which they are called.
        contests: apart against together, by rows.
    """

    layers: dict[str, TensorLinear]
    contests: dict[int, Contest]

    @property
    def dense_bytes(self) -> int:
        """What the dense weights take."""
        return sum(layer.dense_bytes for layer in self.layers.values())

    @classmethod
    def of(cls, layers: Mapping[str, TensorLinear]) -> "Group":
        """With a contest for each number of rows that all are prepared for."""
        own = list(layers.values())
        found = [set(_chosen(layer)) for layer in own]
        parameters = [p for layer in own for p in layer.parameters()]
        contests: dict[int, Contest] = {}
        for rows in sorted(set.intersection(*found)):
            x = own[0].samples([rows], [])[0]
            apart = [_chosen(layer)[rows] for layer in own]
            ways = partial(joined_ways, own, apart, rows)
            contests[rows] = Contest(ways, x, None, parameters)
        return cls(dict(layers), contests)


def join(
    layers: Mapping[str, TensorLinear],
    groups: Sequence[tuple[str, ...]],
    choices: Sequence[Choice],
    left: int | None,
) -> list[Choice]:
    """Run groups of prepared layers together where that is faster and fits.

    Args:
        layers: prepared ones, by path.
        groups: paths of layers that meet one input.
        choices: what was chosen for each.
        left: bytes that all layers together may take more; None: each group what its dense weights
            take.

    Returns:
        The choices as they are then.
    """
    own = [Group.of({path: layers[path] for path in g}) for g in groups if _can(g, layers)]
    for some in windows(own, lambda group: group.dense_bytes):
        for rows in sorted({rows for group in some for rows in group.contests}):
            decide([group.contests[rows] for group in some if rows in group.contests])
    others = [c for c in choices if c.name not in layers]
    known = {(c.name, c.rows): c for c in choices if c.name in layers}
    for group in own:
        for rows, contest in group.contests.items():
            here, more = _room(group, rows, left)
            entrant = _best(contest, here + more)
            if entrant is not None:
                left = None if left is None else left + here - entrant.bytes
                known |= _installed(group, rows, contest, entrant, known)
    return [*others, *known.values()]


def _can(group: Sequence[str], layers: Mapping[str, TensorLinear]) -> bool:
    own = [layers.get(path) for path in group]
    first = own[0]
    return all(
        layer is not None
        and layer.served is not None
        and first is not None
        and (layer.like.dtype, layer.like.device) == (first.like.dtype, first.like.device)
        for layer in own
    )


def _chosen(layer: TensorLinear) -> dict[int, Ready]:
    assert layer.served is not None
    return layer.served.chosen[None]


def _room(group: Group, rows: int, left: int | None) -> tuple[int, int]:
    """Bytes that the ways for so many rows take now, and how many more they may take."""
    own = list(group.layers.values())
    parameters = [p for layer in own for p in layer.parameters()]
    kept = [(n, t) for layer in own for n, way in _chosen(layer).items() for t in way.kept]
    every = bytes_beside((t for _, t in kept), parameters)
    others = bytes_beside((t for n, t in kept if n != rows), parameters)
    if left is not None:
        return every - others, left
    return every - others, max(0, group.dense_bytes - every)


def _best(contest: Contest, most: int) -> Entrant | None:
    """The fastest way that fits, where it is not to run them apart."""
    fits = [e for e in contest.entrants.values() if e.seconds and e.bytes <= most]
    found = min(fits, key=lambda e: e.took, default=None)
    return None if found is None or found.name == APART else found


def _installed(
    group: Group,
    rows: int,
    contest: Contest,
    entrant: Entrant,
    known: Mapping[tuple[str, int], Choice],
) -> dict[tuple[str, int], Choice]:
    paths, own = list(group.layers), list(group.layers.values())
    ready = made_again(contest.offers(), entrant.name)
    for layer, member in zip(own, members(ready, len(own)), strict=True):
        assert layer.served is not None
        chosen: dict[Hashable, dict[int, Ready]] = {None: _chosen(layer) | {rows: member}}
        layer.served = Served(layer, chosen, layer.like.dtype)
    before = [known[path, rows] for path in paths]
    faster = entrant.took / contest.entrants[APART].took
    return {
        (c.name, rows): replace(
            c,
            way=entrant.name,
            seconds=c.seconds * faster,
            share=c.share / faster,
            bytes=entrant.bytes // len(own),
            joined=tuple(paths),
        )
        for c in before
    }


def joined_ways(layers: Sequence[TensorLinear], apart: Sequence[Ready], rows: int) -> Iterator[Way]:
    """Ways to run some layers on one input; each gives the outputs of all as a tuple.

    Apart, their dense weights below each other, or the first matrices of two below each other.

    Args:
        layers: of one width.
        apart: how each runs on its own.
        rows: of the input.
    """
    yield Way(APART, partial(_apart, layers, apart))
    sizes = [layer.out_features for layer in layers]
    like = layers[0].like
    for way in matrix_ways(cache(partial(_whole, layers)), like, rows, "joined dense"):
        yield Way(way.name, partial(_split, way, biases(layers), sizes))
    pairs = [own for layer in layers if (own := _pair(layer)) is not None]
    if len(pairs) == len(layers):
        for name, lay in _lays(like, rows):
            yield Way(name, partial(_together, name, lay, pairs, layers))


def _whole(layers: Sequence[TensorLinear]) -> Tensor:
    return torch.cat([layer.dense().detach() for layer in layers])


def members(ready: Ready, count: int) -> list[Ready]:
    """What each layer runs by, of a way that runs all of them: the first one asked runs it."""
    shared = Joined(ready, count)
    return [Ready(ready.name, ready.kept, partial(_member, shared, k)) for k in range(count)]


def _member(shared: Joined, k: int, x: Tensor, bias: Tensor | None) -> Tensor:  # noqa: ARG001
    return shared.take(x, k)


def _apart(layers: Sequence[TensorLinear], apart: Sequence[Ready]) -> Ready:
    pairs = list(zip(layers, apart, strict=True))

    def run(x: Tensor, bias: Tensor | None) -> Any:  # noqa: ARG001
        return tuple(way.run(x, layer.bias) for layer, way in pairs)

    return Ready(APART, tuple(own for way in apart for own in way.kept), run)


def _split(way: Way, bias: Tensor | None, sizes: Sequence[int]) -> Ready:
    ready = way.make()
    kept = ready.kept if bias is None else (*ready.kept, bias)
    return Ready(ready.name, kept, split(ready.run, bias, sizes))


def _pair(layer: TensorLinear) -> tuple[Tensor, Tensor] | None:
    """Two matrices whose product is the weight, where its one term is a matrix of low rank."""
    term = layer.terms[0]
    if len(layer.terms) > 1 or not isinstance(term.kind, Cores) or term.places is None:
        return None
    net = term.kind.network
    numbers = tuple(own.detach() for own in term.numbers)
    for program in programs(net):
        plan = as_plan(net, program, 1)
        if len(plan.path) == 2 and flat(plan):
            inner, outer = prepare(plan, term.kind.cores(numbers, term.places))
            return inner, outer
    return None


def _lays(like: Tensor, rows: int) -> Iterator[tuple[str, Lay]]:
    """How both matrices are laid out, computing in float32 where the name says so."""
    name = "joined first cores"
    for kind, lay in lays(like, rows):
        wide = {", cast to float32": cast, ", in float32": _wide}
        yield name + kind, wide.get(kind, lay)


def _wide(weight: Tensor) -> Ready:
    return as_it_lies(weight.to(WIDE))


def _together(
    name: str, lay: Lay, pairs: Sequence[tuple[Tensor, Tensor]], layers: Sequence[TensorLinear]
) -> Ready:
    inner = lay(torch.cat([first for first, _ in pairs]))
    outer = [lay(second) for _, second in pairs]
    kind = WIDE if name.endswith("float32") else layers[0].like.dtype
    ends = [partial(_end, own.run, layer) for own, layer in zip(outer, layers, strict=True)]
    kept = (*inner.kept, *(t for own in outer for t in own.kept))
    return Ready(name, kept, together(inner.run, [len(first) for first, _ in pairs], ends, kind))


def _end(run: Run, layer: TensorLinear, x: Tensor) -> Tensor:
    bias = None if layer.bias is None else layer.bias.to(x.dtype)
    return run(x, bias).to(layer.like.dtype)
