"""The stack view: the weight as a product of sparse matrices, one for each core."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from math import prod
from operator import index as whole
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from bondwise.compute.run import check_cores
from bondwise.errors import PlanError, ShapeError
from bondwise.network.network import Network
from bondwise.network.stack import Level, State, levels, state

EXHAUSTIVE = 10  # cores; every subset of them is looked at


@dataclass(frozen=True, eq=False)
class Stack:
    """``W = st[-1] @ .. @ st[0]``: sparse factors (COO, coalesced); the first meets the input.

    ``order`` lists the cores as the input meets them: ``st[k]`` holds core ``order[k]``.
    """

    network: Network
    order: tuple[int, ...]
    factors: tuple[Tensor, ...]

    @property
    def levels(self) -> tuple[Level, ...]:
        """What the data carries before and after each factor, by name."""
        return levels(self.network, self.order)

    @property
    def nnz(self) -> int:
        """Entries of all factors."""
        return sum(factor.values().numel() for factor in self.factors)

    @property
    def shapes(self) -> tuple[tuple[int, int], ...]:
        """(out, in) of each factor; the inner sizes are the bonds that data passes over."""
        return tuple((factor.shape[0], factor.shape[1]) for factor in self.factors)

    def with_gauge(self, at: int, X: Float[Tensor, "size size2"]) -> "Stack":
        """The same product with ``X^-1 X`` between factor ``at`` and the next one.

            W = st[-1] .. (st[at + 1] X^-1) (X st[at]) .. st[0]

        The data there, the whole state, becomes ``X`` times what it was. The two factors are then
        no longer a core beside identities, unless ``X`` is: `bondwise.insert_gauge` puts a gauge on
        a single bond, and gives cores. Entries that are zero are not stored.

        >>> from bondwise import lowrank
        >>> st = stack(lowrank(3, 4, 2), [torch.rand(3, 2), torch.rand(2, 4)])
        >>> other = st.with_gauge(0, torch.tensor([[1.0, 2.0], [0.0, 1.0]]))
        >>> torch.allclose(other[1] @ other[0].to_dense(), st[1] @ st[0].to_dense())
        True

        Raises:
            PlanError: no factor, or no next one, at this place.
            ShapeError: X of another size than the state, or without an inverse.
        """
        last = len(self) - 1
        if isinstance(at, bool) or not 0 <= at < last:
            places = f"write at = 0 to {last - 1}" if last else "give a network of two cores"
            raise PlanError(
                f"A gauge came for the place after level {at} of {len(self)}; {places}."
            )
        size, names = self.shapes[at][0], " ".join(index.name for index in self.levels[at].after)
        if tuple(X.shape) != (size, size):
            raise ShapeError(
                f"X of shape {tuple(X.shape)} came; between levels {at} and {at + 1} the state "
                f"({names}) has {size} values, so write ({size}, {size})."
            )
        below, above = (factor.to_dense() for factor in self.factors[at : at + 2])
        back = inverse(X, f"the state ({names}) of size {size}").to(above.device)
        pair = (X.to(below.device).double() @ below.double(), above.double() @ back)
        both = tuple(factor.to(below.dtype).to_sparse() for factor in pair)
        return replace(self, factors=(*self.factors[:at], *both, *self.factors[at + 2 :]))

    def __len__(self) -> int:
        return len(self.factors)

    def __getitem__(self, at: int) -> Tensor:
        return self.factors[at]

    def __iter__(self) -> Iterator[Tensor]:
        return iter(self.factors)


def stack(net: Network, cores: Sequence[Tensor], order: Sequence[int] | None = None) -> Stack:
    """The network pulled apart vertically: each core as a sparse layer, ``(core) x identities``.

    Between two layers the data carries these indices, its *state*: column modes that a later core
    still has, bonds that have been met and are not yet summed, and row modes that have been met.
    A layer multiplies its core into them, takes up the core's new indices and sums those that no
    later core has. An index on three or more cores stays in the state until its last core; a row
    mode that a core finds in the state is a block index; an index that is open on both sides
    passes through. The permutations between layers are part of the factors. So **every order that
    names each core once is possible**; the orders differ in what they cost. A summed index on one
    core only is summed into it.

    The default order has the fewest entries, over all orders up to ten cores, core by core above;
    among equals it is the first.

    Args:
        net: the network.
        cores: one tensor per core, its axes in the order of the core's indices.
        order: positions of the cores as the input meets them; None for the fewest entries.

    >>> from bondwise import lowrank
    >>> st = stack(lowrank(6, 4, 2), [torch.ones(6, 2), torch.ones(2, 4)])
    >>> st.order, st.shapes, st.nnz
    ((1, 0), ((2, 4), (6, 2)), 20)
    >>> (st[1] @ st[0].to_dense())[0]
    tensor([2., 2., 2., 2.])

    Raises:
        PlanError: the order leaves out a core, repeats one, or names one that is not there.
        ShapeError: the cores are not the network's.
    """
    check_cores(net, cores)
    chosen = checked_order(net, order)
    return Stack(net, chosen, tuple(factor(f, cores[f.core]) for f in levels(net, chosen)))


def checked_order(net: Network, order: Iterable[Any] | None) -> tuple[int, ...]:
    """The order as it is meant: the cheapest where none is given.

    Raises:
        PlanError: it leaves out a core, repeats one, or names one that is not there.
    """
    if order is None:
        return cheapest_order(net)
    given = tuple(order)
    try:
        chosen = tuple(-1 if isinstance(core, bool) else whole(core) for core in given)
    except TypeError:  # not whole numbers
        chosen = ()
    if sorted(chosen) != list(range(len(net.cores))):
        raise PlanError(
            f"Order {given} came for {len(net.cores)} cores; write each of 0 to "
            f"{len(net.cores) - 1} once, the core that meets the input first."
        )
    return chosen


def cheapest_order(net: Network) -> tuple[int, ...]:
    """The order of cores whose stack has the fewest entries."""
    return _best(net) if len(net.cores) <= EXHAUSTIVE else _greedy(net)


def _best(net: Network) -> tuple[int, ...]:
    """Over all orders: what a layer costs depends on the set of cores below it alone."""
    every = range(len(net.cores))
    best: dict[frozenset[int], tuple[int, tuple[int, ...]]] = {frozenset(): (0, ())}
    for _ in every:
        after: dict[frozenset[int], tuple[int, tuple[int, ...]]] = {}
        for met, (cost, order) in best.items():
            for core in every:
                if core not in met:
                    found = (cost + _entries(net, met, core), (*order, core))
                    both = met | {core}
                    after[both] = min(after.get(both, found), found)
        best = after
    ((_, order),) = best.values()
    return order


def _greedy(net: Network) -> tuple[int, ...]:
    order: tuple[int, ...] = ()
    while len(order) < len(net.cores):
        met = frozenset(order)
        left = [core for core in range(len(net.cores)) if core not in met]
        order = (*order, min(left, key=lambda core: (_entries(net, met, core), core)))
    return order


def _entries(net: Network, met: frozenset[int], core: int) -> int:
    return prod(i.size for i in {*state(net, met), *state(net, met | {core})})


def factor(level: Level, core: Tensor) -> Tensor:
    """The layer from one state to the next: an entry for each value of the indices of both."""
    indices, before, after = level.indices, level.before, level.after
    lonely = [axis for axis, index in enumerate(indices) if index not in (*before, *after)]
    if lonely:
        core = core.sum(lonely)
        indices = tuple(index for axis, index in enumerate(indices) if axis not in lonely)
    grid = (*after, *(index for index in before if index not in after))
    sizes = [index.size for index in grid]
    held = [index for index in grid if index in indices]
    axes = core.permute([indices.index(index) for index in held])
    values = axes.reshape([index.size if index in held else 1 for index in grid]).expand(sizes)
    places = [_places(state, grid, core.device) for state in (after, before)]
    return torch.sparse_coo_tensor(
        torch.stack([place.expand(sizes).reshape(-1) for place in places]),
        values.reshape(-1),
        [prod(index.size for index in state) for state in (after, before)],
        check_invariants=True,
        is_coalesced=True,  # the grid runs over the rows first, then over the columns of each
    )


def _places(state: State, grid: State, device: torch.device) -> Tensor:
    """Row-major position in a state, as an array over the grid."""
    place = torch.zeros([1] * len(grid), dtype=torch.int64, device=device)
    for index in state:
        values = torch.arange(index.size, device=device)
        along = values.reshape([index.size if other == index else 1 for other in grid])
        place = place * index.size + along
    return place


def inverse(X: Tensor, where: str) -> Tensor:
    """``X^-1`` in float64, for a square ``X``.

    Args:
        X: the gauge.
        where: the place that it is meant for, as in "bond a of size 4".

    >>> inverse(torch.diag(torch.tensor([2.0, 4.0])), "bond a of size 2").diag()
    tensor([0.5000, 0.2500], dtype=torch.float64)

    Raises:
        ShapeError: entries that are not finite, or a condition number with which nothing is left.
    """
    if not bool(X.isfinite().all()):
        raise ShapeError(f"X for {where} has entries that are not finite; give finite ones.")
    condition = float(torch.linalg.cond(X.double()))
    # the usual tolerance for a numerical rank, at the precision in which X came
    eps = torch.finfo(X.dtype if X.is_floating_point() else torch.float64).eps
    if not condition < 1 / (len(X) * eps):
        raise ShapeError(
            f"X for {where}, {len(X)} x {len(X)}, has condition number {condition:.3g}; "
            "write one with an inverse."
        )
    return torch.linalg.inv(X.double())
