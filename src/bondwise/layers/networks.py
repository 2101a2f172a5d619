"""Networks as terms: their cores, with the gauge or without, and the plan that they run by."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from math import prod
from sys import maxsize
from typing import Any, ClassVar

import torch
from torch import Tensor

from bondwise.compute.lookup import lookup
from bondwise.compute.plan import Plan, plan
from bondwise.compute.run import Numbers as Values
from bondwise.compute.run import as_tensor, contracted, dense
from bondwise.errors import ShapeError
from bondwise.gauge.compact import Compact
from bondwise.gauge.forms import CoreForm, PlainForm, core_forms
from bondwise.layers import gathered
from bondwise.layers.terms import Kind, Places, Spec, Term
from bondwise.network.network import Network

BATCHES = (1, 4, 16, 64, 256, 1024, 4096)  # a plan for each; it runs up to twice as many rows
COMPILED = 64  # rows that a plan is made for where one has to serve all
CACHE = 2**18  # numbers of a value on the path that stay in a core's cache
CHUNKS = (512, 256, 128, 64, 32, 16)  # rows at a time

Numbers = tuple[Tensor, ...]
Pins = tuple[str | None, ...]


@dataclass(frozen=True)
class Cores(Kind):
    """A network: ``core_0, core_1, ..``, each a matrix in the layout that the network fixes.

    It runs by the plan of fewest multiplications for the number of rows that come, large batches
    some rows at a time, so that what lies between two products stays in the cache. Low rank whose
    identity block meets the input runs as it is stored, which never takes more multiplications.

    Attributes:
        network: out x in.
        pinned: for every core the bond that its identity blocks are on, which are not stored; all
            None for whole cores.
        forms: how each core is stored.
        gathers: whether it is low rank whose identity block meets the input.
        plans: for each number of rows, the most rows it runs first.
    """

    kind: ClassVar[str] = "network"
    network: Network
    pinned: Pins
    forms: tuple[CoreForm, ...] = field(init=False, repr=False, compare=False)
    gathers: bool = field(init=False, repr=False, compare=False)
    plans: tuple[tuple[int, Plan], ...] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        gathers, plans = self._ways()
        derived = {
            "forms": core_forms(self.network, self.pinned),
            "gathers": gathers,
            "plans": plans,
        }
        for name, value in derived.items():
            object.__setattr__(self, name, value)

    def _ways(self) -> tuple[bool, tuple[tuple[int, Plan], ...]]:
        """Whether it runs as it is stored, and its plans where it does not."""
        gathers = _gathers(self.network, self.pinned)
        return gathers, () if gathers else row_plans(self.network)

    def __reduce__(self) -> tuple[type["Cores"], tuple[Network, Pins]]:
        return type(self), (self.network, self.pinned)

    @property
    def shape(self) -> tuple[int, int]:  # pyright: ignore[reportIncompatibleVariableOverride]
        """(out, in)."""
        return self.network.shape

    @property
    def names(self) -> tuple[str, ...]:
        """``core_0``, ``core_1``, .."""
        return tuple(f"core_{k}" for k in range(len(self.network.cores)))

    @property
    def shapes(self) -> tuple[tuple[int, ...], ...]:
        """Of each core's matrix, or of its free entries."""
        return tuple(form.free for form in self.forms)

    @property
    def kept(self) -> tuple[tuple[int, torch.dtype], ...]:
        """Length and dtype of the pivots of each core that has some."""
        return tuple(form.pivots for form in self.forms if form.pivots is not None)

    def places(self, stored: tuple[Tensor, ...]) -> Places:
        """What each core with identity blocks is filled by (int64); if it gathers, the order of x.

        Raises:
            ShapeError: pivots that repeat, or that are not as many as a bond is large.
        """
        pinned = [form for form in self.forms if not isinstance(form, PlainForm)]
        found = tuple(form.index(own) for form, own in zip(pinned, stored, strict=True))
        return tuple(map(torch.argsort, found)) if self.gathers else found

    def stored(self, places: Places) -> tuple[Tensor, ...]:
        """The pivots as they are stored."""
        pinned = [form for form in self.forms if not isinstance(form, PlainForm)]
        found = map(torch.argsort, places) if self.gathers else places
        return tuple(form.stored(own) for form, own in zip(pinned, found, strict=True))

    def cores(self, numbers: Numbers, places: Places) -> tuple[Tensor, ...]:
        """The cores, in core-axis order: views of the numbers, or filled with identities."""
        parts = zip(self.forms, numbers, self.indices(places), strict=True)
        return tuple(form.expand(own, index) for form, own, index in parts)

    def indices(self, places: Iterable[Tensor]) -> list[Tensor | None]:
        """What each core is filled by; None where it is whole."""
        rest = iter(map(torch.argsort, places) if self.gathers else places)
        return [None if isinstance(form, PlainForm) else next(rest) for form in self.forms]

    def dense(self, numbers: Numbers, places: Places) -> Tensor:
        """One einsum."""
        return dense(self.network, self.cores(numbers, places))

    def apply(
        self, numbers: Numbers, places: Places, x: Tensor, bias: Tensor | None = None
    ) -> Tensor:
        """By the plan for so many rows."""
        if self.gathers:
            return gathered.linear(x, places[0], numbers[1], numbers[0], bias)
        return contracted(self.plan_for(x), self.cores(numbers, places), x, bias)

    def rows(self, numbers: Numbers, places: Places, ids: Tensor) -> Tensor:
        """From the cores; the table is never built."""
        return lookup(self.network, self.cores(numbers, places), ids)

    def plan_for(self, x: Tensor) -> Plan:
        """The plan that runs these rows."""
        if torch.compiler.is_compiling():  # a choice by size would be a graph for every choice
            return _chosen(self.plans, COMPILED)
        return _chosen(self.plans, x.numel() // self.shape[1])

    def macs(self, rows: int) -> int:
        """By the plan for so many rows."""
        if self.gathers:
            return rows * sum(map(prod, self.shapes))
        made = _chosen(self.plans, rows)
        weights = sum(step.macs for step in made.weights)
        return weights + sum(step.macs for step in made.program.resized(rows).path)

    def spec(self) -> Spec:
        """The network, its sizes and pins."""
        return {
            "kind": self.kind,
            "network": str(self.network),
            "sizes": dict(self.network.sizes),
            "pinned": list(self.pinned),
        }


def check_network(net: object, example: str) -> None:
    """Refuse what is no network.

    Raises:
        ShapeError: with one that would do.
    """
    if not isinstance(net, Network):
        raise ShapeError(
            f"A {type(net).__name__} came as the network; write one such as {example}."
        )


def network(net: Network, cores: Sequence[Values]) -> Term:
    """A network as a term, with whole cores: one tensor or array each, in core-axis order.

    Raises:
        ShapeError: cores of another number or shape than the network's.

    >>> from bondwise import lowrank
    >>> network(lowrank(6, 4, 2), [torch.ones(6, 2), torch.ones(2, 4)]).dense().shape
    torch.Size([6, 4])
    """
    cores = [as_tensor(core) for core in cores]
    kind = Cores(net, (None,) * len(net.cores))
    shapes = [tuple(core.shape) for core in cores]
    if shapes != list(net.core_shapes):
        raise ShapeError(f"Cores of shapes {shapes} came; '{net}' takes {list(net.core_shapes)}.")
    plain = zip(kind.forms, cores, strict=True)
    return Term(kind, tuple(f.reduce(core) for f, core in plain if isinstance(f, PlainForm)))


def compacted(stored: Compact) -> Term:
    """A network without its gauge as a term.

    >>> from bondwise import compact, lowrank
    >>> c = compact(lowrank(6, 4, 2), [torch.rand(6, 2), torch.rand(2, 4)])
    >>> torch.allclose(compacted(c).dense(), c.dense())
    True
    """
    kind = Cores(stored.network, tuple(stored.form.pinned))
    return Term(kind, stored.free, kind.places(tuple(p for p in stored.pivots if p is not None)))


def drawn(
    net: Network, device: Any = None, dtype: torch.dtype | None = None, *, fan: int | None = None
) -> Term:
    """Random cores whose product has entries of variance 1 / (3 fan), as torch's layers start.

    ``fan`` is how many inputs an output is a sum over; all columns by default.
    """
    variance = 1 / (3 * (fan or net.shape[1]) * prod(net.bonds.values()))
    std = variance ** (1 / (2 * len(net.cores)))
    cores = [torch.randn(shape, device=device, dtype=dtype) * std for shape in net.core_shapes]
    return network(net, cores)


@cache
def row_plans(net: Network) -> tuple[tuple[int, Plan], ...]:
    """The plan of fewest multiplications for each number of rows, and the most rows it runs."""
    found = list[tuple[int, Plan]]()
    for batch in BATCHES:
        made = _chunked(plan(net, batch))
        if found and found[-1][1].program.resized(batch) == made.program:
            made = found.pop()[1]
        found.append((2 * batch, made))
    return (*found[:-1], (maxsize, found[-1][1]))


def _chunked(made: Plan) -> Plan:
    """With chunks, where what lies between the products is larger than what enters and leaves."""
    moved = any(step.moved for step in made.path)
    if made.whole or (made.width <= max(made.shape) and not moved):
        return made
    rows = next((rows for rows in CHUNKS if rows * made.width <= CACHE), CHUNKS[-1])
    return replace(made, chunk=rows)


def _chosen(found: Sequence[tuple[int, Plan]], rows: int) -> Plan:
    return next(made for most, made in found if rows <= most)


def _gathers(net: Network, pinned: Pins) -> bool:
    bonds = list(net.bonds)
    if len(net.cores) != 2 or len(bonds) != 1 or pinned != (None, bonds[0]):
        return False
    rows, cols = ([index.name for index in side] for side in (net.rows, net.cols))
    return net.names == ((*rows, bonds[0]), (bonds[0], *cols))
