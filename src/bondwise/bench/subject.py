"""The model that is measured: loaded, in memory of its own, and known to do what is asked."""

import gc
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from bondwise.bench.run import Load, vocabulary, writes
from bondwise.checkpoint.loading import load_model
from bondwise.errors import DataError
from bondwise.flow.text import fitting
from bondwise.train.allocator import give_back


@dataclass(frozen=True)
class Subject:
    """A model, where it came from, and how many token ids it knows."""

    path: str
    model: Any
    entries: int


def subject(path: str, load: Load, device: str, dtype: torch.dtype | None) -> Subject:
    """Load a model and check that it can do what is asked.

    Raises:
        DataError: it takes no token ids, or not so many.
        CheckpointError: it cannot be loaded.
    """
    model = owned(load_model(path, dtype, device).model)
    entries = vocabulary(model)
    if entries is None:
        raise DataError(
            f"{path} holds a {type(model).__name__}, which takes no token ids; give a language "
            "model or a text encoder"
        )
    needs = load.prompt + (load.tokens if writes(model) else 0)
    there = fitting(model, needs)
    if there < needs:
        raise DataError(
            f"A run of {needs} tokens came, prompt and written ones together, and {path} has "
            f"{there} positions; write a smaller --prompt or --tokens"
        )
    return Subject(path, model, entries)


def owned(model: nn.Module) -> nn.Module:
    """The model in memory of its own, the rest of loading given back.

    A weight that is read in the dtype it is stored in stays a window on its file, any other one is
    a copy, and the file stays mapped while one window is left. So of two models one would be
    faster, or larger, for how it was stored. On other devices than the processor there are none.
    """
    if next(model.parameters()).device.type != "cpu":
        return model
    model = deepcopy(model)
    gc.collect()
    give_back()
    return model
