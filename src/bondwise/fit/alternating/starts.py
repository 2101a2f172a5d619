"""Where a fit in a metric starts: from Kronecker-factored whitening, or from no metric at all."""

from collections.abc import Iterator

import torch
from torch import Tensor

from bondwise.fit.alternating.als import fit_plain
from bondwise.fit.alternating.kronecker import Whitening, factors_of, whitening
from bondwise.fit.alternating.terms import LIMIT
from bondwise.fit.alternating.weighted import Weighted, improve
from bondwise.fit.named import balance
from bondwise.fit.target import Target, as_cores, reach, slices, target
from bondwise.network.network import Network

_TINY = 2**13  # entries of a weight up to which every start is followed to its end
FOLLOWED = 2**17  # and up to which the start without a metric is as good as that fit


@torch.no_grad()
def fit_weighted(
    net: Network, goal: Weighted, seed: int, sweeps: int, progress: float
) -> tuple[list[Tensor], list[float]]:
    """Cores in the metric, and the errors from the better start to the last sweep.

    Never worse in the metric than the fit without one, which is one of the starts (cut short for
    a large weight whose network has loops).
    """
    starts = sorted(_starts(net, goal, seed), key=lambda cores: goal.error(net, cores))
    followed = starts if goal.weight.numel() <= _TINY else starts[:1]
    ends = [improve(net, goal, cores, sweeps, progress) for cores in followed]
    return min(ends, key=lambda end: end[1][-1])


def whitened_target(net: Network, goal: Weighted) -> tuple[Target, Whitening]:
    """The weight in the coordinates of its Kronecker factors, and the way back."""
    white = whitening(factors_of(net, goal.moment))
    return slices(white.whiten(reach(goal.weight, net)), net), white


def _starts(net: Network, goal: Weighted, seed: int) -> Iterator[list[Tensor]]:
    near, white = whitened_target(net, goal)
    limit = LIMIT
    while True:  # terms that are bounded here are not yet so in the metric itself
        cores = white.unwhiten(net, _cores(net, near, seed, True, limit))
        if goal.bounded(net, cores):
            yield cores
            break
        limit /= 2
    # a large weight with loops takes many times longer without a metric than a start is worth
    brief = goal.weight.numel() > FOLLOWED
    plain = _cores(net, target(goal.weight, net), seed, brief)
    if goal.bounded(net, plain):
        yield plain


def _cores(
    net: Network, goal: Target, seed: int, brief: bool, limit: float = LIMIT
) -> list[Tensor]:
    return as_cores(net, goal, balance(fit_plain(net, goal, seed, brief, limit), goal.open))
