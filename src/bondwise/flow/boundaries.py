"""What is between the slices: the states of a model at their boundaries, one file for each."""

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from bondwise.errors import DataError
from bondwise.flow.chains.blocks import Stream, capture
from bondwise.flow.chains.calls import Call
from bondwise.flow.data import Batch, evaluating
from bondwise.flow.files import read, write
from bondwise.flow.slices import Row, Slice
from bondwise.progress import silent


class Boundaries:
    """The states that enter and leave the slices of one stack of blocks, batch by batch.

    They are made when they are asked for, from the last boundary that is there, and kept as files.
    Any number of processes may ask at once: a file that two of them make is the same. In memory is
    what was asked for, and what else the blocks are given (masks, positions).

    Args:
        model: whose states they are.
        parts: its slices, in the order in which they run.
        batches: what it is shown.
        folder: where the files are.
        name: what their names begin with.
        row: the blocks of a slice to go through; None for the model's own.

    Attributes:
        in_a_row: whether the blocks run one after another; otherwise there are no boundaries.
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
        if found is not None:
            self.masks, self._calls = found.masks, (found.calls, *found.later)
            self._keep(0, found.hidden)

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
            row, entering = self._row(k), self.entering(k)
            with evaluating(row):
                self._keep(k + 1, entering.after(row).hidden)
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

    def _path(self, boundary: int) -> Path:
        return self.folder / f"{self.name}-{boundary:03d}.safetensors"

    def _keep(self, boundary: int, hidden: Sequence[Tensor]) -> None:
        if self._path(boundary).exists():
            return
        if boundary:
            _check_finite(self.model, self.parts[boundary - 1].name, hidden)
        write(self._path(boundary), {str(k): x for k, x in enumerate(hidden)})

    def _read(self, boundary: int) -> tuple[Tensor, ...]:
        device = next(self.model.parameters()).device
        kept = read(self._path(boundary))
        return tuple(kept[str(k)].to(device) for k in range(len(kept)))


def _check_finite(model: nn.Module, name: str, given: Iterable[Tensor]) -> None:
    if not all(bool(torch.isfinite(x).all()) for x in given):
        raise DataError(
            f"{name} of {type(model).__name__} gives NaN or infinity; "
            "give data and a model that give numbers: check its weights, or load it in float32."
        )
