"""One healing: what is looked at before it, the steps, and what came of them."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

from torch import Tensor, nn

from bondwise.compress.swap import apart
from bondwise.errors import DataError
from bondwise.flow.copies import copied, twins, view
from bondwise.flow.data import Batch, checked
from bondwise.flow.doors import check_whole
from bondwise.flow.identity import identity
from bondwise.flow.text import fitting
from bondwise.heal.distil import LanguageTask, LazyTeacherCache, Teacher, head_of, is_causal
from bondwise.heal.head import check_vocabularies, vocabulary_size
from bondwise.heal.modes import training
from bondwise.heal.outputs import LazyOutputs, OutputTask, cache_outputs
from bondwise.heal.timing import decider, needed
from bondwise.heal.training_data import TrainingData, token_ids, told_windows, training_data
from bondwise.progress import Progress, silent
from bondwise.train.descent import Course
from bondwise.train.loop import Callback, Entry, Trained, train
from bondwise.train.processes import world
from bondwise.train.rates import groups, only
from bondwise.train.recipe import MEASURED, Healing, suited
from bondwise.train.state import RunFolder, Store

Wrap = Callable[[nn.Module], nn.Module]
Task = LanguageTask | OutputTask
Answers = LazyTeacherCache | LazyOutputs


@dataclass(frozen=True)
class Healed:
    """A healed student, and how it came about.

    Attributes:
        model: the student with the best parameters.
        history: one entry for each step: step, loss, rate, seconds, and the perplexity (of other
            models: the error) on what is held out where it was measured.
        recipe: all that decided it.
        steps: that were meant, also where a time was given.
        before: the measure before any healing, None where nothing was held out.
        after: the same of ``model``.
        measured: what it is called.
        notes: what there is to know, such as why it ended early.
    """

    model: nn.Module
    history: list[Entry]
    recipe: Healing
    steps: int
    before: float | None = None
    after: float | None = None
    measured: str = "perplexity"
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class HealingRun:
    """What is healed, towards what, and on what; nothing of it is changed.

    Attributes:
        student: as it was given.
        teacher: or what loads it.
        recipe: how.
        data: to train and to judge on.
        is_causal: whether the student is a causal language model.
    """

    student: nn.Module
    teacher: Teacher
    recipe: Healing
    data: TrainingData
    is_causal: bool

    @property
    def identity(self) -> dict[str, Any]:
        """What tells this healing from another one."""
        recipe = self.recipe.to_json()
        del recipe["save_every"]  # it changes nothing
        recipe["processes"] = world()
        told = (self.data.told, self.data.told_held)
        return identity(
            recipe,
            student=self.student,
            teacher=self.teacher.get(),
            data=[self.data.shown, self.data.held, *(t for t in told if t is not None)],
        )

    def own(self, inplace: bool) -> nn.Module:
        """The student that is trained: a copy, or itself, sharing nothing with the teacher."""
        if not inplace:
            return apart(self.student)
        source = self.teacher.source
        if isinstance(source, nn.Module):
            _part(self.student, source)
        return self.student

    def run(
        self,
        model: nn.Module,
        place: RunFolder,
        wrap: Wrap | None,
        progress: Progress,
        tell: Callback,
    ) -> Healed:
        """Measure, train, and tell."""
        before = self._before(model, place)
        done = self._train(model, place, wrap, progress, tell)
        ended = (f"ended early: {done.stopped}",) if done.stopped else ()
        return Healed(
            model,
            done.history,
            self.recipe,
            done.steps,
            before,
            done.best,
            self._measured,
            (*self.data.notes, *ended),
        )

    @property
    def _measured(self) -> str:
        return "perplexity" if self.is_causal else "error"

    def _task(
        self,
        model: nn.Module,
        called: nn.Module,
        place: RunFolder,
        answers: Answers | None,
        head: nn.Module | None,
    ) -> Task:
        shown, held = self.data.shown, self.data.held
        if self.is_causal:
            assert not isinstance(answers, LazyOutputs)
            ids, others = cast(Tensor, shown), cast(Tensor, held)
            told = (self.data.told, self.data.told_held)
            return LanguageTask(model, called, ids, others, answers, self.recipe, head, told)
        return OutputTask(model, called, shown, held, place.folder / "outputs", self.recipe)

    def _head(self, model: nn.Module) -> nn.Module | None:
        return head_of(model, cast(Tensor, self.data.shown)) if self.is_causal else None

    def _before(self, model: nn.Module, place: RunFolder) -> float | None:
        """The measure of the student as it came, kept for a resumed run."""
        if not len(self.data.held):
            return None
        found = place.decided("before")
        if found is None:
            if not self.is_causal:
                self._cache_held(place)
            found = self._task(model, model, place, None, self._head(model)).measure()
            place.decide(before=found)
        return found

    def _cache_held(self, place: RunFolder) -> None:
        """Keep what the teacher gives for what is held out, for a model that does not speak."""
        folder = place.folder / "outputs" / "held"
        cache_outputs(self.teacher.get(), self.data.held, folder, self.recipe, silent)

    def _train(
        self,
        model: nn.Module,
        place: RunFolder,
        wrap: Wrap | None,
        progress: Progress,
        tell: Callback,
    ) -> Trained:
        """All steps."""
        recipe = self.recipe
        steps = place.decided("steps") if recipe.steps is None else recipe.steps
        until = time.perf_counter() + 60 * (recipe.minutes or 0.0)
        answers = self._answers(place, steps, progress)
        head = self._head(model)
        with only(model, groups(model, recipe.rate, recipe.choice)):
            called = wrap(model) if wrap else model
            chosen = groups(model, recipe.rate, recipe.choice)  # of shards, before any call
            task = self._task(model, called, place, answers, head)
            trained = {id(p) for group in chosen for p in group["params"]}
            names = {n: p for n, p in model.named_parameters() if id(p) in trained}
            course = Course(
                model,
                chosen,
                task.loss,
                task.parts,
                task.measure if len(self.data.held) else None,
                self._measured,
                called,
            )
            decide = None if recipe.minutes is None else decider(until, recipe, answers, place)
            store = Store(place.folder / "steps", names)
            with training(model, recipe.checkpointing):
                return train(
                    course, recipe, store, steps=steps, decide=decide, progress=progress, tell=tell
                )

    def _answers(self, place: RunFolder, steps: int | None, progress: Progress) -> Answers | None:
        """What the teacher says of the windows (samples) that are known to be needed."""
        recipe = self.recipe
        if self.is_causal and not (recipe.distil or recipe.hidden):
            self.teacher.forget()
            return None
        answers = self._asked(place, progress)
        count = len(answers.windows)
        if recipe.minutes is not None:
            answers.upto(needed(MEASURED, recipe, count))
        if steps is not None:
            answers.upto(needed(steps, recipe, count))
            self.teacher.forget()
        return answers

    def _asked(self, place: RunFolder, progress: Progress) -> Answers:
        if self.is_causal:
            windows = cast(Tensor, self.data.shown)
            folder = place.folder / "teacher"
            return LazyTeacherCache(self.teacher, windows, folder, self.recipe, progress)
        folder = place.folder / "outputs" / "shown"
        return LazyOutputs(self.teacher, self.data.shown, folder, self.recipe, progress)


def _part(student: nn.Module, teacher: nn.Module) -> None:
    """Give a student what it shares with a teacher once more: modules, parameters and buffers."""
    stored = [*student.parameters(), *student.buffers()]
    theirs = {view(t) for t in (*teacher.parameters(), *teacher.buffers())}
    alone = {t for t in stored if view(t) not in theirs}
    made: dict[int, Any] = dict(twins(student, alone)) | {id(t): t for t in alone}
    common = set(teacher.modules())
    for path, module in list(student.named_modules(remove_duplicate=False)):
        parent, _, name = path.rpartition(".")
        if module in common and path:
            setattr(student.get_submodule(parent), name, copied(module, made))
    for module in student.modules():
        own = [*module.named_parameters("", False, False), *module.named_buffers("", False, False)]
        for name, tensor in own:
            setattr(module, name, made.get(id(tensor), tensor))


def prepare(
    student: nn.Module,
    teacher: Teacher,
    recipe: Healing,
    data: Any,
    tokenizer: Any,
    validation: Any,
    given: Mapping[str, Any],
) -> HealingRun:
    """Look at everything before anything is changed.

    What of the recipe was not ``given`` is made to fit what is healed.

    Raises:
        DataError: data that cannot be used, or models that do not belong together.
    """
    check_whole(teacher.get())
    found = training_data(student, data, tokenizer, recipe, validation)
    found = replace(found, shown=_run(student, found.shown), held=_run(student, found.held))
    ids = token_ids(found)
    causal = ids is not None and is_causal(student, ids)
    recipe = suited(recipe, given, causal, world(), _numbers(found.shown))
    if causal:
        recipe = replace(recipe, length=fitting(student, recipe.length))
        shown, told = told_windows(found.shown, recipe.length)
        held, told_held = shown[:0], None
        if len(found.held):
            held, told_held = told_windows(found.held, recipe.length)
        found = replace(found, shown=shown, held=held, told=told, told_held=told_held)
        known = vocabulary_size(student) or recipe.top_k
        recipe = replace(recipe, top_k=min(recipe.top_k, known))
        check_vocabularies(student, teacher.get())
        if not is_causal(teacher.get(), cast(Tensor, ids)):
            raise DataError(
                f"A {type(teacher.get()).__name__} came as the teacher, which does not predict the "
                "next token; give the dense model that the student was made from."
            )
    return HealingRun(student, teacher, recipe, found, causal)


def _numbers(shown: Tensor | Sequence[Batch]) -> int | None:
    """How many numbers a sample has, where it has some with a fraction."""
    if not isinstance(shown, Tensor) or not shown.is_floating_point() or not len(shown):
        return None
    return shown.numel() // len(shown)


def _run(model: nn.Module, shown: Tensor | Sequence[Batch]) -> Tensor | list[Batch]:
    """What is shown, if the model can run it."""
    if not isinstance(shown, Tensor):
        return checked(model, shown)
    checked(model, [shown] if len(shown) else [])
    return shown
