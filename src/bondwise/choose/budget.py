"""One budget over all weights: the candidates that together lose least and store what was asked.

    minimise  sum_w loss_w(error_w)    subject to    sum of costs <= keep * dense

The lower convex hulls of all weights are walked in the order of what a unit saves (Shoham and
Gersho 1988). That is the exact solution of the relaxed problem at every price; what is left of the
budget then goes, one move at a time, to the candidates that save most for what they take.
"""

from bisect import bisect_right
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from math import ceil
from operator import truediv

from bondwise.choose.by_rank import check_keep, common_fraction
from bondwise.choose.candidates import Candidate
from bondwise.choose.hull import Point, front, gain, lower_hull, segments
from bondwise.choose.losses.felt import Felt, lost
from bondwise.errors import BudgetError

UNITS = ("params", "bytes", "macs", "seconds")
ENOUGH = 0.002  # of the budget: less than this is not worth a rank that is no multiple of 8
SLACK = 0.02  # of the budget: more than this is spent even where it saves nothing

ROUNDING = 1e-12  # of a loss

Choice = Point[Candidate]
Options = list[list[Choice]]  # of each weight
Groups = Sequence[Sequence[Candidate]]


def allocate(
    groups: Groups,
    keep: float,
    sensitivity: Mapping[str, float | Felt] | None = None,
    *,
    unit: str = "params",
    floor: float = 0.0,
    protect: Collection[str] = (),
    prefer: str = "quality",
) -> dict[str, Candidate]:
    """A candidate for every weight, so that together they cost at most ``keep`` of dense.

    The predicted loss is never above that of cutting every weight by the same fraction. Ranks are
    multiples of 8 but for the last 0.2 % of the budget. The same arguments give the same answer.

    Args:
        groups: the candidates of each group of weights that get one input
            (`bondwise.choose.candidates.candidates`); every weight has a dense one.
        keep: fraction of what all dense weights cost, in (0, 1].
        sensitivity: what a relative squared error of 1 of each weight costs, 1 each by default; or
            what each error costs, where that is not in proportion.
        unit: what is counted: "params", "bytes", "macs" for a token, or "seconds" as they were
            measured, the fractions at each number of rows counting alike.
        floor: the least fraction that a weight may keep.
        protect: names of weights that stay dense.
        prefer: "speed" leaves out what needs as many multiplications as dense or more.

    Raises:
        BudgetError: keep is outside (0, 1], the unit none of the four, or the budget below what
            the candidates, the floor and the protected weights allow; it names what can be reached.

    >>> from bondwise.choose.candidates import Group, candidates
    >>> import torch
    >>> weights = {"a": torch.eye(64), "b": torch.ones(64, 64)}
    >>> groups = [candidates(Group({name: weight})) for name, weight in weights.items()]
    >>> chosen = allocate(groups, keep=0.6)
    >>> chosen["a"].format, chosen["b"].network.bonds
    ('dense', {'a': 6})
    """
    check_keep(keep)
    weights: dict[str, list[Candidate]] = {}
    for candidate in chain.from_iterable(groups):
        weights.setdefault(candidate.weight, []).append(candidate)
    price = counted(unit, groups)
    problem = _Problem(weights, sensitivity, price, frozenset(protect), floor, prefer)
    budget, least = keep * problem.dense, _least(problem.fine)
    if least > budget:
        raise BudgetError(
            f"keep={keep:g} is below what the candidates, floors and protected weights allow; "
            f"write at least {ceil(1000 * least / problem.dense) / 1000:g}."
        )
    best = min(_solutions(problem, budget), key=lambda chosen: sum(c.loss for c in chosen))
    return {choice.pick.weight: choice.pick for choice in best}


@dataclass(frozen=True, eq=False)
class _Problem:
    """The candidates of every weight, what they cost and lose, and what is not allowed."""

    weights: Mapping[str, Sequence[Candidate]]
    sensitivity: Mapping[str, float | Felt] | None
    cost: Callable[[Candidate], float]
    protect: frozenset[str]
    floor: float
    prefer: str

    @cached_property
    def whole(self) -> dict[str, float]:
        """What each weight costs dense."""
        return {name: self.cost(c) for name, c in self._dense.items()}

    @cached_property
    def _dense(self) -> dict[str, Candidate]:
        return {c.weight: c for some in self.weights.values() for c in some if c.format == "dense"}

    @property
    def dense(self) -> float:
        """What all weights cost dense."""
        return sum(self.whole.values())

    @cached_property
    def every(self) -> Options:
        """All that each weight may choose."""
        return [
            [self._choice(c) for c in some if self._allowed(c)] for some in self.weights.values()
        ]

    @cached_property
    def fine(self) -> Options:
        """The best that each weight may choose, the cheapest first, with any rank."""
        return [front(choices) for choices in self.every]

    @cached_property
    def aligned(self) -> Options:
        """The same with ranks that are multiples of 8."""
        return [front(c for c in choices if c.pick.aligned) for choices in self.every]

    def _choice(self, candidate: Candidate) -> Choice:
        """A candidate with its cost and predicted loss."""
        felt = 1.0 if self.sensitivity is None else self.sensitivity[candidate.weight]
        return Point(self.cost(candidate), lost(felt, candidate.error), candidate)

    def _allowed(self, candidate: Candidate) -> bool:
        """Whether neither the floor, protection nor its multiplications forbid it."""
        if candidate.format == "dense":
            return True
        enough = self.floor * self.whole[candidate.weight] <= self.cost(candidate)
        return enough and candidate.weight not in self.protect and self._fast(candidate)

    def _fast(self, candidate: Candidate) -> bool:
        return self.prefer != "speed" or candidate.macs < self._dense[candidate.weight].macs


