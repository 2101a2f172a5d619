"""One run of the local stage: its plan, its slices, and each one's training, in one folder."""

from collections.abc import Sequence
from copy import deepcopy
from dataclasses import asdict, dataclass, replace
from math import isfinite
from pathlib import Path
from time import perf_counter
from typing import Any

import torch
from torch import Tensor, nn

from bondwise.compress.refine import refine
from bondwise.errors import BudgetError, CheckpointError, DataError
from bondwise.flow.boundaries import Borders, InARow, Lesson
from bondwise.flow.data import Batch
from bondwise.flow.files import read, read_note, write
from bondwise.flow.slices import Row, Slice, of_layers, parameters, slices
from bondwise.heal.alone import Alone
from bondwise.heal.material import digest_of
from bondwise.heal.teacher import fingerprint
from bondwise.train.rates import groups
from bondwise.train.recipe import difference

ABOUT = "about.safetensors"


@dataclass(frozen=True)
class Plan:
    """What decides the result, besides the models and the batches."""

    size: int
    inputs: float
    steps: int
    rate: float
    train: str | Sequence[str]
    held_out: Sequence[int]
    seed: int
    chained: bool

    def check(self, count: int, rank: int, world: int, folder: Path | None) -> None:
        """Refuse what cannot be followed."""
        if not 0 <= self.inputs <= 1:
            raise BudgetError(f"inputs={self.inputs} came; write a share of 0 to 1.")
        if self.steps < 0 or not (isfinite(self.rate) and self.rate >= 0):
            raise BudgetError(
                f"steps={self.steps} and rate={self.rate} came; write numbers of at least 0."
            )
        if not 0 <= rank < world:
            raise BudgetError(f"rank={rank} of world={world} came; write 0 to world - 1.")
        if world > 1 and folder is None:
            raise BudgetError(f"world={world} came without a folder; name one that all share.")
        if world > 1 and self.chained:
            raise BudgetError(
                f"world={world} came with chained slices, which wait for one another; "
                "write chained=False, or world=1."
            )
        if not all(0 <= k < count for k in self.held_out):
            raise DataError(
                f"held_out={list(self.held_out)} came with {count} batches; "
                f"write numbers of 0 to {count - 1}."
            )


class Work:
    """The slices of a student, and all that they need, kept in the folder of the run."""

    def __init__(
        self,
        student: nn.Module,
        teacher: nn.Module,
        shown: Sequence[Batch],
        plan: Plan,
        folder: Path,
    ) -> None:
        here, there = (next(model.parameters()).device for model in (student, teacher))
        if here != there:
            raise DataError(
                f"The student is on {here} and the teacher on {there}; move one to the other."
            )
        self.student, self.plan, self.folder = student, plan, folder
        chosen = groups(student, plan.rate, plan.train)
        self.rates = {p: float(group["lr"]) for group in chosen for p in group["params"]}
        self.stacks: list[tuple[list[Slice], InARow | Alone]] = []
        self.parts: list[Slice] = []
        asked = slices(student, teacher, plan.size)
        for chain in dict.fromkeys(part.chain for part in asked):
            parts = [part for part in asked if part.chain == chain]
            self.stacks.append(self._stack(teacher, parts, shown))
            self.parts += self.stacks[-1][0]
        _check_folder(folder, _identity(student, teacher, shown, plan, self.parts))
        for _, source in self.stacks:
            source.begin()

    def heal(self, at: int, world: int) -> None:
        """Train a slice and keep the result; files that no other process needs go."""
        part, inside = self.parts[at], at
        for parts, source in self.stacks:
            if inside < len(parts):
                lesson = source.lesson(inside)
                done = None if lesson is None else self._train(part, lesson, self.plan.seed + at)
                write(result(self.folder, at), *(done or ({}, {})))
                if world == 1:
                    source.forget(inside)
                return
            inside -= len(parts)

    def _train(
        self, part: Slice, lesson: Lesson, seed: int
    ) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """The new values by their paths in the student, and what to say of them."""
        block = Row.of(self.student, part.names).copy()
        own = {path: part.inside(block, path) for path in parameters(self.student, part)}
        chosen: dict[float, list[nn.Parameter]] = {}
        for path, p in own.items():
            rate = self.rates.get(self.student.get_parameter(path))
            if rate is not None:
                chosen.setdefault(rate, []).append(p)
        start = perf_counter()
        found = refine(
            block,
            replace(lesson.entering, dtype=block.dtype),
            lesson.wanted,
            lesson.measured,
            steps=self.plan.steps,
            seed=seed,
            groups=[{"params": alike, "lr": rate} for rate, alike in chosen.items()],
        )
        said = {"names": part.names, **asdict(found), "seconds": perf_counter() - start}
        return {path: p.detach() for path, p in own.items()}, said

    def _stack(
        self, teacher: nn.Module, parts: list[Slice], shown: Sequence[Batch]
    ) -> tuple[list[Slice], InARow | Alone]:
        """The slices of one stack of blocks, or its layers where they do not run in a row."""
        chain, plan, start = parts[0].chain, self.plan, len(self.parts)
        if chain >= 0:
            row = (lambda at: self._healed(start + at)) if plan.chained else None
            ours = Borders(self.student, parts, shown, self.folder, f"student-{chain}", row)
            theirs = Borders(teacher, parts, shown, self.folder, f"teacher-{chain}")
            if ours.in_a_row and theirs.in_a_row:
                return parts, InARow(ours, theirs, plan.inputs, plan.held_out)
            parts = of_layers(self.student, teacher, [n for part in parts for n in part.names])
        name = f"inputs-{max(chain, 0)}"
        return parts, Alone(teacher, parts, shown, self.folder, name, plan.held_out)

    def _healed(self, at: int) -> Row:
        """The blocks of a slice with what they have learnt; the student stays as it is."""
        part, row = self.parts[at], deepcopy(Row.of(self.student, self.parts[at].names))
        with torch.no_grad():
            for path, value in read(result(self.folder, at)).items():
                part.inside(row, path).copy_(value)
        return row

    def forget(self) -> None:
        """Remove all but the results."""
        for _, source in self.stacks:
            source.clear()


def _identity(
    student: nn.Module,
    teacher: nn.Module,
    shown: Sequence[Batch],
    plan: Plan,
    parts: Sequence[Slice],
) -> dict[str, Any]:
    """What the run is, as JSON."""
    train = plan.train if isinstance(plan.train, str) else list(plan.train)
    return asdict(plan) | {
        "train": train,
        "held_out": list(plan.held_out),
        "student": fingerprint(student),
        "teacher": fingerprint(teacher),
        "data": digest_of(shown),
        "slices": [part.name for part in parts],
    }


def _check_folder(folder: Path, identity: dict[str, Any]) -> None:
    """Begin a run in a folder, or go on with it.

    Raises:
        CheckpointError: the folder holds slices of another run.
    """
    about = folder / ABOUT
    if not about.exists():
        write(about, {}, identity)
    differs = difference(read_note(about), identity)
    if differs:
        raise CheckpointError(
            f"{folder} holds slices of another run ({differs}); name another folder, or remove it."
        )


def result(folder: Path, at: int) -> Path:
    """The file with what a slice has learnt."""
    return folder / f"slice-{at:04d}.safetensors"
