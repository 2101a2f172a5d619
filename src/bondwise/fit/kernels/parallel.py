"""How the error of CP of a kernel falls with its rank: short fits at some ranks, a line between.

CP of a kernel, ``o r, i r, k r``, is a channel product, a filter for each of r channels, and a
product again (Lebedev et al. 2015). No closed form is known; but over ranks its error falls nearly
as a power, so a few fits tell the others.
"""

from bisect import bisect_left
from collections.abc import Sequence
from math import exp, log

import torch

from bondwise.fit.alternating.als import glance
from bondwise.fit.kernels.tucker2 import Basis, white_core
from bondwise.fit.target import target
from bondwise.topology.cp import cp

LOST = 1e-4  # of the weight's square, what a fit that is only compared may leave out
SWEEPS = 5
TINY = 1e-12


@torch.no_grad()
def cp_errors(basis: Basis, ranks: Sequence[int]) -> list[float]:
    """Relative squared errors of short fits at some ranks, in a product of channels and kernel.

    Args:
        basis: of the weight of one group; of a full metric the two marginals are taken.
        ranks: to look at.

    >>> cp_errors(Basis.of(torch.ones(3, 4, 5), None), [1])[0] < 1e-6
    True
    """
    core, lost = white_core(basis, LOST)
    out, inner, taps = core.shape
    found: list[float] = []
    for rank in ranks:
        net = cp((out,), (inner, taps), rank)
        error = glance(net, target(core.flatten(1), net), SWEEPS)
        found.append(lost + (1 - lost) * error)
    return found


def between(ranks: Sequence[int], errors: Sequence[float], rank: int) -> float:
    """The error at a rank, on the lines between those known, in logarithms.

    >>> round(between([4, 16], [0.4, 0.1], 8), 3)
    0.2
    """
    if len(ranks) == 1:
        return errors[0]
    at = min(max(1, bisect_left(ranks, rank)), len(ranks) - 1)
    left, right = ranks[at - 1], ranks[at]
    low, high = (log(max(errors[k], TINY)) for k in (at - 1, at))
    share = log(rank / left) / log(right / left)
    return min(1.0, exp(low + share * (high - low)))
