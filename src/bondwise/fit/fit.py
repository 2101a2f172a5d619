"""A weight as the cores of a network: the best known fit for the structure at hand.

The structure decides, never a name: a parsed network gets the fit of the topology it equals.

    two cores, rows | columns      truncated SVD, in the metric of the inputs where one is given
    block indices                  slice by slice, all slices at once
    open on both sides             the diagonal blocks; what is outside counts as error
    no loops                       SVDs from the leaves inwards, sweeps over pairs (HOOI on a star)
    loops, index on many cores     alternating least squares with restarts

In the metric of the inputs, low rank has its closed form. Any other network starts
from the fit above in coordinates that a Kronecker product of the metric whitens, and goes on by
alternating least squares in the metric itself.
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import cached_property
from time import perf_counter

import torch
from torch import Tensor

from bondwise.compute.run import dense
from bondwise.errors import FitError, ShapeError
from bondwise.fit.als import fit_plain, smaller_networks
from bondwise.fit.metric import Metric, second_moment
from bondwise.fit.named import Named, balance
from bondwise.fit.split import Split
from bondwise.fit.starts import fit_weighted, whitened_target
from bondwise.fit.sweep import edge_name, shared, smaller_trees, tree_of, unfold
from bondwise.fit.target import BLOCK, Target, as_cores, target, zeros
from bondwise.fit.weighted import Weighted
from bondwise.fit.whitened import whitened_split
from bondwise.network.network import Network
from bondwise.network.ranks import useful_ranks
from bondwise.network.shapes import balanced


@dataclass(frozen=True, eq=False)
class Fit:
    """Cores that stand for a weight, and how well.

    ``cores`` are in core-axis order and of the weight's dtype. ``error`` is relative, ``||(W - W~)
    L|| / ||W L||`` with ``C = L L^T`` the metric (the identity where none is given), measured in
    float64 on the cores as they are returned; ``held_out`` is the same in the held-out metric.
    ``capped`` says which ranks were above what a bond can use: asked, kept. ``seconds`` is the time
    that the fit took; ``sweeps`` the relative error at the start and after every sweep in the
    metric, which never rises, before the cores are rounded to their dtype (one number where there
    were no such sweeps).
    """

    network: Network
    cores: tuple[Tensor, ...]
    error: float
    capped: dict[str, tuple[int, int]]
    held_out: float | None = None
    seconds: float = 0.0
    sweeps: tuple[float, ...] = ()

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
    *,
    held_out: Metric | Tensor | None = None,
    sweeps: int = 20,
    progress: float = 2e-3,
) -> Fit:
    """Fit the cores of ``net`` to a weight (out x in): ``min ||(W - W~) L||_F``, ``C = L L^T``.

    Exact (the global optimum) for two cores, with block indices too; quasi-optimal and then
    improved without loops; a local optimum, the best of several starts drawn from ``seed``, with
    loops. In a metric: exact for low rank; a local optimum, not above the error of the fit without
    the metric, for any other network.

    Args:
        weight: out x in, of any float dtype; computed in float64.
        net: the network, whose ranks are limits; those above what a bond can use are lowered and
            reported.
        metric: second moment of the inputs (in x in), or a `Metric`.
        tol: largest relative error allowed. The fit then has the smallest ranks found that reach
            it, at most those of ``net``; where those do not reach it, it has them, and says its
            real error. Below the rounding of the weight's dtype, that rounding is allowed.
        seed: of the random starts.
        held_out: a metric of other inputs, in which ``Fit.held_out`` is measured.
        sweeps: the most sweeps in a metric, where there is no closed form.
        progress: a relative gain per sweep, below which (twice in a row) sweeping stops.

    >>> from bondwise import lowrank, mpo
    >>> W = torch.diag(torch.tensor([4.0, 3.0, 0.0]))
    >>> fit(W, lowrank(3, 3, 1)).error            # of 4 and 3, the 3 is lost
    0.6...
    >>> fit(W, lowrank(3, 3, 3), tol=0.1).network.bonds
    {'a': 2}
    >>> fit(torch.eye(64), mpo((8, 8), (8, 8), 16), tol=1e-6).network.bonds
    {'a': 1}
    >>> quiet = torch.diag(torch.tensor([1e-4, 1.0, 1e-4, 1.0]))   # inputs 0 and 2 hardly occur
    >>> W = torch.arange(16.0).reshape(4, 4) % 7
    >>> net = mpo((2, 2), (2, 2), 2)
    >>> round(fit(W, net, metric=quiet).error, 3), round(fit(W, net).error, 3)
    (0.005, 0.289)

    Raises:
        ShapeError: the weight's shape is not that of the network.
        FitError: the weight is no finite float matrix, the metric no second moment of its inputs,
            or the tolerance outside [0, 1).
    """
    began = perf_counter()
    _check(weight, net, tol)
    useful = useful_ranks(net)
    lowered = {
        bond: (size, useful[bond]) for bond, size in net.bonds.items() if useful[bond] < size
    }
    net = net.resize(**useful)
    scale = float(weight.abs().max())
    work = weight.detach().to(torch.float64) / (scale or 1.0)
    job = _Job(work, scale, weight.dtype, net, _weighted(work, metric), seed, sweeps, progress)
    unseen = _weighted(work, held_out)  # refused here, before anything is computed
    if scale == 0:
        small = net if tol is None else net.resize(**dict.fromkeys(net.bonds, 1))
        best = Fit(small, tuple(zeros(small, weight)), 0.0, lowered, sweeps=(0.0,))
    elif tol is None:
        best = job.run(net, lowered)
    else:
        best = _smallest(job, net, max(tol, _rounding(weight, net)), lowered)
    best = replace(best, seconds=perf_counter() - began)
    if held_out is not None:
        best = replace(best, held_out=_relative(work, unseen, best, scale))
    return best


@dataclass(frozen=True, eq=False)
class _Job:
    """Everything about a fit but the ranks."""

    weight: Tensor  # float64, divided by `scale`
    scale: float
    dtype: torch.dtype
    full: Network
    goal: Weighted | None
    seed: int
    sweeps: int
    progress: float

    def run(self, net: Network, lowered: dict[str, tuple[int, int]]) -> Fit:
        """The fit with the ranks of ``net``."""
        if self.goal is None or has_closed_form(net):
            parts = balance(self._parts(net), self.free.open)
            wide, errors = as_cores(net, self.free, parts), None
        else:
            wide, errors = fit_weighted(net, self.goal, self.seed, self.sweeps, self.progress)
        share = self.scale ** (1 / len(wide))
        cores = tuple((core * share).to(self.dtype) for core in wide)
        result = Fit(net, cores, 0.0, lowered)
        error = _relative(self.weight, self.goal, result, self.scale)
        sweeps = errors if errors is not None and self._norm else None
        steps = (error,) if sweeps is None else tuple(e / self._norm for e in sweeps)
        return replace(result, error=error, sweeps=steps)

    def smaller(self, net: Network, tol: float) -> Iterable[Network]:
        """Networks from small to ``net``, to be tried against a relative error."""
        tree = tree_of(net, self.free)
        if tree is None:
            return smaller_networks(net)
        if self.goal is None:
            return smaller_trees(tree, self.free, net, tol * self._norm)
        if not has_closed_form(net):
            near, _ = whitened_target(net, self.goal)
            # the factors are not the metric: what they allow is taken wider
            return smaller_trees(tree, near, net, 2 * tol * float(near.values.tensor.norm()))
        ((edge, bonds),) = tree.edges.items()
        most = tree.rank(edge, net.bonds)
        first = self._cut(most, tol * self._norm).rank
        return (net.resize(**shared(rank, bonds, net)) for rank in range(first, most + 1))

    @cached_property
    def free(self) -> Target:
        """The target without a metric."""
        return target(self.weight, self.full)

    @cached_property
    def _norm(self) -> float:
        return _distance(self.goal, self.weight)

    def _cut(self, rank: int, tol: float | None = None) -> Split:
        assert self.goal is not None
        return whitened_split(self.weight, self.goal.moment, rank, tol)

    def _parts(self, net: Network) -> list[Named]:
        tree = tree_of(net, self.free)
        if self.goal is None or tree is None:
            return fit_plain(net, self.free, self.seed)
        ((edge, _),) = tree.edges.items()
        cut = self._cut(tree.rank(edge, net.bonds))
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


def _weighted(weight: Tensor, metric: Metric | Tensor | None) -> Weighted | None:
    """The goal in a metric; None where there is none, or only the identity at some scale."""
    if metric is None:
        return None
    moment = second_moment(metric, weight.shape[1]).to(weight.device)
    identity = torch.eye(len(moment), dtype=moment.dtype, device=moment.device)
    return None if torch.equal(moment, identity) else Weighted(weight, moment)


def _relative(weight: Tensor, goal: Weighted | None, result: Fit, scale: float) -> float:
    """The error of cores as they are stored, in float64."""
    wide = [core.to(torch.float64) for core in result.cores]
    off = weight - dense(result.network, wide) / (scale or 1.0)
    norm = _distance(goal, weight)
    return _distance(goal, off) / norm if norm else 0.0


def _distance(goal: Weighted | None, matrix: Tensor) -> float:
    return float(matrix.norm()) if goal is None else goal.distance(matrix)


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
    """Whether a metric has a closed form: two cores, all rows on one and all columns on the other.

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
