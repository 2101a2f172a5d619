"""What a model is shown: text, a DataLoader, a list of batches or one tensor, as batches it takes."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from inspect import signature
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from bondwise.errors import DataError

Batch = Mapping[str, Any] | Tensor
SAMPLES = 8  # rows of a tensor, or windows of text, that the model sees at once


def read_text(source: str | Path) -> str:
    """The text of a file, or the string itself where it names no file.

    Raises:
        DataError: a path that cannot be read as UTF-8 text.
    """
    short = isinstance(source, Path) or ("\n" not in source and len(source) < 1000)
    if not short:
        return str(source)
    path = Path(source)
    looks_like_one = isinstance(source, Path) or bool(path.suffix) or "/" in source
    if not path.is_file():
        if looks_like_one and " " not in str(source):
            raise DataError(f"No file {str(source)!r}; write the path of a UTF-8 text file.")
        return str(source)
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path} cannot be read as text ({error}); write a UTF-8 file.") from error


def windows(tokenizer: Any, text: str, count: int, length: int, seed: int = 0) -> Tensor:
    """Fixed windows of a text, (count, length): cut end to end, then ``count`` of them drawn by seed.

    No token is added at the start. Where the text has fewer windows than asked, all are taken.

    Raises:
        DataError: the text is empty, or shorter than one window.
    """
    if not text.strip():
        raise DataError("The text came empty; give at least one window of words.")
    ids = tokenizer(text, add_special_tokens=False, return_attention_mask=False, verbose=False)
    tokens = torch.tensor(ids["input_ids"], dtype=torch.long)
    there = len(tokens) // length
    if there == 0:
        raise DataError(
            f"The text has {len(tokens)} tokens; one window takes {length}, and 64 of them calibrate well."
        )
    order = torch.randperm(there, generator=torch.Generator().manual_seed(seed))[:count]
    return tokens[: there * length].view(there, length)[order.sort().values]


def batches(
    data: Any, tokenizer: Any = None, *, count: int = 64, length: int = 256, seed: int = 0
) -> Sequence[Batch] | Iterable[Batch]:
    """Batches that a model takes.

    Args:
        data: a path or string (with a tokenizer), one tensor (dimension 0 is samples), a list of batches
            or a DataLoader; a batch is a tensor, a mapping of keyword arguments, or a tuple whose first
            element is the input.
        tokenizer: a Hugging Face tokenizer, for text.
        count: windows of text.
        length: tokens of a window.
        seed: which windows.

    Raises:
        DataError: empty, of an unknown kind, or text without a tokenizer.
    """
    if isinstance(data, str | Path):
        if tokenizer is None:
            raise DataError("Text came without a tokenizer; add tokenizer=.., or give token ids.")
        data = windows(tokenizer, read_text(data), count, length, seed)
    if isinstance(data, Tensor):
        if data.ndim == 0 or not len(data):
            raise DataError(
                f"A tensor of shape {tuple(data.shape)} came as data; its samples are dimension 0."
            )
        return list(data.split(SAMPLES))
    if isinstance(data, Mapping):
        return [cast(Batch, data)]
    if not isinstance(data, Iterable):
        raise DataError(
            f"Data of type {type(data).__name__} came; give text, a tensor, a list of batches or a DataLoader."
        )
    if isinstance(data, Sequence):
        if not data:
            raise DataError("An empty list came as data; give at least one batch.")
        return [_batch(item) for item in cast(Sequence[Any], data)]
    return _Batches(cast(Iterable[Any], data))


class _Batches:
    """The batches of a DataLoader, as often as it is asked."""

    def __init__(self, source: Iterable[Any]) -> None:
        self.source = source

    def __iter__(self) -> Iterator[Batch]:
        return (_batch(item) for item in self.source)

    def __len__(self) -> int:
        return len(self.source)  # pyright: ignore[reportArgumentType]


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


def feed(model: nn.Module, batch: Batch) -> None:
    """Run a model on one batch, on the device of its parameters; the result is not used."""
    device = next(model.parameters()).device
    if isinstance(batch, Tensor):
        model(batch.to(device))
        return
    takes = signature(model.forward).parameters
    anything = any(p.kind is p.VAR_KEYWORD for p in takes.values())
    known = {name: value for name, value in batch.items() if anything or name in takes}
    model(**{name: v.to(device) if isinstance(v, Tensor) else v for name, v in known.items()})
