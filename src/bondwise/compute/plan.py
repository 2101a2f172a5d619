"""In which order to contract: the cheapest tree of pairwise steps, with the input as an operand."""

from dataclasses import dataclass
from functools import cache

from bondwise.compute.lower import ANY, BATCH, Recipe, Step, recipe
from bondwise.compute.table import table
from bondwise.errors import PlanError
from bondwise.network.network import Network

GOALS = ("macs", "time")


@dataclass(frozen=True)
class Plan:
    """An order of contraction, lowered to matmuls: plain data, and right for any batch size.

    ``batch`` is the size that the order was sought for; ``macs`` the multiplications at that size.
    """

    network: Network
    batch: int
    goal: str
    recipe: Recipe
    shape: tuple[int, int]  # (out, in) of the weight
    core_shapes: tuple[tuple[int, ...], ...]
    entry: tuple[int, ...]  # the shape of x as an operand: any batch, then the column modes

    @property
    def macs(self) -> int:
        """Multiplications for the whole batch: all distinct sizes of a step, summed over steps."""
        return self.recipe.macs

    @property
    def steps(self) -> tuple[Step, ...]:
        """The products in order; operands are the cores, then x, then results of earlier steps."""
        return self.recipe.steps

    def __str__(self) -> str:
        return table(self.network, self.batch, self.goal, self.steps)


def plan(net: Network, batch: int = 64, goal: str = "macs") -> Plan:
    """The order of contraction with the fewest multiplications for a batch of inputs.

    The einsum ``y[n, rows] = sum x[n, cols] * core_0 * core_1 ..`` is searched as a whole, so
    pushing the input through the cores and rebuilding the weight first are two of its trees, and
    the batch decides. The search is exhaustive up to nine cores. The same arguments give the same
    plan on any machine.

    ``goal="time"`` is what layers ask for. There is no cost model in seconds yet: it gives the
    plan of ``"macs"``. Among trees of equal cost the one that the search meets first is kept.

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
    if isinstance(batch, bool) or not isinstance(batch, int) or batch < 1:
        raise PlanError(
            f"Batch {batch!r} came; write the whole number of inputs to plan for, at least 1 "
            "(the plan then runs any batch, an empty one too)."
        )
    entry = (ANY, *(index.size for index in net.cols))
    return Plan(net, batch, goal, _recipe(net, batch), net.shape, net.core_shapes, entry)


@cache
def _recipe(net: Network, batch: int) -> Recipe:
    rows, cols = (tuple(index.name for index in side) for side in (net.rows, net.cols))
    return recipe([*net.names, (BATCH, *cols)], (BATCH, *rows), net.sizes | {BATCH: batch})
