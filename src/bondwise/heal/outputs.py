"""The task of any other model: the student learns to give what the teacher gives."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from math import ceil
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from bondwise.errors import DataError
from bondwise.flow.chains.calls import first, is_image
from bondwise.flow.data import Batch, feed, part, samples
from bondwise.flow.files import read, read_row, write
from bondwise.flow.padding import tokens
from bondwise.heal.distil import Teacher
from bondwise.heal.losses import relative_error
from bondwise.heal.modes import judging, products
from bondwise.progress import Progress
from bondwise.train.processes import agreed, rank, wait, world
from bondwise.train.recipe import Healing
from bondwise.train.sampler import micro_batches, sample_order

ROOM = 2**28  # bytes of what a teacher gave that may stay in memory
GIVES = ("logits", "last_hidden_state")


def answer(output: Any) -> Tensor:
    """The tensor that a model's output is judged by: itself, its logits, or its last state.

    Raises:
        DataError: there is none.

    >>> answer((torch.zeros(2), None)).shape
    torch.Size([2])
    """
    named = (getattr(output, name, None) for name in GIVES)
    found = next((value for value in named if isinstance(value, Tensor)), None)
    if found is not None:
        return found
    if isinstance(output, Tensor | tuple | list):
        return first(output)
    raise DataError(
        f"An output of type {type(output).__name__} came; healing needs a tensor, logits or "
        "last_hidden_state."
    )


class OutputTask:
    """The relative error of a student's output on some data, towards the teacher's kept on disk.

    Every token weighs alike, or every sample of one vector; of images every number.

    Args:
        student: the model.
        called: the same as it is called, where it is wrapped (DDP).
        shown: one tensor of samples, of which a step takes a batch; or batches, one for each step.
        held: the same, to judge on.
        folder: where `cache_outputs` has kept what the teacher gives.
        recipe: how.
    """

    def __init__(
        self,
        student: nn.Module,
        called: nn.Module,
        shown: Tensor | Sequence[Batch],
        held: Tensor | Sequence[Batch],
        folder: Path,
        recipe: Healing,
    ) -> None:
        self.student, self.called, self.recipe, self.folder = student, called, recipe, folder
        self.shown, self.held = shown, batched(held, recipe.batch)
        self.wanted = _Kept(folder / "shown", recipe.batch)
        self.judged = _Kept(folder / "held", recipe.batch)
        rows = isinstance(shown, Tensor)
        size = recipe.batch if rows else max(samples(batch) for batch in shown)
        self.size = min(size, len(shown)) if rows else ceil(size / world()) * world()
        self.places = micro_batches(self.size, recipe.micro)
        self.products = products(recipe.precision, next(student.parameters()).device)

    @property
    def parts(self) -> int:
        """Of a step."""
        return len(self.places)

    def loss(self, step: int, part: int) -> Tensor:
        """The share of one part of a step's samples."""
        if isinstance(self.shown, Tensor):
            drawn = sample_order(step, self.size, len(self.shown), self.recipe.seed)
            rows = [drawn[place] for place in self.places[part]]
            weight = len(rows) / sum(len(places) for places in self.places)
            return weight * self._of(self.shown[rows], self.wanted.rows(rows))
        return self._of_batch(sample_order(step, 1, len(self.shown), self.recipe.seed)[0], part)

    def _of_batch(self, at: int, piece: int) -> Tensor:
        """The share of one part of a batch that came as such."""
        batch = cast(Sequence[Batch], self.shown)[at]
        size, wanted, places = samples(batch), self.wanted.batch(at), self.places[piece]
        start, stop = (min(p * size // self.size, size) for p in (places.start, places.stop))
        counts = _counted(batch, wanted)
        own, total = int(counts[start:stop].sum()), int(counts.sum())
        if total and not own:  # padding alone: a sample with tokens, so that every process has one
            start = int(counts.argmax())
            stop = start + 1
        loss = self._of(part(batch, start, stop), wanted[start:stop])
        return own / max(total, 1) * world() * loss

    @torch.no_grad()
    def measure(self) -> float:
        """The mean relative error on what is held out."""
        total = counted = 0.0
        with judging(self.student):
            for k, batch in enumerate(self.held):
                wanted = self.judged.batch(k)
                weight = int(_counted(batch, wanted).sum())
                total += weight * float(self._of(batch, wanted))
                counted += weight
        return agreed([total / counted], "sum")[0] / world()

    def _of(self, batch: Batch, wanted: Tensor) -> Tensor:
        device = next(self.student.parameters()).device
        given = self.products(partial(_given, self.called, batch)).float()
        wanted = wanted.to(device)
        if given.shape == wanted.shape and is_image(self.student, given):
            return relative_error(given.reshape(1, -1), wanted.reshape(1, -1))
        return relative_error(given, wanted, tokens(batch, given))


def _counted(batch: Batch, wanted: Tensor) -> Tensor:
    """Of each sample the tokens that weigh in a loss: all but padding."""
    mask = tokens(batch, wanted)
    counted = torch.ones(wanted.shape[:-1]) if mask is None else mask
    return counted.flatten(1).sum(1) if counted.ndim > 1 else counted


def batched(data: Tensor | Sequence[Batch], size: int) -> Sequence[Batch]:
    """Samples as batches of a size; batches as they are."""
    return list(data.split(size)) if isinstance(data, Tensor) else data


@dataclass
class LazyOutputs:
    """What the teacher gives for the first samples: for as many as are needed, when they are.

    Attributes:
        teacher: who gives it.
        windows: one tensor of samples, in the order in which they are first needed, or batches.
        folder: where it is kept.
        recipe: how many samples are asked about at once.
        progress: is told batches done.
        per_window: seconds that one sample (batch) took.
        count: samples (batches) that it has answers to.
    """

    teacher: Teacher
    windows: Tensor | Sequence[Batch]
    folder: Path
    recipe: Healing
    progress: Progress
    per_window: float = 0.0
    count: int = 0

    def upto(self, count: int) -> None:
        """Have answers to so many samples (batches), or to all."""
        if min(count, len(self.windows)) <= self.count:
            return
        began, before = time.perf_counter(), self.count
        many = self.recipe.batch if isinstance(self.windows, Tensor) else 1
        last = min(ceil(count / many) * many, len(self.windows))
        cache_outputs(
            self.teacher.get(), self.windows[:last], self.folder, self.recipe, self.progress
        )
        self.count = last
        self.per_window = (time.perf_counter() - began) / (last - before)


@torch.no_grad()
def cache_outputs(
    teacher: nn.Module,
    data: Tensor | Sequence[Batch],
    folder: Path,
    recipe: Healing,
    progress: Progress,
) -> None:
    """Keep what a teacher gives, one file for each batch; what is there is taken.

    Raises:
        DataError: it gives what is not finite.
    """
    whole = batched(data, recipe.batch)
    run = products(recipe.precision, next(teacher.parameters()).device)
    folder.mkdir(parents=True, exist_ok=True)
    for k, batch in enumerate(whole):
        path = folder / f"{k:06d}.safetensors"
        if k % world() == rank() and not path.exists():
            with judging(teacher):
                given = run(partial(_given, teacher, batch), _finite).float()
            if not _finite(given):
                raise DataError(f"The teacher gives NaN or infinity for batch {k}; clean the data.")
            write(path, {"given": given}, {"rows": len(given)})
        progress("teacher", k + 1, len(whole))
    wait()


def _given(model: nn.Module, batch: Batch) -> Tensor:
    return answer(feed(model, batch))


def _finite(given: Tensor) -> bool:
    return bool(torch.isfinite(given).all())


class _Kept:
    """What the teacher gave, batch by batch: read once where it is small, else each time."""

    def __init__(self, folder: Path, size: int) -> None:
        self.folder, self.size = folder, size
        self._read = dict[int, Tensor]()
        self._room = ROOM

    def batch(self, at: int) -> Tensor:
        """All of one batch."""
        found = self._read.get(at)
        if found is None:
            found = read(self.folder / f"{at:06d}.safetensors")["given"]
            if self._room > 0:
                self._read[at] = found
                self._room -= found.numel() * found.element_size()
        return found

    def rows(self, rows: Sequence[int]) -> Tensor:
        """Some samples of a tensor."""
        return torch.stack([self._row(*divmod(row, self.size)) for row in rows])

    def _row(self, at: int, row: int) -> Tensor:
        """One sample; it alone is read where there is no room for its batch."""
        if at in self._read or self._room > 0:
            return self.batch(at)[row]
        return read_row(self.folder / f"{at:06d}.safetensors", "given", row)
