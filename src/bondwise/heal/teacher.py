"""What the teacher says of each token, asked once and kept on disk.

A folder holds shards of `SHARD` windows each, named after the windows in them, and ``cache.json``,
which says what they were made of. A shard is written beside its place and renamed, so that what is
there is whole; a run that stopped goes on with the shards that lack, and several processes
(``RANK``, ``WORLD_SIZE``) share them.
"""

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from bondwise.errors import CheckpointError, DataError
from bondwise.flow.chains.blocks import Products
from bondwise.flow.data import evaluating, feed
from bondwise.flow.files import beside
from bondwise.flow.identity import digest, identity
from bondwise.heal.head import last_hidden, logits_head, vocabulary_size
from bondwise.heal.losses import CHUNK, Top, top
from bondwise.progress import Progress, silent
from bondwise.train.recipe import Mix

SHARD = 64  # windows in a file: 6 MB with 256 tokens each and the top 64
ABOUT = "cache.json"
SCHEMA = 2
MEND = "free some space, write a smaller top_k, or name another folder"


@dataclass(frozen=True)
class TeacherCache:
    """What a teacher said of some windows, read from a folder as it is asked for.

    Attributes:
        folder: where it is kept.
        count: windows.
        length: tokens of a window; of all but its first the teacher says something.
        k: tokens of which it says how probable they are.
        hidden: whether its last hidden state is kept too.
        temperature: at which it was asked.
    """

    folder: Path
    count: int
    length: int
    k: int
    temperature: float
    hidden: bool

    def of(self, rows: Sequence[int]) -> tuple[Top, Tensor | None]:
        """What it says of some windows, in this order, one row for each token but the first.

        Row ``(length - 1) n + t`` speaks of token ``t + 1`` of the n-th of them.

        Returns:
            The top, and the hidden states (tokens, width) in bfloat16, where they are kept.

        Raises:
            DataError: a window that is not there.
            CheckpointError: a file that cannot be read.
        """
        for row in rows:
            if not 0 <= row < self.count:
                raise DataError(f"Window {row} came; write one of 0 to {self.count - 1}.")
        names = ("ids", "logs", "hidden") if self.hidden else ("ids", "logs")
        found = [self._window(row, names) for row in rows]
        parts = [torch.cat(each) for each in zip(*found, strict=True)]
        return Top(parts[0], parts[1]), parts[2] if self.hidden else None

    def _window(self, row: int, names: Sequence[str]) -> list[Tensor]:
        start = row - row % SHARD
        path = self.folder / _name(start, min(start + SHARD, self.count))
        try:
            with safe_open(path, "pt") as shard:
                return [shard.get_slice(name)[row - start] for name in names]
        except (OSError, SafetensorError) as error:
            raise CheckpointError(
                f"{path} cannot be read ({_reason(error)}); remove it, and it is made again."
            ) from error