def _solutions(problem: _Problem, budget: float) -> Iterator[list[Choice]]:
    """Choices by price and by one fraction for all, with what is left spent on top of them."""
    options = problem.aligned if _least(problem.aligned) <= budget else problem.fine
    for chosen in (_by_price(options, budget), _evenly(options, budget, problem.whole)):
        if _total(chosen) > budget:  # one fraction for all may be out of reach
            continue
        _top_up(chosen, options, budget)
        if _total(chosen) < (1 - ENOUGH) * budget:
            _top_up(chosen, problem.fine, budget)
        if _total(chosen) < (1 - SLACK) * budget:
            _fill(chosen, problem.every, budget)
        yield chosen


def _by_price(options: Options, budget: float) -> list[Choice]:
    """Along the hulls of all weights, what saves most for its cost first, while it fits."""
    hulls = [lower_hull(choices) for choices in options]
    at = [hull[0] for hull in hulls]
    left, blocked = budget - _total(at), set[int]()
    for _, k, point in segments(hulls):
        step = point.cost - at[k].cost
        if k in blocked or step > left:
            blocked.add(k)
            continue
        left -= step
        at[k] = point
    return at


def _evenly(options: Options, budget: float, whole: Mapping[str, float]) -> list[Choice]:
    """For every weight the best that keeps at most one common fraction."""

    def cut(fraction: float) -> list[Choice]:
        return [
            choices[max(0, bisect_right(choices, fraction * size, key=_cost) - 1)]
            for choices, size in zip(options, whole.values(), strict=True)
        ]

    return cut(common_fraction(lambda fraction: _total(cut(fraction)) <= budget))


def _top_up(chosen: list[Choice], options: Options, budget: float) -> None:
    """Move to dearer candidates of the same weights, the best gain first, while one fits."""
    left = budget - _total(chosen)
    while left > 0:
        moves = [
            (gain(now, then), -k, then)
            for k, (now, choices) in enumerate(zip(chosen, options, strict=True))
            for then in _dearer(choices, now, left)
        ]
        if not moves:
            return
        _, k, then = max(moves, key=lambda move: move[:2])
        left -= then.cost - chosen[-k].cost
        chosen[-k] = then


def _dearer(choices: list[Choice], now: Choice, left: float) -> list[Choice]:
    """Those of a front that cost more, fit, and lose less."""
    first = bisect_right(choices, now.cost, key=_cost)
    last = bisect_right(choices, now.cost + left, key=_cost)
    return [then for then in choices[first:last] if then.loss < now.loss]


def _fill(chosen: list[Choice], options: Options, budget: float) -> None:
    """Spend what is left where it does no harm, since so many numbers were asked for."""
    left = budget - _total(chosen)
    for k, (now, choices) in enumerate(zip(chosen, options, strict=True)):
        more = [
            then
            for then in choices
            if now.cost < then.cost <= now.cost + left and then.loss <= now.loss + ROUNDING
        ]
        chosen[k] = max(more, key=_cost, default=now)
        left -= chosen[k].cost - now.cost


def counted(unit: str, groups: Groups) -> Callable[[Candidate], float]:
    """What a candidate costs in a unit.

    Raises:
        BudgetError: no such unit, or seconds of candidates that were not measured.
    """
    if unit not in UNITS:
        raise BudgetError(f"unit={unit!r} came; write one of {', '.join(UNITS)}.")
    if unit != "seconds":
        name = {"params": "numbers"}.get(unit, unit)
        return lambda candidate: float(getattr(candidate, name))
    if not all(c.seconds for group in groups for c in group):
        raise BudgetError(
            "unit='seconds' came for candidates without seconds; read them off a file first."
        )
    whole = [c.seconds for group in groups for c in group if c.format == "dense"]
    totals = [sum(each) for each in zip(*whole, strict=True)]
    return lambda candidate: sum(map(truediv, candidate.seconds, totals)) / len(totals)


def _cost(choice: Choice) -> float:
    return choice.cost


def _total(choices: Iterable[Choice]) -> float:
    return sum(choice.cost for choice in choices)


def _least(options: Options) -> float:
    return sum(choices[0].cost for choices in options)
