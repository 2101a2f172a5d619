"""From a survey to allocations worth a try: what the budget leaves to each weight, and why."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import median

from bondwise.choose.budget import allocate, counted
from bondwise.choose.candidates import Candidate
from bondwise.choose.losses.felt import Felt
from bondwise.choose.survey import Survey
from bondwise.errors import BudgetError

FLOOR = 0.4  # of the keep: what every weight gets, since its sensitivity holds for small errors
MIDDLE = 0.02  # squared error whose sensitivity stands for others

Allocation = dict[str, Candidate]


@dataclass(frozen=True)
class Budget:
    """What is asked of all weights together: see `bondwise.choose.budget.allocate`.

    Attributes:
        alphas: powers of the sensitivities to try.
    """

    keep: float
    unit: str = "params"
    prefer: str = "speed"
    protect: frozenset[str] = frozenset()
    alphas: Sequence[float] = (1.0,)

    def allocations(self, found: Survey) -> tuple[list[Allocation], list[str]]:
        """Allocations with what is preferred; where speed cannot be had at this keep, without it.

        Raises:
            BudgetError: the keep is out of reach.
        """
        try:
            return self._different(found), []
        except BudgetError:
            if self.prefer != "speed":
                raise
        note = (
            f"keep={self.keep:g} cannot be had without weights that need as many multiplications "
            "as dense or more"
        )
        return replace(self, prefer="size")._different(found), [note]

    def spent(self, found: Survey, picks: Mapping[str, Candidate]) -> list[str]:
        """A note on what a budget in another unit than numbers came to."""
        if self.unit == "params":
            return []
        price = counted(self.unit, found.groups)
        dense = sum(price(c) for group in found.groups for c in group if c.format == "dense")
        kept = sum(map(price, picks.values())) / dense
        return [f"kept {kept:.4f} of {self.keep:g} asked, counted in {self.unit}"]

    def _different(self, found: Survey) -> list[Allocation]:
        """One for each power of the sensitivities; equal ones once."""
        different: list[Allocation] = []
        for alpha in self.alphas:
            chosen = allocate(
                found.groups,
                self.keep,
                mixed(_known(found), alpha),
                unit=self.unit,
                floor=FLOOR * self._left(found),
                protect=self.protect,
                prefer=self.prefer,
            )
            if chosen not in different:
                different.append(chosen)
        return different

    def _left(self, found: Survey) -> float:
        """The fraction that weights which are not protected may keep, in numbers; 0 for none."""
        dense = [c for group in found.groups for c in group if c.format == "dense"]
        total = sum(c.numbers for c in dense)
        free = sum(c.numbers for c in dense if c.weight not in self.protect)
        return max(0.0, self.keep * total - (total - free)) / free if free else 0.0


def mixed(sensitivity: Mapping[str, float | Felt], alpha: float) -> dict[str, float | Felt]:
    """Sensitivities between none (alpha 0: a relative error costs the same anywhere) and all of it.

    >>> mixed({"q": 4.0, "v": 9.0}, 0.5)
    {'q': 2.0, 'v': 3.0}
    """
    return {name: value**alpha for name, value in sensitivity.items()}


def _known(found: Survey) -> dict[str, float | Felt]:
    """A sensitivity for every weight: the median of the others where it could not be measured."""
    names = {c.weight for group in found.groups for c in group}
    every = [
        felt(MIDDLE) / MIDDLE if isinstance(felt, Felt) else felt
        for felt in found.sensitivity.values()
    ]
    middle = median(every) if every else 1.0
    return {name: found.sensitivity.get(name, middle) for name in sorted(names)}