def cache_teacher(
    teacher: nn.Module,
    windows: Tensor,
    folder: str | Path,
    *,
    k: int = 64,
    temperature: float = 1.0,
    hidden: bool = False,
    batch: int = 8,
    progress: Progress = silent,
) -> TeacherCache:
    """What a teacher says of the next token, everywhere in some windows of text, kept in a folder.

    What is there of the same teacher, windows and settings is taken; of others it is replaced. A
    folder that holds anything but this is left alone.

    Args:
        teacher: a causal language model of transformers.
        windows: token ids (count, length).
        folder: where to keep it; its parents are made.
        k: tokens of which it says how probable they are, at most the vocabulary.
        temperature: what logits are divided by.
        hidden: keep its last hidden state too, in bfloat16.
        batch: windows at a time.
        progress: is told windows done and windows in all.

    Raises:
        DataError: windows that a teacher cannot read or that predict nothing; logits that are not
            finite; k or temperature out of range.
        CheckpointError: the folder holds something else, or cannot be written (a full disk).
    """
    _check(teacher, windows, k, temperature, batch)
    place, about = Path(folder).absolute(), _about(teacher, windows, k, temperature, hidden)
    _check_place(place)
    mark, asker = about["fingerprint"], _Asker(teacher, k, temperature, hidden)
    with beside(place / ABOUT, MEND) as path:
        path.write_text(json.dumps(about, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    (count, length), done = windows.shape, 0
    shards = [(start, min(start + SHARD, count)) for start in range(0, count, SHARD)]
    _tidy(place, {_name(*shard) for shard in shards}, mark)
    for start, stop in _in_turn(shards):
        if not _is_of(place / _name(start, stop), mark):
            found = asker.ask(windows[start:stop], batch)
            with beside(place / _name(start, stop), MEND) as path:
                save_file(found, path, {"fingerprint": mark})
        done += stop - start
        progress("teacher", done, count)
    return TeacherCache(place, count, length, k, temperature, hidden)


class _Asker:
    """A teacher that is asked about some windows at a time."""

    def __init__(self, teacher: nn.Module, k: int, temperature: float, hidden: bool) -> None:
        self.teacher, self.k, self.temperature, self.hidden = teacher, k, temperature, hidden
        self.parts: tuple[nn.Module, nn.Module] | None = None
        like = next(teacher.parameters())
        self.products = Products.of(like.device, like.dtype)

    @torch.no_grad()
    def ask(self, windows: Tensor, batch: int) -> dict[str, Tensor]:
        """The top of every token but the first, and the hidden state if it is kept."""
        with evaluating(self.teacher):
            found = self.products(lambda: self._each(windows, batch))
        return {name: torch.cat([each[name] for each in found]) for name in found[0]}

    def _each(self, windows: Tensor, batch: int) -> list[dict[str, Tensor]]:
        self.parts = self.parts or logits_head(self.teacher, windows[:1, :4])
        return [self._of(ids[:, :-1]) for ids in windows.split(batch)]

    def _of(self, ids: Tensor) -> dict[str, Tensor]:
        state, found = self._asked(ids)
        logs = torch.cat([each.logs for each in found])
        if not torch.isfinite(logs).all():
            raise DataError(
                f"{type(self.teacher).__name__} gives logits with NaN or infinity; "
                "check the teacher, or load it in float32."
            )
        kept = {"ids": torch.cat([each.ids for each in found]), "logs": logs.half()}
        if self.hidden:
            kept["hidden"] = state.bfloat16()
        shape = ids.shape
        return {n: t.unflatten(0, shape).cpu().contiguous() for n, t in kept.items()}

    def _asked(self, ids: Tensor) -> tuple[Tensor, list[Top]]:
        """The hidden state of each token, and the top of some tokens at a time."""
        if self.parts is not None:
            base, head = self.parts
            state = last_hidden(base, ids).flatten(0, 1)
            rows = (head(some) for some in state.split(CHUNK))
        elif self.hidden:
            output = feed(self.teacher, {"input_ids": ids, "output_hidden_states": True})
            state = output.hidden_states[-1].flatten(0, 1)
            rows = output.logits.flatten(0, 1).split(CHUNK)
        else:
            state = ids
            rows = feed(self.teacher, ids).logits.flatten(0, 1).split(CHUNK)
        return state, [top(some, self.k, self.temperature) for some in rows]


def _check(teacher: nn.Module, windows: Tensor, k: int, temperature: float, batch: int) -> None:
    if windows.ndim != 2 or windows.is_floating_point():
        raise DataError(
            f"Windows of shape {tuple(windows.shape)} and {windows.dtype} came; "
            "give token ids (count, length)."
        )
    count, length = windows.shape
    if count < 1 or length < 2 or batch < 1:
        raise DataError(
            f"{count} windows of {length} tokens came, {batch} at a time; "
            "give at least one window of two tokens, one at a time."
        )
    known = vocabulary_size(teacher)
    if known is not None and not 0 <= int(windows.min()) <= int(windows.max()) < known:
        raise DataError(
            f"Tokens {int(windows.min())} to {int(windows.max())} came for a teacher that knows "
            f"{known}; make the windows with its own tokenizer."
        )
    Mix(temperature)
    if not 1 <= k <= (known or k):
        raise DataError(f"top_k={k} came for a teacher that knows {known} tokens; write fewer.")


def _about(
    teacher: nn.Module, windows: Tensor, k: int, temperature: float, hidden: bool
) -> dict[str, Any]:
    """What the kept numbers are made of, as JSON; all of it in one fingerprint."""
    settings = {"schema": SCHEMA, "k": k, "temperature": temperature, "hidden": hidden}
    settings |= {"windows": list(windows.shape), "shard": SHARD}
    made_of = identity(settings, teacher=teacher, data=windows)
    return made_of | {"fingerprint": digest(made_of)}


def _in_turn(shards: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    """The shards of this process first; it then makes what others have not made yet."""
    rank, world = _process()
    return [shard for turn in range(world) for shard in shards[(rank + turn) % world :: world]]


def _process() -> tuple[int, int]:
    """Which process this is, and of how many, as torchrun says."""
    return int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))


def _name(start: int, stop: int) -> str:
    return f"windows-{start:07d}-{stop:07d}.safetensors"


def _check_place(place: Path) -> None:
    """Refuse a folder that holds something else."""
    if not place.exists():
        return
    if not place.is_dir():
        raise CheckpointError(f"{place} is no folder; name another place for what a teacher says.")
    ours = ("windows-", ".windows-", ABOUT, f".{ABOUT}")
    others = sorted(path.name for path in place.iterdir() if not path.name.startswith(ours))
    if others:
        raise CheckpointError(
            f"{place} holds {others[0]}, which no teacher said; name another folder."
        )


def _tidy(place: Path, wanted: set[str], mark: str) -> None:
    """Remove what was said of other windows or by another teacher, and what was never whole."""
    for path in place.glob("windows-*.safetensors"):
        if path.name not in wanted or not _is_of(path, mark):
            path.unlink(missing_ok=True)
    if _process()[1] == 1:  # others may be writing
        for path in place.glob(".*-*"):
            path.unlink(missing_ok=True)


def _is_of(path: Path, mark: str) -> bool:
    """Whether a file is whole and made of what the mark stands for."""
    try:
        with safe_open(path, "pt") as shard:
            return (shard.metadata() or {}).get("fingerprint") == mark
    except (OSError, SafetensorError):
        return False


def _reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error)
