"""Pieces of work in a folder: one file for each, whole or not there, whoever made it.

Every process makes its share of the pieces that are missing. So a run that was cut off goes on with
those, and any number of processes and machines may share a folder; what they leave is the same.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from bondwise.errors import BudgetError, CheckpointError, DataError
from bondwise.flow.files import read, read_json, read_note, write, write_json
from bondwise.flow.identity import difference
from bondwise.progress import Progress, silent

ABOUT = "about.json"


@dataclass(frozen=True)
class Piece:
    """What one piece of work came to.

    Attributes:
        tensors: by name.
        note: whatever else there is to say, as JSON.
    """

    tensors: Mapping[str, Tensor]
    note: Mapping[str, Any]


class WorkList:
    """The pieces of one run, and the folder in which they are kept.

    Args:
        folder: it is made; what else lies in it stays.
        names: of the pieces, in order.
        identity: what the run is, as JSON; another one does not go on with its pieces.

    Raises:
        CheckpointError: the folder holds pieces of another run, or cannot be written.

    >>> import tempfile, torch
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     work = WorkList(Path(folder), ["one", "two"], {"seed": 0})
    ...     work.run(lambda at: Piece({"x": torch.full((1,), at)}, {}))
    ...     work.pieces()[1].tensors["x"]
    tensor([1])
    """

    def __init__(self, folder: Path, names: Sequence[str], identity: Mapping[str, Any]) -> None:
        self.folder, self.names = folder, list(names)
        about, own = folder / ABOUT, {**identity, "pieces": self.names}
        if not about.exists():
            write_json(about, own)
        differs = difference(read_json(about), own)
        if differs:
            raise CheckpointError(
                f"{folder} holds pieces of another run ({differs}); "
                "name another folder, or remove it."
            )

    def run(
        self,
        make: Callable[[int], Piece],
        *,
        rank: int = 0,
        world: int = 1,
        progress: Progress = silent,
        stage: str = "work",
    ) -> None:
        """Make the pieces of this process that are missing, each kept when it is made.

        Args:
            make: a piece, by its place in the list.
            rank: which process this is.
            world: how many there are.
            progress: is told the stage, pieces done and the pieces of this process.
            stage: what that is called.

        Raises:
            BudgetError: a process that there is none of.
            CheckpointError: a piece cannot be written (a full disk); those before it are kept.
        """
        if not 0 <= rank < world:
            raise BudgetError(f"rank={rank} of world={world} came; write 0 to world - 1.")
        own = range(rank, len(self.names), world)
        for done, at in enumerate(own):
            progress(stage, done, len(own))
            if not self._path(at).exists():
                piece = make(at)
                write(self._path(at), piece.tensors, piece.note)
        progress(stage, len(own), len(own))

    @property
    def missing(self) -> list[str]:
        """The pieces that nobody has made yet."""
        return [name for at, name in enumerate(self.names) if not self._path(at).exists()]

    def piece(self, at: int) -> Piece:
        """What was made, by its place in the list.

        Raises:
            CheckpointError: it cannot be read.
        """
        return Piece(read(self._path(at)), read_note(self._path(at)))

    def pieces(self) -> list[Piece]:
        """All of them.

        Raises:
            DataError: some are missing.
            CheckpointError: one cannot be read.
        """
        missing = self.missing
        if missing:
            raise DataError(
                f"{len(missing)} of {len(self.names)} pieces are not made yet, such as "
                f"{missing[0]}; run the processes that are missing again, or one with world=1."
            )
        return [self.piece(at) for at in range(len(self.names))]

    def _path(self, at: int) -> Path:
        return self.folder / f"piece-{at:04d}.safetensors"
