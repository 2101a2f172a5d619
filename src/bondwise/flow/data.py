"""What a model is shown: text, a DataLoader, a list of batches or one tensor, as batches."""

from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from inspect import signature
from operator import length_hint
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from bondwise.errors import DataError
from bondwise.flow.text import check_draw, read_text, windows

Batch = Mapping[str, Any] | Tensor
SAMPLES = 8  # rows of a tensor, or windows of text, that the model sees at once
VECTORS = 2**16  # numbers that it sees at once where samples are plain vectors


def batches(
    data: Any, tokenizer: Any = None, *, count: int = 64, length: int = 256, seed: int = 0
) -> Sequence[Batch] | Iterable[Batch]:
    """Batches that a model takes.

    Args:
        data: a path or string (with a tokenizer), one tensor (dimension 0 is samples), a list of
            batches or a DataLoader; a batch is a tensor, a mapping of keyword arguments, or a tuple
            whose first element is the input.
        tokenizer: a Hugging Face tokenizer, for text.
        count: windows of text, or as many as there are.
        length: tokens of a window.
        seed: which windows.

    Raises:
        DataError: empty, of an unknown kind, or text without a tokenizer.
    """
    if isinstance(data, str | Path):
        if tokenizer is None:
            raise DataError("Text came without a tokenizer; add tokenizer=.., or give token ids.")
        check_draw(count, length)
        data = windows(tokenizer, read_text(data), None, length, seed)[:count]
    if isinstance(data, Tensor):
        return _samples(data)
    if isinstance(data, Mapping):
        return [cast(Batch, data)]
    if isinstance(data, Sequence):
        return _listed(cast(Sequence[Any], data))
    if isinstance(data, Iterable):
        return _Batches(cast(Iterable[Any], data))
    raise DataError(
        f"Data of type {type(data).__name__} came; "
        "give text, a tensor, a list of batches or a DataLoader."
    )


def _samples(data: Tensor) -> list[Tensor]:
    if data.ndim == 0 or not len(data):
        raise DataError(
            f"A tensor of shape {tuple(data.shape)} came as data; its samples are dimension 0."
        )
    if is_vectors(data):
        return list(data.split(max(SAMPLES, VECTORS // max(1, data.shape[1]))))
    return list(data.split(SAMPLES))


def is_vectors(batch: Batch) -> bool:
    """Whether each sample is one vector, and not a sequence of tokens."""
    return isinstance(batch, Tensor) and batch.ndim == 2 and batch.is_floating_point()


def samples(batch: Batch) -> int:
    """How many samples a batch has; 1 where its tensors do not agree."""
    sizes = {len(t) if t.ndim else 1 for t in _tensors(batch)}
    return sizes.pop() if len(sizes) == 1 else 1


def part(batch: Batch, start: int, stop: int) -> Batch:
    """Some samples of a batch."""
    if isinstance(batch, Tensor):
        return batch[start:stop]
    rows = {n: v for n, v in batch.items() if isinstance(v, Tensor) and v.ndim}
    return {**batch} | {n: v[start:stop] for n, v in rows.items()}


def fitted_on(count: int, held_out: Iterable[int]) -> list[int]:
    """Which of so many batches are fitted on: those that are not held out.

    >>> fitted_on(4, [2])
    [0, 1, 3]
    """
    return sorted(set(range(count)) - set(held_out))


def _tensors(batch: Batch) -> list[Tensor]:
    given = [batch] if isinstance(batch, Tensor) else batch.values()
    return [value for value in given if isinstance(value, Tensor)]


def _listed(data: Sequence[Any]) -> list[Batch]:
    if not data:
        raise DataError("An empty list came as data; give at least one batch.")
    return [_batch(item) for item in data]


class _Batches:
    """The batches of a DataLoader, as often as it is asked."""

    def __init__(self, source: Iterable[Any]) -> None:
        self.source = source

    def __iter__(self) -> Iterator[Batch]:
        item = None
        for item in self.source:
            yield _batch(item)
        if item is None:
            raise DataError("The data held no batch; give at least one.")

    def __length_hint__(self) -> int:
        return length_hint(self.source)


def _batch(item: Any) -> Batch:
    if isinstance(item, Mapping):
        return cast(Batch, item)
    if isinstance(item, Tensor):
        return item
    if isinstance(item, Sequence) and item:
        return _batch(cast(Sequence[Any], item)[0])
    raise DataError(
        f"A batch of type {type(item).__name__} came; give a tensor, a mapping or a tuple."
    )


@contextmanager
def evaluating(model: nn.Module) -> Generator[None]:
    """The model as it is used, without dropout, for a while; every module then is as it was."""
    training = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, was in training.items():
            module.training = was


def feed(model: nn.Module, batch: Batch) -> Any:
    """What a model gives for one batch, on the device and in the dtype of its parameters.

    Raises:
        DataError: tokens or positions that the model lacks.
    """
    try:
        return _run(model, batch)
    except IndexError as error:
        raise DataError(
            f"{type(model).__name__} cannot read the data ({error}): it has tokens or positions "
            "that the model lacks; use the model's own tokenizer, or shorter windows."
        ) from error


def _run(model: nn.Module, batch: Batch) -> Any:
    kinds = {p.dtype for p in model.parameters() if p.is_floating_point()}
    device, kind = next(model.parameters()).device, kinds.pop() if len(kinds) == 1 else None
    if isinstance(batch, Tensor):
        return model(_placed(batch, device, kind))
    takes = signature(model.forward).parameters
    anything = any(p.kind is p.VAR_KEYWORD for p in takes.values())
    known = {name: value for name, value in batch.items() if anything or name in takes}
    placed = {n: _placed(v, device, kind) for n, v in known.items()}
    return model(**placed)


def _placed(value: Any, device: torch.device, kind: torch.dtype | None) -> Any:
    """A tensor where a model is, one with fractions in the dtype that all of the model has."""
    if not isinstance(value, Tensor):
        return value
    return value.to(device, kind if value.is_floating_point() else None)
