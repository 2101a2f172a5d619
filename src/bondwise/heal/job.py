"""The two stages of a healing, one after the other, and what is looked at before them."""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field, replace
from typing import Any, cast

import torch
from torch import Tensor, nn

from bondwise.errors import DataError
from bondwise.flow.data import Batch
from bondwise.flow.text import fitting
from bondwise.heal.distil import Answers, Speech, Teacher, head_of, speaks
from bondwise.heal.head import check_alike, words
from bondwise.heal.local import HealedSlice, assemble, heal_locally
from bondwise.heal.material import Material, as_windows, digest_of, material, token_ids
from bondwise.heal.modes import training
from bondwise.heal.outputs import Outputs, ask, batched
from bondwise.heal.teacher import fingerprint
from bondwise.heal.timing import decider, local_steps, needed
from bondwise.progress import Progress
from bondwise.train.descent import Course
from bondwise.train.loop import Entry, Tell, Trained, train
from bondwise.train.processes import rank, wait, world
from bondwise.train.rates import groups, only
from bondwise.train.recipe import MEASURED, Healing, suited
from bondwise.train.state import Place, Store, digest

Wrap = Callable[[nn.Module], nn.Module]
Task = Speech | Outputs


@dataclass(frozen=True)
class Healed:
    """A healed student, and how it came about.

    Attributes:
        model: the student with the best parameters.
        history: of the global stage, one entry for each step: step, loss, rate, seconds, and the
            perplexity (of other models: the error) on what is held out where it was measured.
        recipe: all that decided it.
        steps: of the "local" and the "global" stage, also where a time was given.
        before: the measure before any healing, None where nothing was held out.
        after: the same of ``model``.
        measured: what it is called.
        local: what became of each slice.
        notes: what there is to know, such as why it ended early.
    """

    model: nn.Module
    history: list[Entry]
    recipe: Healing
    steps: Mapping[str, int]
    before: float | None = None
    after: float | None = None
    measured: str = "perplexity"
    local: list[HealedSlice] = field(default_factory=list[HealedSlice])
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Job:
    """What is healed, towards what, and on what; nothing of it is changed.

    Attributes:
        student: as it was given.
        teacher: or what loads it.
        recipe: how.
        material: data to train and to judge on.
        speaks: whether the student is a causal language model.
    """

    student: nn.Module
    teacher: Teacher
    recipe: Healing
    material: Material
    speaks: bool

    @property
    def identity(self) -> dict[str, Any]:
        """What tells this healing from another one."""
        recipe = self.recipe.to_json()
        del recipe["save_every"]  # it changes nothing
        names = dict(self.student.named_parameters())
        data = digest_of(self.material.shown) + digest_of(self.material.held)
        models = {"student": digest(names), "teacher": fingerprint(self.teacher.get())[:16]}
        return {**recipe, **models, "data": data, "processes": world()}

    def own(self, inplace: bool) -> nn.Module:
        """The student that is trained: a copy, or itself, sharing nothing with the teacher."""
        if not inplace:
            return deepcopy(self.student)
        source = self.teacher.source
        theirs = {id(p) for p in source.parameters()} if isinstance(source, nn.Module) else set()
        made = dict[int, nn.Parameter]()
        for module in self.student.modules():
            for name, p in module.named_parameters(recurse=False):
                if id(p) in theirs:
                    fresh = nn.Parameter(p.detach().clone(), p.requires_grad)
                    setattr(module, name, made.setdefault(id(p), fresh))
        return self.student

    def run(
        self, model: nn.Module, place: Place, wrap: Wrap | None, progress: Progress, tell: Tell
    ) -> Healed:
        """Both stages."""
        before = self._before(model, place)
        slices, first, notes = self._locally(model, before, place, progress)
        done = self._globally(model, place, wrap, progress, tell)
        ended = (*notes, *((f"ended early: {done.stopped}",) if done.stopped else ()))
        return Healed(
            model,
            done.history,
            self.recipe,
            {"local": first, "global": done.steps},
            before,
            done.best,
            self._measured,
            slices,
            (*self.material.notes, *ended),
        )

    @property
    def _measured(self) -> str:
        return "perplexity" if self.speaks else "error"

    def _task(
        self,
        model: nn.Module,
        called: nn.Module,
        place: Place,
        answers: Answers | None,
        head: nn.Module | None,
    ) -> Task:
        shown, held = self.material.shown, self.material.held
        if self.speaks:
            ids, others = cast(Tensor, shown), cast(Tensor, held)
            return Speech(model, called, ids, others, answers, self.recipe, head)
        return Outputs(model, called, shown, held, place.folder / "outputs", self.recipe)

    def _head(self, model: nn.Module) -> nn.Module | None:
        return head_of(model, cast(Tensor, self.material.shown)) if self.speaks else None

    def _before(self, model: nn.Module, place: Place) -> float | None:
        """The measure of the student as it came, kept for a resumed run."""
        if not len(self.material.held):
            return None
        found = place.decided("before")
        if found is None:
            if not self.speaks:
                self._ask(place)
            found = self._task(model, model, place, None, self._head(model)).measure()
            place.decide(before=found)
        return found

    def _ask(self, place: Place, progress: Progress | None = None) -> None:
        """Keep what the teacher gives, for a model that does not speak."""
        shown, held = self.material.shown, self.material.held
        says = progress or (lambda _stage, _done, _total: None)
        ask(self.teacher.get(), shown, held, place.folder / "outputs", self.recipe, says)

    def _locally(
        self, model: nn.Module, before: float | None, place: Place, progress: Progress
    ) -> tuple[list[HealedSlice], int, tuple[str, ...]]:
        """The local stage: what became of the slices, steps of each, and what there is to say."""
        start = time.perf_counter()
        shown = self.material.shown
        part = shown[: self.recipe.local_windows] if isinstance(shown, Tensor) else shown
        batches = batched(part, self.recipe.local_batch)
        steps = self._local_steps(model, batches, place)
        if not steps:
            return [], 0, ()
        own = {name: p.detach().clone() for name, p in model.named_parameters()}
        found = self._slices(model, batches, steps, place, start, progress)
        notes = (*_stopped(found), *self._undone(model, own, before, found, place))
        return found, steps, notes

    def _slices(
        self,
        model: nn.Module,
        batches: Sequence[Batch],
        steps: int,
        place: Place,
        start: float,
        progress: Progress,
    ) -> list[HealedSlice]:
        """What became of the slices, now or where it was done before."""
        recipe, folder = self.recipe, place.folder / "local"
        if place.decided("spent") is not None:
            return assemble(model, folder)
        folder.mkdir(parents=True, exist_ok=True)
        found = heal_locally(
            model,
            self.teacher.get(),
            batches,
            size=recipe.slice,
            inputs=recipe.inputs,
            chained=recipe.chained,
            steps=steps,
            rate=recipe.local_rate,
            train=recipe.choice,
            folder=folder,
            seed=recipe.seed,
            rank=rank(),
            world=world(),
            progress=progress,
        )
        wait()
        place.decide(spent=time.perf_counter() - start)
        return found

    def _undone(
        self,
        model: nn.Module,
        own: Mapping[str, Tensor],
        before: float | None,
        found: Sequence[HealedSlice],
        place: Place,
    ) -> tuple[str, ...]:
        """Put the parameters back where the slices are worse together than before; say so."""
        if before is None:
            return ()
        nearer = sum(part.after < part.before for part in found)
        if not nearer:
            return (f"the local stage changed nothing: none of {len(found)} slices came nearer",)
        after = place.decided("locally")
        if after is None:
            after = self._task(model, model, place, None, self._head(model)).measure()
            place.decide(locally=after)
        if after < before:
            return ()
        with torch.no_grad():
            for name, p in model.named_parameters():
                p.copy_(own[name])
        said = f"{self._measured} {before:.6g} before and {after:.6g} after it"
        many = f"{nearer} of {len(found)} slices had come nearer"
        return (f"the local stage was undone: {said}, though {many}",)

    def _local_steps(self, model: nn.Module, batches: Sequence[Batch], place: Place) -> int:
        if self.recipe.steps is not None:
            return round(self.recipe.steps * self.recipe.local)
        if not self.recipe.local:
            return 0
        steps = place.decided("local_steps")
        if steps is None:
            seconds = 60 * cast(float, self.recipe.minutes) * self.recipe.local
            steps = local_steps(model, batches, self.recipe, seconds)
            place.decide(local_steps=steps)
        return steps

    def _globally(
        self,
        model: nn.Module,
        place: Place,
        wrap: Wrap | None,
        progress: Progress,
        tell: Tell,
    ) -> Trained:
        """The global stage."""
        recipe = self.recipe
        steps = self._global_steps(place)
        until = self._until(place)
        answers = self._answers(place, steps, progress)
        head = self._head(model)
        with only(model, groups(model, recipe.rate, recipe.choice)):
            called = wrap(model) if wrap else model
            chosen = groups(model, recipe.rate, recipe.choice)  # of shards, before any call
            task = self._task(model, called, place, answers, head)
            if steps == 0:
                return Trained(best=task.measure() if len(self.material.held) else None)
            trained = {id(p) for group in chosen for p in group["params"]}
            names = {n: p for n, p in model.named_parameters() if id(p) in trained}
            course = Course(
                model,
                chosen,
                task.loss,
                task.parts,
                task.measure if len(self.material.held) else None,
                self._measured,
                called,
            )
            decide = None if recipe.minutes is None else decider(until, recipe, answers, place)
            store = Store(place.folder / "global", names)
            with training(model, recipe.checkpointing):
                return train(
                    course, recipe, store, steps=steps, decide=decide, progress=progress, tell=tell
                )

    def _global_steps(self, place: Place) -> int | None:
        """How many there are; None where that is to be measured."""
        if self.recipe.steps is not None:
            return self.recipe.steps - round(self.recipe.steps * self.recipe.local)
        return 0 if self.recipe.local == 1 else place.decided("steps")

    def _until(self, place: Place) -> float:
        """When a run that was given a time is to end."""
        spent = place.decided("spent") or 0.0
        return time.perf_counter() + 60 * (self.recipe.minutes or 0.0) - spent

    def _answers(self, place: Place, steps: int | None, progress: Progress) -> Answers | None:
        """What the teacher says of the windows that are known to be needed."""
        recipe = self.recipe
        if not self.speaks:
            self._ask(place, progress)
            self.teacher.forget()
            return None
        if not (recipe.distil or recipe.hidden) or steps == 0:
            self.teacher.forget()
            return None
        windows = cast(Tensor, self.material.shown)
        answers = Answers(self.teacher, windows, place.folder / "said", recipe, progress)
        if recipe.minutes is not None:
            answers.upto(needed(MEASURED, recipe, len(windows)))
        if steps is not None:
            answers.upto(needed(steps, recipe, len(windows)))
            self.teacher.forget()
        return answers


