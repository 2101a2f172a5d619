"""Why a format won or lost against low rank of the same stored numbers."""

from dataclasses import dataclass
from math import isqrt, prod

import torch
from torch import Tensor

from bondwise.fit.split import split, tails
from bondwise.fit.starts import whitened_target
from bondwise.fit.sweep import spectrum, tree_of
from bondwise.fit.target import BLOCK, Target, core_names, target
from bondwise.fit.weighted import Weighted
from bondwise.fit.whitened import whitened_split
from bondwise.gauge.compact import stored_numbers
from bondwise.network.network import Network

_MOST = 0.7  # of the error: what one bond leaves out is then the reason


@dataclass(frozen=True)
class Report:
    """A fit beside low rank, both gauge-free; errors are relative and in the fit's metric.

    ``stored`` counts the numbers without the gauge; low rank has the largest rank that stores no
    more, which is ``rank``, and the error ``lowrank``. ``beyond`` gives, for each bond (for each
    core where there are loops), the error that its rank alone leaves: the part of the weight's
    spectrum across it that does not fit, in coordinates that a Kronecker product of the metric
    whitens. With no metric it is a lower bound of the error. ``reason`` says it in a sentence.
    """

    stored: int
    error: float
    held_out: float | None
    rank: int
    lowrank: float
    beyond: dict[str, float]
    reason: str

    @property
    def ratio(self) -> float:
        """Error over that of low rank: below 1, the format won."""
        return _ratio(self.error, self.lowrank)

    def __str__(self) -> str:
        return self.reason


@torch.no_grad()
def report_on(
    weight: Tensor, goal: Weighted | None, net: Network, error: float, held_out: float | None
) -> Report:
    """The report on a fit of a weight (float64) that ended with ``error``.

    >>> from bondwise import kron
    >>> eye = torch.eye(4, dtype=torch.float64)
    >>> report = report_on(eye, None, kron((2, 2), (2, 2), 1), 0.0, None)
    >>> report.stored, report.rank, round(report.lowrank, 3)
    (7, 1, 0.866)
    """
    stored = stored_numbers(net)
    rank = lowrank_with(*net.shape, stored)
    other = _lowrank_error(weight, goal, rank)
    beyond = _beyond(weight, goal, net)
    return Report(
        stored,
        error,
        held_out,
        rank,
        other,
        beyond,
        _reason(net, stored, error, (rank, other), beyond),
    )


def lowrank_with(out: int, inp: int, numbers: int) -> int:
    """The largest rank with ``r (out + inp - r)``, low rank without its gauge, at most ``numbers``.

    >>> lowrank_with(8, 8, 28), lowrank_with(8, 8, 27), lowrank_with(8, 8, 64)
    (2, 1, 8)
    """
    if numbers >= out * inp:
        return min(out, inp)
    # the smaller root of r^2 - (out + inp) r + numbers
    total = out + inp
    rank = (total - isqrt(max(0, total * total - 4 * numbers))) // 2
    return rank if rank * (total - rank) <= numbers else rank - 1


def _lowrank_error(weight: Tensor, goal: Weighted | None, rank: int) -> float:
    norm = float(weight.norm()) if goal is None else goal.norm
    if rank == 0 or norm == 0:
        return 1.0 if norm else 0.0
    if goal is None:
        return split(weight, rank).error / norm
    return whitened_split(weight, goal.moment, rank, outputs=goal.outputs).error / norm


def _beyond(weight: Tensor, goal: Weighted | None, net: Network) -> dict[str, float]:
    near = target(weight, net) if goal is None else whitened_target(net, goal)[0]
    tree = tree_of(net, near)
    if tree is None:
        return {
            f"core {k}": left
            for k in range(len(net.cores))
            if (left := _beyond_core(near, net, k)) is not None
        }
    return {
        _label(net, *edge): _left(spectrum(tree, near, *edge), tree.rank(edge, net.bonds))
        for edge in tree.edges
    }


def _label(net: Network, one: int, two: int) -> str:
    """The bonds between two cores, or the cores where they have none."""
    bonds = [name for name in net.names[one] if name in net.bonds and name in net.names[two]]
    return " ".join(bonds) or f"core {one}-{two}"


def _beyond_core(near: Target, net: Network, k: int) -> float | None:
    """What the modes of a core alone leave out, when all its bonds together are one rank."""
    names = core_names(net, near)
    elsewhere = {name for j, other in enumerate(names) if j != k for name in other}
    own = [name for name in names[k] if name in near.open and name not in elsewhere]
    rest = [name for name in near.values.names if name not in own and name != BLOCK]
    if not own or any(name in near.open and name not in own for name in names[k][1:]):
        return None
    values = torch.linalg.svdvals(near.values.matrix([BLOCK], own, rest))
    return _left(values, prod(net.sizes[name] for name in names[k] if name in net.bonds))


def _left(values: Tensor, rank: int) -> float:
    dropped = tails(values)
    total = float(dropped[0])
    return float((dropped[min(rank, len(dropped) - 1)] / total).sqrt()) if total else 0.0


def _reason(
    net: Network,
    stored: int,
    error: float,
    lowrank: tuple[int, float],
    beyond: dict[str, float],
) -> str:
    rank, other = lowrank
    facts = (
        f"error {error:.4f} with {stored:,} stored numbers, where low rank of rank {rank} has "
        f"{other:.4f}"
    )
    ratio = _ratio(error, other)
    if ratio <= 1:
        return f"'{net}' {'won' if ratio < 1 else 'drew'}: {facts}."
    if not beyond:
        return f"'{net}' lost: {facts}."
    worst = max(beyond, key=lambda place: beyond[place])
    label = worst if worst.startswith("core ") else f"bond {worst}"
    if beyond[worst] >= _MOST * error:
        return f"'{net}' lost: {facts}; {label} alone leaves {beyond[worst]:.4f} out."
    return (
        f"'{net}' lost: {facts}; no bond alone leaves more than {beyond[worst]:.4f} out ({label}), "
        "so the cuts add up."
    )


def _ratio(error: float, other: float) -> float:
    if other == 0:
        return 1.0 if error == 0 else float("inf")
    return error / other
