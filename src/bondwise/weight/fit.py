"""A weight as the cores of a network: the best known fit for the structure at hand.

The structure decides, never a name: a parsed network gets the fit of the topology it equals.

    two cores, rows | columns      truncated SVD, in the metric of the inputs where one is given
    block indices                  slice by slice, all slices at once
    open on both sides             the diagonal blocks; what is outside counts as error
    no loops                       SVDs from the leaves inwards, sweeps over pairs (HOOI on a star)
    loops, index on many cores     alternating least squares with restarts
"""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from bondwise.compute.run import dense
from bondwise.errors import FitError, ShapeError
from bondwise.network.network import Network
from bondwise.network.ranks import useful_ranks
from bondwise.network.shapes import balanced
from bondwise.weight.als import fit_alternating, smaller_networks
from bondwise.weight.metric import Metric, second_moment
from bondwise.weight.named import Named, balance
from bondwise.weight.sweep import (
    edge_name,
    fit_tree,
    shared,
    smaller_trees,
    tree_of,
    unfold,
)
from bondwise.weight.target import BLOCK, Target, as_cores, target, zeros
from bondwise.weight.whitened import metric_norm, whitened_split


@dataclass(frozen=True, eq=False)
class Fit:
    """Cores that stand for a weight, and how well.

    ``cores`` are in core-axis order and of the weight's dtype. ``error`` is relative, ``||(W - W~)
    L|| / ||W L||`` with ``C = L L^T`` the metric (the identity where none is given), measured in
    float64 on the cores as they are returned. ``capped`` says which ranks were above what a bond
    can use: asked, kept.
    """

    network: Network
    cores: tuple[Tensor, ...]
    error: float
    capped: dict[str, tuple[int, int]]

    @property
    def parameters(self) -> int:
        """Numbers in all cores, before the gauge gives any back."""
        return self.network.parameters


@torch.no_grad()
def fit(
    weight: Tensor,
    net: Network,
    metric: Metric | Tensor | None = None,
    tol: float | None = None,
    seed: int = 0,
) -> Fit:
    """Fit the cores of ``net`` to a weight (out x in): ``min ||(W - W~) L||_F``, ``C = L L^T``.

    Exact (the global optimum) for two cores, with block indices too; quasi-optimal and then
    improved without loops; a local optimum, the best of several starts drawn from ``seed``, with
    loops.

    Args:
        weight: out x in, of any float dtype; computed in float64.
        net: the network, whose ranks are limits; those above what a bond can use are lowered and
            reported.
        metric: second moment of the inputs (in x in), or a `Metric`; for low rank only so far.
        tol: largest relative error allowed. The fit then has the smallest ranks found that reach
            it, at most those of ``net``; where those do not reach it, it has them, and says its
            real error. Below the rounding of the weight's dtype, that rounding is allowed.
        seed: of the random starts.

    >>> from bondwise import lowrank, mpo
    >>> W = torch.diag(torch.tensor([4.0, 3.0, 0.0]))
    >>> fit(W, lowrank(3, 3, 1)).error            # of 4 and 3, the 3 is lost
    0.6...
    >>> fit(W, lowrank(3, 3, 3), tol=0.1).network.bonds
    {'a': 2}
    >>> fit(torch.eye(64), mpo((8, 8), (8, 8), 16), tol=1e-6).network.bonds
    {'a': 1}

    Raises:
        ShapeError: the weight's shape is not that of the network.
        FitError: the weight is no finite float matrix, the metric no second moment of its inputs
            or not usable with this network, or the tolerance outside [0, 1).
    """
    _check(weight, net, tol)
    useful = useful_ranks(net)
    lowered = {
        bond: (size, useful[bond]) for bond, size in net.bonds.items() if useful[bond] < size
    }
    net = net.resize(**useful)
    scale = float(weight.abs().max())
    job = _job(weight, scale or 1.0, net, metric, seed)
    if scale == 0:
        net = net if tol is None else net.resize(**dict.fromkeys(net.bonds, 1))
        return Fit(net, tuple(zeros(net, weight)), 0.0, lowered)
    if tol is None:
        return job.run(net, lowered)
    return _smallest(job, net, max(tol, _rounding(weight, net)), lowered)


