"""In which order to contract: the cheapest tree of pairwise steps, with the input as an operand."""

from dataclasses import dataclass, field
from functools import cache
from typing import Any

from bondwise.compute.lower import program
from bondwise.compute.search import Names
from bondwise.compute.steps import ANY, BATCH, Program, Step, table
from bondwise.errors import PlanError
from bondwise.network.network import Network

FEWEST_ROWS = 16  # at a time, where gradients are asked for: below, matmuls are slow


@dataclass(frozen=True)
class Plan:
    """An order of contraction, lowered to matmuls: plain data, and right for any batch size.

    Attributes:
        network: what is contracted.
        batch: the size that the order was sought for; ``macs`` are the multiplications at it.
        goal: what was to be small: "macs", or "time" of a plan that was measured.
        program: the steps.
        shape: (out, in) of the weight.
        core_shapes: of the cores that it takes.
        entry: the shape of x as an operand: any batch, then the column modes.
        chunk: rows of the input that go along the path at a time, so that what lies between the
            products stays in the cache; None: all of them.
        weights: the products that the input has no part in.
        path: the products that the input goes through; the right operand is a weight.
        whole: whether the path is one ``F.linear`` by the weight made whole.
        width: numbers of the largest value on the path, for each row of the input.
    """

    network: Network
    batch: int
    goal: str
    program: Program
    shape: tuple[int, int]
    core_shapes: tuple[tuple[int, ...], ...]
    entry: tuple[int, ...]
    chunk: int | None = None
    weights: tuple[Step, ...] = field(init=False, repr=False, compare=False)
    path: tuple[Step, ...] = field(init=False, repr=False, compare=False)
    whole: bool = field(init=False, repr=False, compare=False)
    width: int = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        path = self.program.path
        first = path[0]
        derived = {
            "path": path,
            "weights": tuple(step for step in self.steps if step.grows is None),
            "whole": path == (first,) and first.kind == "linear" and self.program.result is None,
            "width": max(self.shape[1], self.program.width),
        }
        for name, value in derived.items():
            object.__setattr__(self, name, value)

    @property
    def macs(self) -> int:
        """Multiplications for the whole batch: all distinct sizes of a step, summed over steps."""
        return self.program.macs

    @property
    def steps(self) -> tuple[Step, ...]:
        """The products in order; operands are the cores, then x, then results of earlier steps."""
        return self.program.steps

    def __deepcopy__(self, memo: dict[int, Any]) -> "Plan":
        return self  # frozen, and large: every copy of a layer has it

    def __str__(self) -> str:
        return table(self.network, self.batch, self.goal, self.steps, self.chunk)


def plan(net: Network, batch: int = 64, goal: str = "macs") -> Plan:
    """The order of contraction that is cheapest for a batch of inputs.

    The einsum ``y[n, rows] = sum x[n, cols] * core_0 * core_1 ..`` is searched as a whole, so
    pushing the input through the cores and rebuilding the weight first are two of its trees, and
    the batch decides.

    The search is exhaustive up to nine cores. The same arguments give the same plan on any machine.
    Among trees of equal cost the one that the search meets first is kept. What is fastest on this
    machine is another question, and is measured: `bondwise.prepare`.

    Args:
        net: the network.
        batch: rows of the input.
        goal: what is to be small: "macs", multiplications.

    >>> from bondwise import lowrank
    >>> plan(lowrank(64, 64, 4), batch=8).macs        # through the bond: 8 * 64 * 4, twice
    4096
    >>> plan(lowrank(64, 64, 60), batch=512).macs     # cheaper to rebuild the weight first
    2342912

    Raises:
        PlanError: another goal, or a batch that is not a whole number of at least 1.
    """
    if goal != "macs":
        raise PlanError(
            f"Goal {goal!r} came; write goal='macs', and bw.prepare(model) for the least time."
        )
    check_batch(batch)
    return planned(net, _program(net, batch), batch)


def check_batch(batch: int) -> None:
    """Refuse what is no number of inputs.

    Raises:
        PlanError: it is not a whole number of at least 1.
    """
    if isinstance(batch, bool) or not isinstance(batch, int) or batch < 1:
        raise PlanError(
            f"Batch {batch!r} came; write the whole number of inputs to plan for, at least 1 "
            "(the plan then runs any batch, an empty one too)."
        )


def again(made: Plan, net: Network) -> Plan:
    """The same order for a network of the same cores and other sizes."""
    pairs = [(step.left, step.right) for step in made.steps]
    return planned(net, program(*einsum(net, made.batch), pairs), made.batch, made.goal)


def planned(
    net: Network, found: Program, batch: int, goal: str = "macs", chunk: int | None = None
) -> Plan:
    """A program of the network as a plan."""
    entry = (ANY, *(index.size for index in net.cols))
    return Plan(net, batch, goal, found, net.shape, net.core_shapes, entry, chunk)


@cache
def _program(net: Network, batch: int) -> Program:
    return program(*einsum(net, batch))


def einsum(net: Network, batch: int) -> tuple[list[Names], Names, dict[str, int]]:
    """The cores and the input as operands, the output, and all sizes."""
    rows, cols = (tuple(index.name for index in side) for side in (net.rows, net.cols))
    return [*net.names, (BATCH, *cols)], (BATCH, *rows), net.sizes | {BATCH: batch}
