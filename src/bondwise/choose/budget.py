"""One budget over all weights: the candidates that together lose least and store what was asked.

    minimise  sum_w sensitivity_w error_w    subject to    sum of costs <= keep * dense

The lower convex hulls of all groups of weights are walked in the order of what a unit saves (Shoham
and Gersho 1988). That is the exact solution of the relaxed problem at every price; what is left of
the budget then goes, one move at a time, to the candidates that save most for what they take.
"""

from bisect import bisect_right
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from math import ceil

from bondwise.choose.by_rank import check_keep, common_fraction
from bondwise.choose.candidates import Candidate
from bondwise.choose.cost import slower
from bondwise.choose.hull import Point, front, gain, joined, lower_hull, segments
from bondwise.errors import BudgetError

UNITS = ("params", "bytes", "macs", "seconds")
ENOUGH = 0.002  # of the budget: less than this is not worth a rank that is no multiple of 8
SLACK = 0.02  # of the budget: more than this is spent even where it saves nothing

ROUNDING = 1e-12  # of a loss

Picks = tuple[Candidate, ...]
Choice = Point[Picks]
Groups = Sequence[Sequence[Candidate]]


def allocate(
    groups: Groups,
    keep: float,
    sensitivity: Mapping[str, float] | None = None,
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
        sensitivity: what a relative squared error of 1 of each weight costs; 1 each by default.
        unit: what is counted: "params", "bytes", "macs" for a token, or modelled "seconds", the
            fractions at batch 1 and 256 counting alike.
        floor: the least fraction that a weight, or weights that share, may keep.
        protect: names of weights that stay dense.
        prefer: "speed" leaves out what is modelled slower than dense for a batch of 1 or of 256
            tokens; a network of two cores may take the time of one more call.

    Raises:
        BudgetError: keep is outside (0, 1], the unit none of the four, or the budget below what
            the candidates, the floor and the protected weights allow; it names what can be reached.

    >>> from bondwise.choose.candidates import Group, candidates
    >>> import torch
    >>> weights = {"a": torch.eye(64), "b": torch.ones(64, 64)}
    >>> groups = [candidates(Group({name: weight})) for name, weight in weights.items()]
    >>> chosen = allocate(groups, keep=0.6)
    >>> chosen["a"].format, chosen["b"].networks[0].bonds
    ('dense', {'a': 6})
    """
    check_keep(keep)
    problem = _Problem(
        groups, sensitivity, counted(unit, groups), frozenset(protect), floor, prefer
    )
    budget, least = keep * problem.dense, _least(problem.fine)
    if least > budget:
        raise BudgetError(
            f"keep={keep:g} is below what the candidates, floors and protected weights allow; "
            f"write at least {ceil(1000 * least / problem.dense) / 1000:g}."
        )
    best = min(_solutions(problem, budget), key=lambda chosen: sum(c.loss for c in chosen))
    picks = _together([choice.pick for choice in best])
    return {name: candidate for candidate in picks for name in candidate.weights}


@dataclass(frozen=True, eq=False)
class _Options:
    """What one group may choose: for each of its weights, or some that share, the best points."""

    sharing: Mapping[tuple[str, ...], list[Choice]]

    @cached_property
    def hull(self) -> list[Point[Picks]]:
        """The best choices of the whole group, over all ways in which its weights may share."""
        names = frozenset(name for some in self.sharing for name in some)
        hulls = {some: lower_hull(points) for some, points in self.sharing.items()}
        return lower_hull(
            point
            for parts in self._partitions(names)
            for point in joined([hulls[some] for some in parts], _together)
        )

    def _partitions(self, names: frozenset[str]) -> Iterator[list[tuple[str, ...]]]:
        if not names:
            yield []
            return
        first = min(names)
        for some in self.sharing:
            if first in some and names.issuperset(some):
                for rest in self._partitions(names.difference(some)):
                    yield [some, *rest]


@dataclass(frozen=True, eq=False)
class _Problem:
    """Groups, what their candidates cost and lose, and what is not allowed."""

    groups: Groups
    sensitivity: Mapping[str, float] | None
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
        return {c.weights[0]: c for group in self.groups for c in group if c.format == "dense"}

    @property
    def dense(self) -> float:
        """What all weights cost dense."""
        return sum(self.whole.values())

    @cached_property
    def aligned(self) -> list[_Options]:
        """What each group may choose, with ranks that are multiples of 8."""
        return [self._options(c for c in group if c.aligned) for group in self.groups]

    @cached_property
    def fine(self) -> list[_Options]:
        """What each group may choose, with any rank."""
        return [self._options(group) for group in self.groups]

    def loss(self, candidate: Candidate) -> float:
        """Predicted loss."""
        pairs = zip(candidate.weights, candidate.errors, strict=True)
        return sum(e if self.sensitivity is None else self.sensitivity[w] * e for w, e in pairs)

    def choice(self, candidate: Candidate) -> Choice:
        """A candidate with its cost and loss."""
        return Point(self.cost(candidate), self.loss(candidate), (candidate,))

    def _options(self, group: Iterable[Candidate]) -> _Options:
        sharing: dict[tuple[str, ...], list[Choice]] = {}
        for c in filter(self.allowed, group):
            sharing.setdefault(c.weights, []).append(self.choice(c))
        return _Options({names: front(choices) for names, choices in sharing.items()})

    def allowed(self, candidate: Candidate) -> bool:
        """Whether neither the floor, protection nor its seconds forbid it."""
        if candidate.format == "dense":
            return True
        whole = sum(self.whole[name] for name in candidate.weights)
        enough = self.floor * whole <= self.cost(candidate)
        return enough and self.protect.isdisjoint(candidate.weights) and self._fast(candidate)

    def _fast(self, candidate: Candidate) -> bool:
        if self.prefer != "speed":
            return True
        each = [self._dense[name].seconds for name in candidate.weights]
        whole = [sum(seconds) for seconds in zip(*each, strict=True)]
        return not slower(candidate.seconds, whole, candidate.networks)


def _solutions(problem: _Problem, budget: float) -> Iterator[list[Choice]]:
    """Choices by price and by one fraction for all, with what is left spent on top of them."""
    options = problem.aligned if _least(problem.aligned) <= budget else problem.fine
    for start in (_by_price, _evenly):
        chosen = start(options, budget, problem)
        if _total(chosen) > budget:  # one fraction for all may be out of reach
            continue
        _top_up(chosen, options, budget)
        if _total(chosen) < (1 - ENOUGH) * budget:
            _top_up(chosen, problem.fine, budget)
        if _total(chosen) < (1 - SLACK) * budget:
            _fill(chosen, problem, budget)
        yield chosen


def _by_price(options: Sequence[_Options], budget: float, problem: _Problem) -> list[Choice]:
    """Along the hulls of all groups, what saves most for its cost first, while it fits."""
    hulls = [group.hull for group in options]
    at = [hull[0] for hull in hulls]
    left, blocked = budget - _total(at), set[int]()
    for _, k, point in segments(hulls):
        step = point.cost - at[k].cost
        if k in blocked or step > left:
            blocked.add(k)
            continue
        left -= step
        at[k] = point
    return [problem.choice(c) for point in at for c in point.pick]


def _evenly(options: Sequence[_Options], budget: float, problem: _Problem) -> list[Choice]:
    """For every weight alone the best that keeps at most one common fraction."""
    fronts = {
        names[0]: choices
        for group in options
        for names, choices in group.sharing.items()
        if len(names) == 1
    }

    def cut(fraction: float) -> list[Choice]:
        return [
            choices[max(0, bisect_right(choices, fraction * problem.whole[name], key=_cost) - 1)]
            for name, choices in fronts.items()
        ]

    return cut(common_fraction(lambda fraction: _total(cut(fraction)) <= budget))


def _top_up(chosen: list[Choice], options: Sequence[_Options], budget: float) -> None:
    """Move to dearer candidates of the same weights, the best gain first, while one fits."""
    fronts = {names: points for group in options for names, points in group.sharing.items()}
    left = budget - _total(chosen)
    while left > 0:
        moves = [
            (gain(now, then), -k, then)
            for k, now in enumerate(chosen)
            for then in _dearer(fronts.get(now.pick[0].weights, []), now, left)
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


def _fill(chosen: list[Choice], problem: _Problem, budget: float) -> None:
    """Spend what is left where it does no harm, since so many numbers were asked for."""
    left = budget - _total(chosen)
    same: dict[tuple[str, ...], list[Candidate]] = {}
    for candidate in (c for group in problem.groups for c in group if problem.allowed(c)):
        same.setdefault(candidate.weights, []).append(candidate)
    for k, now in enumerate(chosen):
        more = [
            then
            for then in map(problem.choice, same[now.pick[0].weights])
            if now.cost < then.cost <= now.cost + left and then.loss <= now.loss + ROUNDING
        ]
        then = max(more, key=_cost, default=now)
        left -= then.cost - now.cost
        chosen[k] = then


def counted(unit: str, groups: Groups) -> Callable[[Candidate], float]:
    """What a candidate costs in a unit.

    Raises:
        BudgetError: no such unit.
    """
    if unit not in UNITS:
        raise BudgetError(f"unit={unit!r} came; write one of {', '.join(UNITS)}.")
    if unit != "seconds":
        name = {"params": "numbers"}.get(unit, unit)
        return lambda candidate: float(getattr(candidate, name))
    whole = [c.seconds for group in groups for c in group if c.format == "dense"]
    once, many = (sum(pair) for pair in zip(*whole, strict=True))
    return lambda candidate: candidate.seconds[0] / once + candidate.seconds[1] / many


def _together(picks: Sequence[Picks]) -> Picks:
    return tuple(candidate for pick in picks for candidate in pick)


def _cost(choice: Choice) -> float:
    return choice.cost


def _total(choices: Iterable[Choice]) -> float:
    return sum(choice.cost for choice in choices)


def _least(options: Sequence[_Options]) -> float:
    return sum(group.hull[0].cost for group in options)
