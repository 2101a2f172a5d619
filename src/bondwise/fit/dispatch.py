"""Which method the structure of a network calls for, and which smaller ones a tolerance tries."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from bondwise.compute.run import dense
from bondwise.fit.alternating.als import fit_plain, smaller_networks
from bondwise.fit.alternating.starts import FOLLOWED, fit_weighted, whitened_target
from bondwise.fit.alternating.terms import largest_term
from bondwise.fit.alternating.weighted import Weighted, balanced
from bondwise.fit.metric import Kronecker, Metric, moment_of
from bondwise.fit.moment import Coordinates
from bondwise.fit.named import balance
from bondwise.fit.sweep import shared, smaller_trees, tree_of
from bondwise.fit.target import Target, as_cores, target
from bondwise.fit.whitened import closed_form, has_closed_form, whitened_split
from bondwise.network.network import Network


@dataclass(frozen=True, eq=False)
class Problem:
    """Everything about a fit but the ranks."""

    weight: Tensor  # float64, divided by `scale`
    scale: float
    dtype: torch.dtype
    full: Network
    goal: Weighted | None
    seed: int
    sweeps: int
    progress: float

    def solve(self, net: Network) -> tuple[list[Tensor], list[float]]:
        """Cores (float64) with the ranks of ``net``, and the errors of sweeps in the metric."""
        if self.goal is None:
            parts = fit_plain(net, self.free, self.seed)
        elif has_closed_form(net):
            tree = tree_of(net, self.free)
            assert tree is not None  # two cores, and no index on more
            parts = closed_form(net, tree, self.weight, self.goal.moment)
        elif self.coordinates is not None:
            return self._in_coordinates(net, self.coordinates)
        else:
            return fit_weighted(net, self.goal, self.seed, self.sweeps, self.progress)
        return as_cores(net, self.free, balance(parts, self.free.open)), []

    def smaller(self, net: Network, tol: float) -> Iterable[Network]:
        """Networks from small to ``net``, to be tried against a relative error."""
        tree = tree_of(net, self.free)
        if tree is None:
            return smaller_networks(net)
        if self.goal is None:
            return smaller_trees(tree, self.free, net, tol * self.norm)
        if self.coordinates is not None:
            return self.inside.smaller(net, tol)
        if not has_closed_form(net):
            near, _ = whitened_target(net, self.goal)
            # the factors are not the metric: what they allow is taken wider
            return smaller_trees(tree, near, net, 2 * tol * float(near.values.tensor.norm()))
        ((edge, bonds),) = tree.edges.items()
        most = tree.rank(edge, net.bonds)
        first = whitened_split(self.weight, self.goal.moment, most, tol * self.norm).rank
        return (net.resize(**shared(rank, bonds, net)) for rank in range(first, most + 1))

    def error(self, net: Network, cores: Sequence[Tensor]) -> float:
        """The relative error of cores as they are stored, in float64."""
        wide = [core.to(torch.float64) for core in cores]
        off = self.weight - dense(net, wide) / (self.scale or 1.0)
        return self._distance(off) / self.norm if self.norm else 0.0

    def term_norm(self, net: Network, cores: Sequence[Tensor]) -> float | None:
        """The largest norm of a term over that of the weight; None where there are no terms."""
        largest = largest_term(net, cores, None if self.goal is None else self.goal.moment)
        size = self.norm * (self.scale or 1.0)
        return largest if largest is None or not size else largest / size

    @cached_property
    def coordinates(self) -> Coordinates | None:
        """Those that take in what they can of the metric; None where there is a closed form."""
        if self.goal is None or has_closed_form(self.full):
            return None
        return Coordinates.of(self.full, self.goal.moment)

    @cached_property
    def inside(self) -> "Problem":
        """The same problem in the coordinates."""
        assert self.coordinates is not None
        weight, rest = self.coordinates.roots.push(self.weight), self.coordinates.rest
        return replace(self, weight=weight, goal=None if rest.identity else Weighted(weight, rest))

    def _in_coordinates(
        self, net: Network, coordinates: Coordinates
    ) -> tuple[list[Tensor], list[float]]:
        """The fit in coordinates, or where that is less, the fit without a metric."""
        cores, errors = self.inside.solve(net)
        cores = balanced(net, coordinates.back(net, cores))
        if errors or self.weight.numel() > FOLLOWED:
            return cores, errors
        plain, _ = replace(self, goal=None).solve(net)
        assert self.goal is not None
        nearer = self.goal.error(net, plain) < self.goal.error(net, cores)
        return (plain if nearer and self.goal.bounded(net, plain) else cores), []

    @cached_property
    def free(self) -> Target:
        """The target without a metric; it has a slice for each value of block indices."""
        return target(self.weight, self.full)

    @cached_property
    def norm(self) -> float:
        """The weight's own norm, in the metric where there is one."""
        return self._distance(self.weight)

    def _distance(self, matrix: Tensor) -> float:
        return float(matrix.norm()) if self.goal is None else self.goal.distance(matrix)


def in_metric(weight: Tensor, metric: Metric | Kronecker | Tensor | None) -> Weighted | None:
    """The goal in a metric; None where there is none, or only the identity at some scale."""
    if metric is None:
        return None
    moment = moment_of(metric, weight.shape[1]).to(weight.device)
    return None if moment.identity else Weighted(weight, moment)
