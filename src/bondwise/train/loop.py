"""The loop of a training: a rate that rises and falls, the best kept, a run that goes on.

All that is random in a step follows from the seed and the number of the step, so that a run that
was cut off and resumed is the run that was not: bit for bit on a CPU.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from math import ceil, inf, isfinite
from statistics import median
from typing import Any

import torch

from bondwise.errors import DataError
from bondwise.progress import Progress, silent
from bondwise.train.descent import Course, Descent
from bondwise.train.nonfinite import first_nonfinite
from bondwise.train.processes import agreed
from bondwise.train.recipe import MEASURED, VALIDATIONS, Healing
from bondwise.train.schedule import scheduled
from bondwise.train.state import Store

Entry = dict[str, Any]
"""One line of a history: step, loss, rate, seconds, and what was measured."""
Callback = Callable[[Entry], None]


def no_callback(entry: Entry) -> None:
    """A listener that does nothing."""


@dataclass
class Trained:
    """What a run came to.

    Attributes:
        history: one entry for each step.
        steps: that were asked for, or that a time came to.
        best: what was measured of the parameters that the student has now; None without a measure.
        best_step: steps after which they were had; 0 is the student as it came.
        stopped: why the run ended before its last step; empty where it did not.
    """

    history: list[Entry] = field(default_factory=list[Entry])
    steps: int = 0
    best: float | None = None
    best_step: int = 0
    stopped: str = ""


def train(
    course: Course,
    recipe: Healing,
    store: Store,
    *,
    steps: int | None,
    decide: Callable[[float, float], int] | None = None,
    progress: Progress = silent,
    tell: Callback = no_callback,
) -> Trained:
    """Train what is meant to train, and leave the best of it in the student.

    AdamW in the parameters' own dtype (Loshchilov and Hutter 2019). A state that the store has is
    gone on with. A loss or a gradient that is not finite ends the run; the best stays.

    Args:
        course: what is trained.
        recipe: how.
        store: where states are kept.
        steps: how many; None where ``decide`` tells after the measured ones.
        decide: seconds of a step and of a look at what is held out -> how many steps.
        progress: is told steps done and steps in all.
        tell: is told each entry of the history.

    Raises:
        DataError: the student is not finite before it is trained.
        CheckpointError: a state cannot be written; what was kept before is still there.
    """
    devices = {p.device for p in store.parameters.values() if p.device.type == "cuda"}
    with torch.random.fork_rng(sorted(d.index or 0 for d in devices)), torch.enable_grad():
        return _Run(course, recipe, store, steps, decide, progress, tell).go()


class _Run:
    """One run of the loop, and where it is."""

    def __init__(
        self,
        course: Course,
        recipe: Healing,
        store: Store,
        steps: int | None,
        decide: Callable[[float, float], int] | None,
        progress: Progress,
        tell: Callback,
    ) -> None:
        self.course, self.recipe, self.store = course, recipe, store
        self.decide, self.progress, self.tell = decide, progress, tell
        self.descent = Descent(course, recipe)
        self.device = self.descent.parameters[0].device
        self.step, self.seconds, self.looking = 0, 0.0, 0.0
        self.best = inf
        self.out = Trained(steps=steps or 0)

    def go(self) -> Trained:
        """Until the last step, or until there is a reason to stop."""
        ended = self._resume()
        if not ended:
            self._kept_at = time.monotonic()
            while not self.out.stopped and not (self.out.steps and self.step >= self.out.steps):
                self._train_one()
            self._end()
        self.out.best = self.best if isfinite(self.best) and self.course.measure else None
        return self.out

    def _resume(self) -> bool:
        """Whether the run that is there had ended; otherwise it is where its state says."""
        values = self.store.load(self.descent.optimizer)
        if values is None:
            self._look({})
            return False
        self.step = values["step"]
        self.seconds, self.looking = values["seconds"], values["looking"]
        self.best = inf if values["best"] is None else values["best"]
        counted = self.out.steps  # recorded after the measured ones, the state may be of one before
        self.out = Trained(**values["out"])
        self.out.steps = self.out.steps or counted
        if values["done"]:
            self.store.restore()
        return bool(values["done"])

    def _values(self) -> dict[str, Any]:
        return {
            "step": self.step,
            "seconds": self.seconds,
            "looking": self.looking,
            "best": self.best if isfinite(self.best) else None,
            "out": vars(self.out),
        }

    def _train_one(self) -> None:
        """A step, what is to be looked at after it, and a state where it is time for one."""
        start = time.perf_counter()
        warm = self._warm()
        risen = scheduled(1.0, self.step, self.out.steps, warm, floor=self.recipe.floor, start=warm)
        loss, norm = self.descent(self.step, risen)
        if not (isfinite(loss) and isfinite(norm)):
            self._stop_at_nan(loss)
            return
        self.step += 1
        took = time.perf_counter() - start
        self.seconds += took
        entry: Entry = {"step": self.step, "loss": loss, "rate": self.recipe.rate * risen}
        if self.decide is not None and not self.out.steps and self.step >= MEASURED:
            self._decide([line["took"] for line in self.out.history] + [took])
        if self._is_time_to_look():
            self._look(entry)
        self.out.history.append(entry | {"seconds": self.seconds, "took": took})
        self.tell(self.out.history[-1])
        self.progress("heal", self.step, self.out.steps or self.step + MEASURED)
        self._save_in_time()

    def _warm(self) -> int:
        """Steps over which the rate rises; with a time, those that are measured."""
        if self.recipe.minutes is not None:
            return MEASURED
        return max(1, round(self.recipe.warmup * self.out.steps))

    def _decide(self, took: Sequence[float]) -> None:
        """How many steps the time allows, by the measured ones but the first two."""
        assert self.decide is not None
        wanted = self.decide(median(took[2:]), self.looking)
        self.out.steps = max(self.step, wanted)

    def _is_time_to_look(self) -> bool:
        every = self.recipe.every
        if every is None:  # no look before the number of steps is known, also where a record has it
            if self.recipe.minutes is not None and self.step < MEASURED:
                return False
            every = max(1, ceil(self.out.steps / VALIDATIONS))
        return self.step == self.out.steps or self.step % every == 0

    def _look(self, entry: Entry) -> None:
        """Measure on what is held out; keep the best, and stop where nothing gets better.

        At full rate a student may be worse than it came until the rate falls, and gain all the
        while: what is waited for is a look better than those after the start.
        """
        found, start = None, time.perf_counter()
        if self.course.measure is not None:
            found = self.course.measure()
            entry[self.course.measured] = found
        if not self.step:
            self._check_start(found)
        if found is None or found < self.best:
            self.best = self.best if found is None else found
            self.out.best_step = self.step
            self.store.keep(self.step)
            self.looking = time.perf_counter() - start
        if found is None or not self.step:
            return
        measured = self.course.measured
        looks = [line[measured] for line in self.out.history if measured in line] + [found]
        waited = len(looks) - 1 - looks.index(min(looks))
        if not isfinite(found):
            self.out.stopped = f"{measured} was {found} after step {self.step}"
        elif self.recipe.patience and waited >= self.recipe.patience:
            self.out.stopped = f"no better {measured} in {waited} looks up to step {self.step}"

    def _check_start(self, found: float | None) -> None:
        if found is None:
            return
        self.tell({"step": 0, self.course.measured: found})
        if not isfinite(found):
            layer = first_nonfinite(
                self.course.student, lambda: self.course.loss(0, 0), gradients=False
            )
            raise DataError(
                f"The student's {self.course.measured} is {found} before it is healed, first in "
                f"{layer}; check its weights for NaN."
            )

    def _stop_at_nan(self, loss: float) -> None:
        """Find where the first number that is not finite arose."""
        layer = first_nonfinite(self.course.student, lambda: list(self.descent.losses(self.step)))
        what, last = ("gradient", "their norm") if isfinite(loss) else ("loss", "the loss")
        self.out.stopped = (
            f"the {what} was not finite at step {self.step + 1}, first in {layer or last}; "
            f"the weights after step {self.out.best_step} are kept: write a lower rate"
        )

    def _save_in_time(self) -> None:
        due = time.monotonic() - self._kept_at >= self.recipe.save_every
        if agreed([float(due)], "max", self.device)[0] and not self.out.stopped:
            self.store.save(self.step, self._values(), self.descent.optimizer)
            self._kept_at = time.monotonic()

    def _end(self) -> None:
        """Leave the best in the student."""
        self.descent.optimizer.zero_grad(set_to_none=True)
        if self.out.best_step != self.step or self.out.stopped:
            self.store.restore()
        self.store.finish(self.step, self._values())
