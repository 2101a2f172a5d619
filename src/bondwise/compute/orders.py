"""All stacks of a network that are not the same: an order for each, and what it costs."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from math import prod
from textwrap import fill

from bondwise.errors import PlanError
from bondwise.network.network import Network
from bondwise.network.stack import Level, levels, state

WIDTH = 8  # unfinished stacks that go on for each one asked for: enough for a chain of ten cores

Roles = tuple[str | None, ...]
"""For each core met, which of its indices come in (``<``), go out (``>``) or do both."""

Partial = dict[Roles, tuple[int, tuple[int, ...]]]
"""Unfinished stacks: how their cores are read, their entries and the order."""

Step = Callable[[frozenset[int], int], tuple[int, str]]


@dataclass(frozen=True)
class Order:
    """An order of the cores, the one that meets the input first, and the levels that it makes."""

    order: tuple[int, ...]
    levels: tuple[Level, ...]

    @property
    def shapes(self) -> tuple[tuple[int, int], ...]:
        """(out, in) of each level."""
        return tuple(level.shape for level in self.levels)

    @property
    def nnz(self) -> int:
        """Entries of all levels."""
        return sum(level.nnz for level in self.levels)

    def macs(self, batch: int) -> int:
        """Multiplications for a batch: each entry meets each row of it once.

        Pushing the data through the cores as dense tensors multiplies as often: the identities of
        a level are not multiplied with, and what is left is an entry of the core times one of the
        data.
        """
        return batch * self.nnz


@dataclass(frozen=True)
class Orders:
    """The orders of a network that make different stacks, the one with the fewest entries first.

    ``complete`` says whether these are all of them.
    """

    network: Network
    found: tuple[Order, ...]
    complete: bool

    def __len__(self) -> int:
        return len(self.found)

    def __getitem__(self, at: int) -> Order:
        return self.found[at]

    def __iter__(self) -> Iterator[Order]:
        return iter(self.found)

    def __str__(self) -> str:
        """A line for each order: entries, and the cores with what the data carries between."""
        how = "all" if self.complete else "there are more"
        lines = [fill(str(self.network), 80), f"{len(self)} different stacks, {how}", ""]
        lines.append(f"{'entries':>12}  levels, from the input up")
        for order in self:
            walk = f"{order.nnz:>12,}  {_walk(order)}"
            lines.append(fill(walk, 80, initial_indent="", subsequent_indent=" " * 14))
        return "\n".join(lines)


def orders(net: Network, limit: int = 512) -> Orders:
    """All stacks of a network that differ, each with the order of it that has the fewest entries.

    A core can be read as a matrix in several ways: each of its indices comes in from the level
    below, goes out to the level above, or does both (a block index). **Two orders make the same
    stack if they read every core as the same matrix.** They then differ by swaps of neighbouring
    levels that do not touch each other (they share no index, or only pass it on), and a swap
    changes nothing but the identities beside the two cores. For bonds of two cores this counts
    which end of each bond comes first, without a circle: the acyclic orientations of the network
    (Stanley 1973), ``2^(K-1)`` for a chain of K cores and ``2^K - 2`` for a ring.

    Stacks are sought core by core, and those that agree so far are kept as one. Of unfinished
    stacks no more than eight times ``limit`` go on, and no more than ``limit`` are returned, those
    with the fewest entries; where some were left, ``complete`` is False, and the orders are good
    ones, not all. Chains and rings are complete up to ten and nine cores at 512.

    Args:
        net: the network.
        limit: how many stacks are returned at most.

    >>> from bondwise import mpo
    >>> found = orders(mpo((2, 2, 2), (2, 2, 2), 2))
    >>> [order.order for order in found], found.complete
    ([(0, 1, 2), (2, 1, 0), (0, 2, 1), (1, 0, 2)], True)
    >>> found[0].shapes, found[0].nnz, found[0].macs(batch=10)
    (((16, 8), (16, 16), (8, 16)), 128, 1280)

    Raises:
        PlanError: a limit below 1.
    """
    if isinstance(limit, bool) or limit < 1:
        raise PlanError(f"Limit {limit} came; write how many stacks to keep, at least 1.")
    step, complete = _steps(net), True
    partial: Partial = {(None,) * len(net.cores): (0, ())}
    for left in reversed(range(len(net.cores))):
        longer, most = _longer(partial, step), WIDTH * limit if left else limit
        complete = complete and len(longer) <= most
        partial = dict(sorted(longer.items(), key=lambda item: item[1])[:most])
    best = sorted(partial.values())
    return Orders(net, tuple(Order(order, levels(net, order)) for _, order in best), complete)


def _steps(net: Network) -> Step:
    """What the next core costs, and how it is read, when a set of cores has been met."""

    @cache
    def step(met: frozenset[int], core: int) -> tuple[int, str]:
        before, after = state(net, met), state(net, met | {core})
        roles = ("<" * (i in before) + ">" * (i in after) for i in net.cores[core])
        return prod(index.size for index in {*before, *after}), " ".join(roles)

    return step


def _longer(partial: Partial, step: Step) -> Partial:
    """Each unfinished stack with each core that it lacks; of those that agree, the cheapest."""
    longer: Partial = {}
    for roles, (cost, order) in partial.items():
        met = frozenset(order)
        for core in range(len(roles)):
            if core not in met:
                entries, role = step(met, core)
                both = (*roles[:core], role, *roles[core + 1 :])
                found = (cost + entries, (*order, core))
                longer[both] = min(longer.get(both, found), found)
    return longer


def _walk(order: Order) -> str:
    states = [order.levels[0].before, *(level.after for level in order.levels)]
    names = [" ".join(index.name for index in each) for each in states]
    steps = zip(order.order, names[1:], strict=True)
    return f"({names[0]})" + "".join(f" [{core}] ({after})" for core, after in steps)
