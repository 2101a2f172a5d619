"""Any network in a metric: alternating least squares over its cores, in the metric itself.

The error ``||(W - W~) L||^2``, with ``C = L L^T``, is quadratic in each core. With ``E`` the other
cores contracted, a half-step solves for the change ``d`` of one core

    E^T C E d = E^T (W - W~) C,

by Cholesky where that is less work, else by conjugate gradients: there the left side is only ever
applied, as ``W~(d)``, a product with ``C`` and a contraction with the other cores. The gradients
are preconditioned by the same matrix for a Kronecker product in the place of ``C``: they run in
whitened coordinates. The change starts from zero, so every half-step starts warm, and a sweep that
does not lower the error is not taken.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from math import prod

import torch
from torch import Tensor

from bondwise.compute.run import dense
from bondwise.fit.alternating.kronecker import factors_of
from bondwise.fit.alternating.preconditioner import preconditioner
from bondwise.fit.alternating.solvers import ENTRIES, SMALL, conjugate_gradients, solve
from bondwise.fit.alternating.terms import LIMIT, largest_term
from bondwise.fit.moment import Moment
from bondwise.fit.named import Named, balance, contract, largest_intermediate, prime, twin
from bondwise.fit.target import reach
from bondwise.network.network import Network

_STEPS = 20  # of conjugate gradients in a half-step
_ENOUGH = 0.02  # of the first residual: the other cores move before a better answer is worth it
_CALLS = 2**26  # multiplications in the time that the calls of conjugate gradients take
_ROUNDING = 1e-13  # a relative error that is rounding
_FINE = 2**17  # entries of a weight up to which gradients are in float64


@dataclass(frozen=True, eq=False)
class Weighted:
    """A weight and the metric of its inputs, both float64."""

    weight: Tensor
    moment: Moment

    def distance(self, matrix: Tensor) -> float:
        """``||A L||``."""
        return max(0.0, float((matrix * self.moment.push(matrix)).sum())) ** 0.5

    def pull(self, net: Network, cores: Sequence[Tensor]) -> tuple[float, Named]:
        """The squared error, and ``(W - W~) C`` where the network can reach it."""
        off = self._in(cores[0].dtype) - dense(net, cores)
        pushed = self.moment.push(off)
        return max(0.0, float((off * pushed).sum())), reach(pushed, net)

    def error(self, net: Network, cores: Sequence[Tensor]) -> float:
        """``||(W - W~) L||``."""
        return self.pull(net, cores)[0] ** 0.5

    def bounded(self, net: Network, cores: Sequence[Tensor]) -> bool:
        """Whether no term of a sum is so large that terms cancel."""
        largest = largest_term(net, cores, self.moment)
        return largest is None or largest <= LIMIT * self.norm

    @property
    def working(self) -> torch.dtype:
        """In which steps are found: float32 for a large weight; errors are always in float64."""
        return torch.float64 if self.weight.numel() <= _FINE else torch.float32

    @cached_property
    def norm(self) -> float:
        """``||W L||``."""
        return self.distance(self.weight)

    def _in(self, dtype: torch.dtype) -> Tensor:
        return self.weight if dtype == torch.float64 else self._single

    @cached_property
    def _single(self) -> Tensor:
        return self.weight.float()


@dataclass(frozen=True, eq=False)
class _MetricOperand:
    """The metric as operands of a contraction with the cores and their twins."""

    net: Network
    shared: frozenset[str]  # open indices in which the metric is diagonal
    exact: list[Named]  # one for each factor of the metric
    nearly: dict[str, Named]  # the Kronecker factors, by mode

    @classmethod
    def of(cls, net: Network, goal: Weighted) -> "_MetricOperand":
        return cls(net, *goal.moment.operands(net), factors_of(net, goal.moment))


@torch.no_grad()
def improve(
    net: Network, goal: Weighted, cores: Sequence[Tensor], sweeps: int, progress: float
) -> tuple[list[Tensor], list[float]]:
    """Cores after at most ``sweeps`` sweeps, and the error before the first and after each.

    The errors are ``||(W - W~) L||`` in float64 and only fall. Sweeping stops where two sweeps in
    a row lower the error by less than ``progress`` of it.
    """
    metric = _MetricOperand.of(net, goal)
    best, errors, slow = list(cores), [goal.error(net, cores)], 0
    for count in range(sweeps):
        if errors[-1] <= _ROUNDING * goal.norm or slow == 2:
            break
        best = balanced(net, best)
        after = _sweep(metric, goal, best)
        if count > 0:
            after = _leap(net, goal, best, after, (count + 1) ** (1 / 3))
        error = goal.error(net, after)
        if not (error < errors[-1] and goal.bounded(net, after)):
            break
        slow = slow + 1 if errors[-1] - error < progress * errors[-1] else 0
        best = after
        errors.append(error)
    return best, errors


def balanced(net: Network, cores: Sequence[Tensor]) -> list[Tensor]:
    """Equal norms: every component of a bond, then every core, is as large here as there."""
    parts = [Named(core, names) for core, names in zip(cores, net.names, strict=True)]
    return [part.tensor for part in balance(parts, net.open)]


def _sweep(metric: _MetricOperand, goal: Weighted, cores: list[Tensor]) -> list[Tensor]:
    """Every core in turn made better, or the best, given the others."""
    net = metric.net
    parts = [Named(core, names) for core, names in zip(cores, net.names, strict=True)]
    for k in range(len(parts)):
        _, pushed = goal.pull(net, [part.tensor.to(goal.working) for part in parts])
        parts[k] = _half_step(metric, goal, parts, k, pushed)
    return [part.tensor for part in parts]


def _leap(
    net: Network, goal: Weighted, before: list[Tensor], after: list[Tensor], step: float
) -> list[Tensor]:
    """A step along the last change, where that lowers the error further (Bro 1998)."""
    far = [new + step * (new - old) for old, new in zip(before, after, strict=True)]
    one, two = ([core.to(goal.working) for core in cores] for cores in (after, far))
    return far if goal.error(net, two) < goal.error(net, one) else after


def _half_step(
    metric: _MetricOperand, goal: Weighted, parts: list[Named], k: int, pushed: Named
) -> Named:
    part, others = parts[k], _others(parts, k, metric.net)
    right = Named(
        contract([Named(pushed.tensor.double(), pushed.names), *others], part.names), part.names
    )
    exact = _exact_step(metric, goal, others, right)
    step = _gradient_step(metric, goal, parts, k, right) if exact is None else exact
    return Named(part.tensor + step, part.names)


def _others(parts: list[Named], k: int, net: Network) -> list[Named]:
    """The other parts; a one stands for each bond that leads nowhere."""
    alone = [n for n in parts[k].names if n in net.bonds and len(net.places[n]) == 1]
    one = parts[k].tensor.new_ones(1)
    return [*parts[:k], *parts[k + 1 :], *(Named(one, (name,)) for name in alone)]


def _exact_step(
    metric: _MetricOperand, goal: Weighted, others: list[Named], right: Named
) -> Tensor | None:
    """The best change by Cholesky, or None where its matrix is too large or too dear."""
    elsewhere = {name for other in (*others, *metric.exact) for name in other.names}
    batch = tuple(n for n in right.names if n in metric.shared and n in elsewhere)
    free = tuple(n for n in right.names if n in metric.shared and n not in elsewhere)
    rows = tuple(n for n in right.names if n not in metric.shared)
    size, count = (prod(metric.net.sizes[n] for n in names) for names in (rows, batch))
    if size > SMALL or count * size * size > ENTRIES:
        return None
    if count * size**3 / 3 > max(_CALLS, _STEPS * goal.weight.numel() * goal.moment.work):
        return None  # a small weight is pushed through the metric for less
    twins = [twin(other, metric.shared) for other in others]
    operands = [*others, *twins, *metric.exact]
    names = (*batch, *rows, *(prime(name) for name in rows))
    if largest_intermediate(operands, names) > ENTRIES:
        return None
    gram = Named(contract(operands, names), names)
    matrix = gram.matrix(batch, rows, [prime(name) for name in rows])
    step = solve(matrix, right.matrix(batch, free, rows))
    shape = [metric.net.sizes[n] for n in (*batch, *free, *rows)]
    return Named(step.reshape(shape), (*batch, *free, *rows)).to(*right.names)


def _gradient_step(
    metric: _MetricOperand, goal: Weighted, parts: list[Named], k: int, right: Named
) -> Tensor:
    """A better change by conjugate gradients."""
    net, names = metric.net, parts[k].names
    dtype = goal.working
    cores = [part.tensor.to(dtype) for part in parts]
    others = [Named(part.tensor.to(dtype), part.names) for part in _others(parts, k, net)]

    def apply(step: Tensor) -> Tensor:
        pushed = goal.moment.push(dense(net, [*cores[:k], step, *cores[k + 1 :]]))
        return contract([reach(pushed, net), *others], names)

    scale = right.tensor.abs().max().clamp(min=torch.finfo(torch.float64).tiny)
    step = conjugate_gradients(
        apply,
        (right.tensor / scale).to(dtype),
        preconditioner(net, metric.nearly, parts, k, dtype),
        _STEPS,
        _ENOUGH,
    )
    return step.to(torch.float64) * scale
