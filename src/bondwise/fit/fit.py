"""A weight as the cores of a network: the best known fit for the structure at hand.

The structure decides, never a name: a parsed network gets the fit of the topology it equals.

    two cores, rows | columns      truncated SVD, in the metric of the inputs where one is given
    block indices                  slice by slice, all slices at once
    open on both sides             the diagonal blocks; what is outside counts as error
    no loops                       SVDs from the leaves inwards, sweeps over pairs (HOOI on a star)
    loops, index on many cores     alternating least squares with restarts

In the metric of the inputs, low rank has its closed form. A factor of the metric that one core has
to itself (channels and kernel of a convolution, on Tucker-2) is an exact change of coordinates, in
which the fit above serves. Any other network starts from the fit above in coordinates that a
Kronecker product of the metric whitens, and goes on by alternating least squares in the metric
itself.
"""

from dataclasses import dataclass, replace
from time import perf_counter
from typing import SupportsIndex

import torch
from torch import Tensor

from bondwise.compute.run import Numbers, as_tensor
from bondwise.errors import FitError, ShapeError, whole_number
from bondwise.fit.alternating.terms import term_bonds
from bondwise.fit.dispatch import Problem, in_metric
from bondwise.fit.metric import Kronecker, Metric
from bondwise.fit.target import zeros
from bondwise.network.network import Network
from bondwise.network.ranks import useful_ranks
from bondwise.network.shapes import balanced

Capped = dict[str, tuple[int, int]]


@dataclass(frozen=True, eq=False)
class Fit:
    """Cores that stand for a weight, and how well.

    ``cores`` are in core-axis order and of the weight's dtype. ``error`` is relative, ``||(W - W~)
    L|| / ||W L||`` with ``C = L L^T`` the metric (the identity where none is given), measured in
    float64 on the cores as they are returned; ``held_out`` is the same in the held-out metric.
    ``capped`` says which ranks were above what a bond can use: asked, kept. ``seconds`` is the time
    that the fit took; ``sweeps`` the relative error at the start and after every sweep in the
    metric, which never rises, before the cores are rounded to their dtype (one number where there
    were no such sweeps). ``term_norm`` is the largest ``||term L|| / ||W L||`` of a
    sum of terms on one index of three cores or more, as CP, and never above 10; else None.
    """

    network: Network
    cores: tuple[Tensor, ...]
    error: float
    capped: Capped
    held_out: float | None = None
    seconds: float = 0.0
    sweeps: tuple[float, ...] = ()
    term_norm: float | None = None

    @property
    def parameters(self) -> int:
        """Numbers in all cores, before the gauge gives any back."""
        return self.network.parameters


@torch.no_grad()
def fit(
    weight: Numbers,
    net: Network,
    metric: Metric | Kronecker | Numbers | None = None,
    tol: float | None = None,
    seed: SupportsIndex = 0,
    *,
    held_out: Metric | Kronecker | Numbers | None = None,
    sweeps: int = 20,
    progress: float = 2e-3,
) -> Fit:
    """Fit the cores of ``net`` to a weight (out x in): ``min ||(W - W~) L||_F``, ``C = L L^T``.

    Exact (the global optimum) for two cores, with block indices too; quasi-optimal and then
    improved without loops; a local optimum, the best of several starts drawn from ``seed``, with
    loops. In a metric: exact for low rank; a local optimum, not above the error of the fit without
    the metric, for any other network.

    Args:
        weight: out x in, of any float dtype, an array too; computed in float64.
        net: the network, whose ranks are limits; those above what a bond can use are lowered and
            reported.
        metric: second moment of the inputs (in x in), a `Metric`, or a `Kronecker` metric of the
            patches of a convolution, at whose border the column modes have to split.
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
    weight, seed = as_tensor(weight), whole_number("seed", seed, FitError)
    metric, held_out = _as_metric(metric), _as_metric(held_out)
    _check(weight, net, tol)
    useful = useful_ranks(net)
    capped = {b: (size, useful[b]) for b, size in net.bonds.items() if useful[b] < size}
    net = net.resize(**useful)
    scale = float(weight.abs().max())
    work = weight.detach().to(torch.float64) / (scale or 1.0)
    goal, unseen = in_metric(work, metric), in_metric(work, held_out)
    problem = Problem(work, scale, weight.dtype, net, goal, seed, sweeps, progress)
    if scale == 0:
        small = net if tol is None else net.resize(**dict.fromkeys(net.bonds, 1))
        terms = 0.0 if term_bonds(net) else None
        best = Fit(small, tuple(zeros(small, weight)), 0.0, capped, sweeps=(0.0,), term_norm=terms)
    elif tol is None:
        best = _fitted(problem, net, capped)
    else:
        best = _smallest(problem, net, max(tol, _rounding(weight, net)), capped)
    if held_out is not None:
        elsewhere = replace(problem, goal=unseen).error(best.network, best.cores)
        best = replace(best, held_out=elsewhere)
    return replace(best, seconds=perf_counter() - began)


def _as_metric(
    given: Metric | Kronecker | Numbers | None,
) -> Metric | Kronecker | Tensor | None:
    return given if given is None or isinstance(given, Metric | Kronecker) else as_tensor(given)


def _fitted(problem: Problem, net: Network, capped: Capped) -> Fit:
    """The fit with the ranks of ``net``."""
    wide, errors = problem.solve(net)
    share = problem.scale ** (1 / len(wide))
    cores = tuple((core * share).to(problem.dtype) for core in wide)
    error, norm = problem.error(net, cores), problem.norm
    steps = tuple(e / norm for e in errors) if errors and norm else (error,)
    terms = problem.term_norm(net, cores)
    return Fit(net, cores, error, capped, sweeps=steps, term_norm=terms)


def _smallest(problem: Problem, net: Network, tol: float, capped: Capped) -> Fit:
    """The fit with the first of the growing networks that reaches the tolerance, by bisection."""
    candidates = list(problem.smaller(net, tol))
    best = _fitted(problem, candidates[0], capped)
    if best.error <= tol or len(candidates) == 1:
        return best
    best, low, high = _fitted(problem, net, capped), 1, len(candidates) - 1
    while best.error <= tol and low < high:
        middle = (low + high) // 2
        trial = _fitted(problem, candidates[middle], capped)
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
