"""Which plan a layer runs by, for how many rows, and the weights that it keeps ready for it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from sys import maxsize
from typing import Any

from torch import Tensor

from bondwise.compute.machine import Rates, machine
from bondwise.compute.plan import Plan, timed
from bondwise.layers import gathered
from bondwise.network.network import Network

Stored = Mapping[str, Tensor | None]  # parameters by name
NO_ROOM, ALL_ROOM = -1, 2**62  # bytes: nothing, and whatever, may be kept ready
BATCHES = (1, 4, 16, 64, 256, 1024, 4096)  # a plan for each; it runs up to twice as many rows


@dataclass(frozen=True, slots=True)
class RowPlan:
    """A plan, the most rows it runs, and whether its weights are kept ready between calls."""

    plan: Plan
    rows: int
    kept: bool
    as_stored: bool = False  # low rank without its gauge, in place of the plan

    def __deepcopy__(self, memo: dict[int, Any]) -> "RowPlan":
        return self


@cache
def row_plans(
    net: Network, itemsize: int, room: int, plain: bool, gathers: bool = False
) -> tuple[RowPlan, ...]:
    """The fastest plan for each number of rows, by the rates of this machine.

    Args:
        net: the network.
        itemsize: bytes of a number.
        room: bytes that weights kept ready may take; a plan that needs more makes them each time,
            as every plan does where the room is below 0, and gradients may follow.
        plain: the cores are stored as they are, so that what is a view of them takes no room.
        gathers: it is low rank that can run as it is stored without its gauge; it does so unless
            a plan gains 5 %, since that takes no more memory.
    """
    rates = machine().rates(itemsize)
    found = list[RowPlan]()
    for batch in BATCHES:
        ready = timed(net, batch, rates, itemsize, ready=True)
        fits = ready_numbers(ready, plain) * itemsize <= room  # views take no room, but need 0
        made = ready if fits else timed(net, batch, rates, itemsize, ready=False, training=room < 0)
        row_plan = RowPlan(
            made, 2 * batch, fits, gathers and _gathers(made, batch, rates, itemsize)
        )
        if found and _alike(found[-1], row_plan):
            found.pop()
        found.append(row_plan)
    return (*found[:-1], replace(found[-1], rows=maxsize))


def _gathers(made: Plan, batch: int, rates: Rates, itemsize: int) -> bool:
    (rank,) = made.network.bonds.values()
    took = gathered.seconds(*made.network.shape, rank, batch, rates, itemsize)
    return made.seconds is None or took <= 1.05 * made.seconds


def _alike(one: RowPlan, two: RowPlan) -> bool:
    if one.as_stored or two.as_stored:
        return one.as_stored == two.as_stored
    return one.kept == two.kept and _same(one.plan, two.plan)


def chosen(found: Sequence[RowPlan], rows: int) -> int:
    """The position of the plan that runs so many rows."""
    for at, row_plan in enumerate(found[:-1]):
        if rows <= row_plan.rows:
            return at
    return len(found) - 1


def ready_numbers(plan: Plan, plain: bool) -> int:
    """Numbers in the weights of a plan's path that are no views of the stored cores."""
    cores, total = len(plan.network.cores), 0
    for step in plan.path:
        g, _, n, k = step.extents
        viewed = plain and step.right < cores and not (step.right_view and step.right_view.order)
        total += 0 if viewed else (1 if step.kind == "push" else g) * n * k
    return total


def _same(one: Plan, two: Plan) -> bool:
    return (
        one.chunk == two.chunk
        and one.program.result == two.program.result
        and all(
            (a.left, a.right, a.kind, a.left_view, a.right_view, a.shape)
            == (b.left, b.right, b.kind, b.left_view, b.right_view, b.shape)
            for a, b in zip(one.steps, two.steps, strict=False)
        )
        and len(one.steps) == len(two.steps)
    )


class KeptWeights:
    """Weights made from a layer's parameters, kept until one of these changes.

    A change is seen by the parameter's version and place in memory. Writing into
    ``parameter.data`` in place changes neither: call the layer's ``refresh()`` after it. Copies of
    a layer, and what is saved of it, have nothing ready.
    """

    def __init__(self) -> None:
        self._state: list[int] | None = None
        self._kept = list[Tensor]()

    def weights(self, at: int, stored: Stored) -> list[Tensor] | None:
        """Those numbered ``at``, if they are there and still true."""
        return self._kept if self._state is not None and self._state == _state(at, stored) else None

    def keep(self, at: int, stored: Stored, made: list[Tensor]) -> list[Tensor]:
        """Keep those made now, in place of all others: they take no more room than one plan's."""
        self._state, self._kept = _state(at, stored), made
        return made

    def bytes(self, stored: Sequence[Tensor]) -> int:
        """Bytes kept ready, besides what is stored."""
        own = {value.untyped_storage().data_ptr() for value in stored}
        kept = [w for w in self._kept if w.untyped_storage().data_ptr() not in own]
        return sum(weight.numel() * weight.element_size() for weight in kept)

    def clear(self) -> None:
        """Keep nothing."""
        self._state, self._kept = None, []

    def __deepcopy__(self, memo: dict[int, Any]) -> "KeptWeights":
        return KeptWeights()

    def __reduce__(self) -> tuple[type["KeptWeights"], tuple[()]]:
        return KeptWeights, ()


def _state(at: int, stored: Stored) -> list[int] | None:
    state = [at]
    try:
        for value in stored.values():
            if value is not None:
                state += (value._version, value.data_ptr())
    except RuntimeError:  # made in inference mode, without versions
        return None
    return state
