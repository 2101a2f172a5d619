"""In which order to contract: the cheapest tree of pairwise steps, with the input as an operand."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from math import prod
from typing import Any

from bondwise.compute.lower import operands, program
from bondwise.compute.machine import CHUNKS, Rates, machine
from bondwise.compute.search import ALL_TREES, Pair, every, rebuilt, search
from bondwise.compute.steps import ANY, BATCH, Program, Step, squeezed, table
from bondwise.errors import PlanError
from bondwise.network.network import Network

GOALS = ("macs", "time")
AGAIN = 1.4  # what a path of several steps takes with its gradients, over one step's
REMADE = 4 / 3  # what making a weight twice takes with its gradients, over making it once
VIEWS = 3  # calls' time that it takes to see a value as a matrix, and a product as a value
MARGIN = 1.1  # what a path of several steps takes over what the model says, at worst
CALLS_PER_CHUNK = 4  # to cut the input and to put the output in its place
CHUNK_MARGIN = 0.1  # what chunks must gain by the model, to be worth what it does not know
FEWEST_ROWS = 16  # at a time, where gradients are asked for: below, matmuls are slow
NOMINAL = (4, 256)  # batches that orders and layouts are sought for, where time decides


@dataclass(frozen=True)
class Plan:
    """An order of contraction, lowered to matmuls: plain data, and right for any batch size.

    Attributes:
        network: what is contracted.
        batch: the size that the order was sought for; ``macs`` are the multiplications at it.
        goal: what was to be small.
        program: the steps.
        shape: (out, in) of the weight.
        core_shapes: of the cores that it takes.
        entry: the shape of x as an operand: any batch, then the column modes.
        chunk: rows of the input that go along the path at a time, so that what lies between the
            products stays in the cache; None: all of them.
        seconds: modelled for the batch, with ``goal="time"``.
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
    seconds: float | None = None
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

    ``goal="macs"``: the fewest multiplications. The search is exhaustive up to nine cores. The same
    arguments give the same plan on any machine. Among trees of equal cost the one that the search
    meets first is kept.

    ``goal="time"``: the fewest seconds in float32, by the rates of this machine
    (`bondwise tune` measures them), which also say how many rows to take at a time.

    Args:
        net: the network.
        batch: rows of the input.
        goal: what is to be small: "macs" or "time".

    >>> from bondwise import lowrank
    >>> plan(lowrank(64, 64, 4), batch=8).macs        # through the bond: 8 * 64 * 4, twice
    4096
    >>> plan(lowrank(64, 64, 60), batch=512).macs     # cheaper to rebuild the weight first
    2342912

    Raises:
        PlanError: another goal, or a batch that is not a whole number of at least 1.
    """
    if goal not in GOALS:
        raise PlanError(f"Goal {goal!r} came; write one of {', '.join(GOALS)}.")
    check_batch(batch)
    if goal == "time":
        return timed(net, batch, machine().rates(4), 4, ready=False)
    return _made(net, batch, goal, _program(net, batch))


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


@cache
def timed(
    net: Network, batch: int, rates: Rates, itemsize: int, ready: bool, training: bool = False
) -> Plan:
    """The plan that takes the fewest seconds by these rates, for numbers of so many bytes.

    ``ready``: the weights of the path are prepared beforehand and kept, so that only the path
    counts. ``training``: gradients follow, for which a path of several steps is partly gone again.
    """
    found = [
        (seconds(each, batch, chunk, rates, itemsize, ready, training), at, each, chunk)
        for at, each in enumerate(_fitting(net, rates) if training else _programs(net, rates))
        for chunk in (None, *(rows for rows in CHUNKS if rows < batch))
    ]
    took, _, best, chunk = min(found, key=lambda option: option[:2])
    made = _made(net, batch, "time", best.resized(batch))
    return replace(made, chunk=chunk, seconds=took)


def seconds(
    found: Program,
    batch: int,
    chunk: int | None,
    rates: Rates,
    itemsize: int,
    ready: bool,
    training: bool = False,
) -> float:
    """Modelled seconds of a program for a batch, all of it at once or in chunks."""
    whole, rest = divmod(batch, chunk or batch)
    path = whole * _path_seconds(found, chunk or batch, rates, itemsize)
    if rest:
        path += _path_seconds(found, rest, rates, itemsize)
    if chunk is not None and chunk < batch:
        width = found.path[-1].numbers // found.batch
        path += 2 * batch * width * itemsize / rates.cached  # into their place
        path += (whole + bool(rest)) * CALLS_PER_CHUNK * rates.call
        path *= 1 + CHUNK_MARGIN
    one = len(found.path) == 1
    if not one:
        path *= MARGIN * (AGAIN if training else 1)
    if ready:
        return path
    weights = _weights_seconds(found, rates, itemsize)
    return path + weights * (REMADE if training and one else 1)


def _path_seconds(found: Program, rows: int, rates: Rates, itemsize: int) -> float:
    total, path = 0.0, found.resized(rows).path
    for step in path:
        total += VIEWS * rates.call + rates.product(step.extents, itemsize)
        if step.moved:
            total += rates.permuted(step.moved, itemsize)
    if found.result is not None and found.result.order:
        total += rates.permuted(path[-1].numbers, itemsize)
    return total


def _weights_seconds(found: Program, rates: Rates, itemsize: int) -> float:
    total = 0.0
    for step in found.steps:
        g, m, n, k = step.extents
        if step.grows is None:
            total += rates.product(step.extents, itemsize)
            if step.left_view and step.left_view.order:
                total += rates.permuted(g * m * k, itemsize)
        if step.right_view and step.right_view.order:
            total += rates.permuted((1 if step.kind == "push" else g) * n * k, itemsize)
    return total


def again(made: Plan, net: Network) -> Plan:
    """The same order for a network of the same cores and other sizes."""
    inputs, output, sizes = _einsum(net, made.batch)
    pairs = [(step.left, step.right) for step in made.steps]
    return _made(net, made.batch, made.goal, program(inputs, output, sizes, pairs))


def _made(net: Network, batch: int, goal: str, found: Program) -> Plan:
    entry = (ANY, *(index.size for index in net.cols))
    return Plan(net, batch, goal, found, net.shape, net.core_shapes, entry)


@cache
def _program(net: Network, batch: int) -> Program:
    inputs, output, sizes = _einsum(net, batch)
    return program(inputs, output, sizes)


@cache
def _programs(net: Network, rates: Rates) -> tuple[Program, ...]:
    """Programs worth looking at."""
    found = list[Program]()
    for batch in NOMINAL:
        inputs, output, sizes = _einsum(net, batch)
        made = (program(inputs, output, sizes, pairs, rates) for pairs in _trees(net))
        found += (each.resized(NOMINAL[0]) for each in made)
    return tuple(dict.fromkeys(found))


def _fitting(net: Network, rates: Rates) -> Sequence[Program]:
    """Those whose values for the fewest rows at a time are no larger than half the weight.

    All of them, if none is.
    """
    found, room = _programs(net, rates), prod(net.shape) / (2 * FEWEST_ROWS)
    return [each for each in found if each.width <= room] or found


@cache
def _trees(net: Network) -> tuple[tuple[Pair, ...], ...]:
    if len(net.cores) < ALL_TREES:
        return tuple(tuple(tree) for tree in every(len(net.cores) + 1))
    found = list[list[Pair]]()
    for batch in (1, 16, 256, 4096):
        inputs, output, sizes = _einsum(net, batch)
        values = operands(inputs, output, sizes)
        found.append(search(values, squeezed(output, sizes), sizes))
    inputs, output, sizes = _einsum(net, NOMINAL[0])
    found.append(rebuilt(operands(inputs, output, sizes), squeezed(output, sizes), sizes))
    found += _in_turn(len(net.cores))
    return tuple(dict.fromkeys(tuple(tree) for tree in found))


def _in_turn(cores: int) -> Iterator[list[Pair]]:
    """The input meets one core after another, from either end."""
    for order in (range(cores), reversed(range(cores))):
        at, pairs = cores, list[Pair]()
        for offset, core in enumerate(order):
            pairs.append((core, at))
            at = cores + 1 + offset
        yield pairs


def _einsum(
    net: Network, batch: int
) -> tuple[list[tuple[str, ...]], tuple[str, ...], dict[str, int]]:
    rows, cols = (tuple(index.name for index in side) for side in (net.rows, net.cols))
    return [*net.names, (BATCH, *cols)], (BATCH, *rows), net.sizes | {BATCH: batch}
