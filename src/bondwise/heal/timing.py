"""What a time comes to in steps, once ten of them were measured."""

import time
from collections.abc import Callable

from bondwise.heal.distil import LazyTeacherCache
from bondwise.heal.outputs import LazyOutputs
from bondwise.train.processes import agreed
from bondwise.train.recipe import MEASURED, VALIDATIONS, Healing
from bondwise.train.state import RunFolder

MOST = 10_000_000  # steps of a run


def steps_within(
    per_step: float,
    per_look: float,
    *,
    until: float,
    recipe: Healing,
    answers: LazyTeacherCache | LazyOutputs | None,
) -> int:
    """How many steps a time allows; at least those that were measured.

    Args:
        per_step: seconds of a step.
        per_look: seconds of a look at what is held out.
        until: the `time.perf_counter` at which it is to end.
        recipe: how many windows a step sees.
        answers: the teacher's, which take time as well; None where there are enough.
    """
    left = until - time.perf_counter()

    def takes(steps: int) -> float:
        looks = VALIDATIONS if recipe.every is None else (steps - MEASURED) / recipe.every
        more = (steps - MEASURED) * per_step + looks * per_look
        if answers is None:
            return more
        unheard = needed(steps, recipe, len(answers.windows)) - answers.count
        return more + unheard * answers.per_window

    low, high = MEASURED, MOST
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if takes(middle) <= left else (low, middle - 1)
    return low


def needed(steps: int, recipe: Healing, count: int) -> int:
    """Windows that so many steps see."""
    return min(steps * recipe.batch, count)


def decider(
    until: float, recipe: Healing, answers: LazyTeacherCache | LazyOutputs | None, place: RunFolder
) -> Callable[[float, float], int]:
    """What decides on the number of steps, keeps it, and asks the teacher what is then needed."""

    def decide(per_step: float, per_look: float) -> int:
        found = steps_within(per_step, per_look, until=until, recipe=recipe, answers=answers)
        steps = int(agreed([float(found)], "first")[0])
        place.decide(steps=steps)
        if answers is not None:
            answers.upto(needed(steps, recipe, len(answers.windows)))
            answers.teacher.forget()
        return steps

    return decide
