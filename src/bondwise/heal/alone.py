"""Layers that are healed one at a time: what enters each in the teacher, and what it gives."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from bondwise.flow.blocks import Stream, precision
from bondwise.flow.boundaries import Lesson, check_finite
from bondwise.flow.data import Batch, feed, tokens
from bondwise.flow.files import read, write
from bondwise.flow.slices import Slice

TOGETHER = 16  # layers that are watched in one pass of the teacher


class Alone:
    """What enters some layers of a teacher, wherever in it they are, and what they give.

    The teacher runs once for every `TOGETHER` layers; their inputs are kept in one file per batch.

    Args:
        teacher: the dense model.
        parts: one layer each.
        batches: what it is shown.
        folder: where the files are.
        name: what their names begin with.
        held_out: batches that are only measured.
    """

    def __init__(
        self,
        teacher: nn.Module,
        parts: Sequence[Slice],
        batches: Sequence[Batch],
        folder: Path,
        name: str,
        held_out: Sequence[int],
    ) -> None:
        self.teacher, self.parts, self.batches = teacher, parts, batches
        self.folder, self.name, self.held_out = folder, name, held_out

    def begin(self) -> None:
        """Nothing is made before it is asked for."""

    def lesson(self, at: int) -> Lesson | None:
        """What a layer is trained on, tokens in a row; None where no token reaches it.

        Raises:
            DataError: the dense layer gives NaN or infinity.
            CheckpointError: a file cannot be written or read.
        """
        name, group = self.parts[at].name, at // TOGETHER
        self._fill(group)
        device = next(self.teacher.parameters()).device
        kept = {k: read(self._path(group, k)).get(name) for k in range(len(self.batches))}
        reached = {k: x.to(device) for k, x in kept.items() if x is not None and len(x)}
        if not reached:
            return None
        found = tuple(reached.values())
        stream = Stream(found, (((), {}),) * len(found), (None,) * len(found))
        wanted = stream.after(self.teacher.get_submodule(name)).hidden
        check_finite(self.teacher, name, wanted)
        measured = tuple(at for at, k in enumerate(reached) if k in self.held_out)
        whole = replace(stream, calls=(((((), {}),), {}),) * len(found))
        return Lesson(whole, wanted, measured)

    def forget(self, before: int) -> None:
        """Remove the files of the layers before one."""
        for group in range(before // TOGETHER):
            for k in range(len(self.batches)):
                self._path(group, k).unlink(missing_ok=True)

    def clear(self) -> None:
        """Remove all files."""
        for path in self.folder.glob(f"{self.name}-*.safetensors"):
            path.unlink(missing_ok=True)

    def _fill(self, group: int) -> None:
        names = [p.name for p in self.parts[group * TOGETHER : (group + 1) * TOGETHER]]
        for k, batch in enumerate(self.batches):
            if not self._path(group, k).exists():
                write(self._path(group, k), _inputs(self.teacher, names, batch))

    def _path(self, group: int, batch: int) -> Path:
        return self.folder / f"{self.name}-{group:03d}-{batch:04d}.safetensors"


def _inputs(model: nn.Module, names: Sequence[str], batch: Batch) -> dict[str, Tensor]:
    """What enters some layers with one batch, one row per token; padding is left out."""
    seen: dict[str, list[Tensor]] = {}

    def watch(name: str) -> Callable[[nn.Module, tuple[Any, ...]], None]:
        def see(_module: nn.Module, args: tuple[Any, ...]) -> None:
            x: Tensor = args[0]
            mask = tokens(batch, x)
            rows = x.flatten(0, -2) if mask is None else x[mask]
            seen.setdefault(name, []).append(rows.detach().clone())

        return see

    handles = [model.get_submodule(name).register_forward_pre_hook(watch(name)) for name in names]
    like = next(model.parameters())
    try:
        with torch.no_grad(), precision(like.device, like.dtype):
            feed(model, batch)
    finally:
        for handle in handles:
            handle.remove()
    return {name: torch.cat(found) for name, found in seen.items()}