@dataclass(frozen=True, eq=False)
class _Job:
    """Everything about a fit but the ranks."""

    weight: Tensor  # float64, divided by `scale`
    scale: float
    dtype: torch.dtype
    goal: Target
    moment: Tensor | None
    seed: int

    def run(self, net: Network, lowered: dict[str, tuple[int, int]]) -> Fit:
        """The fit with the ranks of ``net``."""
        parts = balance(self._parts(net), self.goal.open)
        share = self.scale ** (1 / len(parts))
        parts = [Named(part.tensor * share, part.names) for part in parts]
        cores = [core.to(self.dtype) for core in as_cores(net, self.goal, parts)]
        return Fit(net, tuple(cores), self._error(net, cores), lowered)

    def smaller(self, net: Network, tol: float) -> Iterable[Network]:
        """Networks from small to ``net``, to be tried against a relative error."""
        tree = tree_of(net, self.goal)
        if tree is None:
            return smaller_networks(net)
        allowed = tol * self._norm
        if self.moment is None:
            return smaller_trees(tree, self.goal, net, allowed)
        ((edge, bonds),) = tree.edges.items()
        most = tree.rank(edge, net.bonds)
        first = whitened_split(self.weight, self.moment, most, allowed).rank
        return (net.resize(**shared(rank, bonds, net)) for rank in range(first, most + 1))

    def _parts(self, net: Network) -> list[Named]:
        tree = tree_of(net, self.goal)
        if tree is None:
            return fit_alternating(net, self.goal, self.seed)
        if self.moment is None:
            return fit_tree(tree, self.goal, net.bonds)
        ((edge, _),) = tree.edges.items()
        cut = whitened_split(self.weight, self.moment, tree.rank(edge, net.bonds))
        sides = [(net.rows, cut.left), (net.cols, cut.right.mT)]
        if net.rows[0].name not in tree.own(0):
            sides.reverse()
        return [
            unfold(
                tree,
                core,
                Named(
                    matrix.reshape(1, *(index.size for index in side), cut.rank),
                    (BLOCK, *(index.name for index in side), edge_name(*edge)),
                ),
                net.bonds,
            )
            for core, (side, matrix) in enumerate(sides)
        ]

    def _error(self, net: Network, cores: list[Tensor]) -> float:
        wide = [core.to(torch.float64) for core in cores]
        off = self.weight - dense(net, wide) / self.scale
        return self._distance(off) / self._norm if self._norm else 0.0

    @cached_property
    def _norm(self) -> float:
        return self._distance(self.weight)

    def _distance(self, matrix: Tensor) -> float:
        return float(matrix.norm()) if self.moment is None else metric_norm(matrix, self.moment)


def _job(
    weight: Tensor, scale: float, net: Network, metric: Metric | Tensor | None, seed: int
) -> _Job:
    """Look at everything before anything is computed."""
    work = weight.detach().to(torch.float64) / scale
    goal = target(work, net)
    moment = None
    if metric is not None:
        moment = second_moment(metric, net.shape[1]).to(work.device)
        if not has_closed_form(net):
            raise FitError(
                f"A metric came with '{net}', but only low rank has its closed form in one so far; "
                "fit without metric=, or use lowrank(rows, cols, rank)."
            )
    return _Job(work, scale, weight.dtype, goal, moment, seed)


def _smallest(job: _Job, net: Network, tol: float, lowered: dict[str, tuple[int, int]]) -> Fit:
    """The fit with the first of the growing networks that reaches the tolerance, by bisection."""
    candidates = list(job.smaller(net, tol))
    best = job.run(candidates[0], lowered)
    if best.error <= tol or len(candidates) == 1:
        return best
    best, low, high = job.run(net, lowered), 1, len(candidates) - 1
    while best.error <= tol and low < high:
        middle = (low + high) // 2
        trial = job.run(candidates[middle], lowered)
        if trial.error <= tol:
            best, high = trial, middle
        else:
            low = middle + 1
    return best


def _check(weight: Tensor, net: Network, tol: float | None) -> None:
    if weight.ndim != 2:
        raise ShapeError(
            f"A weight of shape {tuple(weight.shape)} came; give a matrix of shape {net.shape}."
        )
    if tuple(weight.shape) != net.shape:
        rows, cols = (
            balanced(size, max(1, len(side)))
            for size, side in zip(weight.shape, (net.rows, net.cols), strict=True)
        )
        raise ShapeError(
            f"A weight of shape {tuple(weight.shape)} came for a network of shape {net.shape}; "
            f"give the network modes such as {rows} and {cols}."
        )
    if not weight.is_floating_point():
        raise FitError(
            f"A weight of {weight.dtype} came; cast it to a float dtype, as torch.float32."
        )
    if not torch.isfinite(weight).all():
        raise FitError("A weight with NaN or infinity came; only finite weights can be fitted.")
    if tol is not None and not 0 <= tol < 1:
        raise FitError(f"A tolerance of {tol} came; it is a relative error, in [0, 1).")


def _rounding(weight: Tensor, net: Network) -> float:
    """The error that storing the cores in the weight's dtype may bring."""
    return len(net.cores) * torch.finfo(weight.dtype).eps


def has_closed_form(net: Network) -> bool:
    """Whether a metric can be used: two cores, all rows on one and all columns on the other.

    None of them may be on both (block diagonal).

    >>> from bondwise import lowrank, mpo
    >>> has_closed_form(lowrank(6, 4, 2)), has_closed_form(mpo((2, 3), (2, 2), 2))
    (True, False)
    """
    sides = [{index.name for index in side} for side in (net.rows, net.cols)]
    own = [set(names) & net.open for names in net.names]
    apart = own in (sides, sides[::-1]) and all(sides) and not sides[0] & sides[1]
    # an index summed on one core alone is no bond between the two
    return apart and all(len(net.places[b]) == 2 or size == 1 for b, size in net.bonds.items())
