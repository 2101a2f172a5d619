"""What a time comes to in steps, once ten of them were measured."""

import time
from collections.abc import Callable, Sequence

import torch
from torch import nn

from bondwise.flow.data import Batch, feed
from bondwise.flow.watch import without_head
from bondwise.heal.distil import Answers
from bondwise.heal.modes import products, training
from bondwise.heal.outputs import answer
from bondwise.train.processes import agreed
from bondwise.train.rates import groups, only
from bondwise.train.recipe import MEASURED, VALIDATIONS, Healing
from bondwise.train.state import Place

MOST = 10_000_000  # steps of a run


def local_steps(
    student: nn.Module, batches: Sequence[Batch], recipe: Healing, seconds: float
) -> int:
    """Steps for each slice that a time allows the local stage.

    A step of every slice together takes what a step of the whole student takes without its head;
    to know what enters and leaves the slices takes a pass of both models, a third of a step each.
    """
    took: list[float] = []
    chosen = groups(student, recipe.rate, recipe.choice)
    body = without_head(student)
    device = next(student.parameters()).device
    with training(student), only(student, chosen), torch.enable_grad():
        for batch in (batches[k % len(batches)] for k in range(3)):
            start = time.perf_counter()
            with products(recipe.precision, device):
                given = answer(feed(body, batch))
            given.float().square().mean().backward()  # pyright: ignore[reportUnknownMemberType]
            took.append(time.perf_counter() - start)
    each = min(took)
    left = seconds - sum(took) - 2 * len(batches) * each / 3
    return max(1, int(agreed([left / each], "first", device)[0]))


def steps_within(
    per_step: float,
    per_look: float,
    *,
    until: float,
    recipe: Healing,
    answers: Answers | None,
) -> int:
    """How many steps of the global stage a time allows; at least those that were measured.

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
    until: float, recipe: Healing, answers: Answers | None, place: Place
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
