"""What is between the slices: the states of a model at their borders, one file for each border."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from bondwise.errors import DataError
from bondwise.flow.blocks import Call, Stream, capture
from bondwise.flow.data import Batch, fitted_on
from bondwise.flow.files import read, write
from bondwise.flow.slices import Row, Slice
from bondwise.progress import silent


@dataclass(frozen=True)
class Lesson:
    """What a slice is trained on.

    Attributes:
        entering: what enters it, batch by batch.
        wanted: what it should give.
        measured: batches that are only measured.
    """

    entering: Stream
    wanted: tuple[Tensor, ...]
    measured: tuple[int, ...]


class InARow:
    """Slices of one stack of blocks, in both models.

    Args:
        student: its borders.
        teacher: those of the dense model.
        share: of the batches whose inputs are the student's; the others' are the teacher's.
        held_out: batches that are only measured, with both inputs where the share is between.
    """

    def __init__(
        self, student: "Borders", teacher: "Borders", share: float, held_out: Sequence[int]
    ) -> None:
        self.student, self.teacher = student, teacher
        self.share, self.held_out = share, held_out

    def begin(self) -> None:
        """Make the first files."""
        self.student.begin(used=self.share > 0)
        self.teacher.begin()

    def lesson(self, at: int) -> Lesson:
        """What a slice is trained on.

        Raises:
            DataError: states of another width in the two models, or that are not finite.
            CheckpointError: a file cannot be written or read.
        """
        given = self.teacher.leaving(at)
        fitted = fitted_on(len(given), self.held_out)
        whose = [int((k + 1) * self.share) > int(k * self.share) for k in range(len(fitted))]
        chosen = list(zip(whose, fitted, strict=True))
        both = [own for own in (False, True) if (self.share if own else 1 - self.share) > 0]
        chosen += [(own, k) for k in self.held_out for own in both]
        streams: dict[bool, Stream] = {}
        for own in both:
            streams[own] = (self.student if own else self.teacher).entering(at)
        entering = Stream(
            tuple(streams[own].hidden[k] for own, k in chosen),
            tuple(streams[own].calls[k] for own, k in chosen),
            tuple(streams[own].masks[k] for own, k in chosen),
        )
        measured = tuple(range(len(fitted), len(chosen)))
        return Lesson(entering, tuple(given[k] for _, k in chosen), measured)

    def forget(self, before: int) -> None:
        """Remove what the slices before one were trained on."""
        self.student.forget(before)
        self.teacher.forget(before)

    def clear(self) -> None:
        """Remove all files."""
        self.student.clear()
        self.teacher.clear()


class Borders:
    """The states that enter and leave the slices of one stack of blocks, batch by batch.

    They are made when they are asked for, from the last border that is there, and kept as files.
    Any number of processes may ask at once: a file that two of them make is the same. In memory is
    what was asked for, and what else the blocks are given (masks, positions).

    Args:
        model: as it is before any slice is healed.
        parts: its slices, in the order in which they run.
        batches: what it is shown.
        folder: where the files are.
        name: what their names begin with.
        row: the blocks of a slice to go through; None for the model's own.

    Attributes:
        in_a_row: whether the blocks run one after another; otherwise there are no borders.
    """

    def __init__(
        self,
        model: nn.Module,
        parts: Sequence[Slice],
        batches: Sequence[Batch],
        folder: Path,
        name: str,
        row: Callable[[int], Row] | None = None,
    ) -> None:
        self.model, self.parts, self.folder, self.name = model, parts, folder, name
        self._row = row or (lambda at: Row.of(model, parts[at].names))
        blocks = [block for part in parts for block in part.names]
        found = capture(model, blocks, batches, silent)
        self.in_a_row = found is not None
        self.masks: tuple[Tensor | None, ...] = ()
        self._first: tuple[Tensor, ...] = ()
        if found is not None:
            self.masks, self._calls = found.masks, (found.calls, *found.later)
            self._first = found.hidden

    def begin(self, used: bool = True) -> None:
        """Make the first file, where it is of use, and keep no states in memory."""
        if used:
            self._keep(0, self._first)
        self._first = ()

    def entering(self, at: int) -> Stream:
        """What enters a slice."""
        start = sum(len(part.names) for part in self.parts[:at])
        own = [self._of_block(start + k) for k in range(len(self.parts[at].names))]
        calls: tuple[Call, ...] = tuple((together, {}) for together in zip(*own, strict=True))
        return Stream(self.leaving(at - 1), calls, self.masks)

    def leaving(self, at: int) -> tuple[Tensor, ...]:
        """What a slice gives, batch by batch.

        Raises:
            DataError: it is not finite.
            CheckpointError: a file cannot be written or read.
        """
        last = next(k for k in range(at + 1, -1, -1) if self._path(k).exists())
        for k in range(last, at + 1):
            self._keep(k + 1, self.entering(k).after(self._row(k)).hidden)
        return self._read(at + 1)

    def forget(self, before: int) -> None:
        """Remove what enters the slices before one; the way to it need not be gone again."""
        for k in range(1, before):
            self._path(k).unlink(missing_ok=True)

    def clear(self) -> None:
        """Remove all files."""
        for path in self.folder.glob(f"{self.name}-*.safetensors"):
            path.unlink(missing_ok=True)

    def _of_block(self, block: int) -> tuple[Call, ...]:
        return self._calls[block] if len(self._calls) > 1 else self._calls[0]

    def _path(self, border: int) -> Path:
        return self.folder / f"{self.name}-{border:03d}.safetensors"

    def _keep(self, border: int, hidden: Sequence[Tensor]) -> None:
        if self._path(border).exists():
            return
        if border:
            check_finite(self.model, self.parts[border - 1].name, hidden)
        write(self._path(border), {str(k): x for k, x in enumerate(hidden)})

    def _read(self, border: int) -> tuple[Tensor, ...]:
        device = next(self.model.parameters()).device
        kept = read(self._path(border))
        return tuple(kept[str(k)].to(device) for k in range(len(kept)))


def check_finite(model: nn.Module, name: str, given: Iterable[Tensor]) -> None:
    """Refuse what a part of a model gives where it is no number.

    Raises:
        DataError: it is NaN or infinity.
    """
    if not all(bool(torch.isfinite(x).all()) for x in given):
        raise DataError(
            f"{name} of {type(model).__name__} gives NaN or infinity; "
            "give data and a model that give numbers: check its weights, or load it in float32."
        )