def _stopped(found: Sequence[HealedSlice]) -> Iterator[str]:
    """What there is to say of slices whose loss was not finite."""
    for part in found:
        if part.stopped:
            yield (
                f"the loss of slice {', '.join(part.names)} was not finite at step {part.stopped}, "
                "and what was better before is kept: write a lower local_rate"
            )


def prepare(
    student: nn.Module,
    teacher: Teacher,
    recipe: Healing,
    data: Any,
    tokenizer: Any,
    validation: Any,
    given: Mapping[str, Any],
) -> Job:
    """Look at everything before anything is changed.

    What of the recipe was not ``given`` is made to fit what is healed.

    Raises:
        DataError: data that cannot be used, or models that do not belong together.
    """
    found = material(student, data, tokenizer, recipe, validation)
    ids = token_ids(found)
    talks = ids is not None and speaks(student, ids)
    recipe = suited(recipe, given, talks, world())
    if talks:
        recipe = replace(recipe, length=fitting(student, recipe.length))
        shown = as_windows(found.shown, recipe.length)
        held = as_windows(found.held, recipe.length) if len(found.held) else shown[:0]
        found = replace(found, shown=shown, held=held)
        known = words(student) or recipe.top_k
        recipe = replace(recipe, top_k=min(recipe.top_k, known))
        check_alike(student, teacher.get())
        if not speaks(teacher.get(), cast(Tensor, ids)):
            raise DataError(
                f"A {type(teacher.get()).__name__} came as the teacher, which does not predict the "
                "next token; give the dense model that the student was made from."
            )
    return Job(student, teacher, recipe, found, talks)
