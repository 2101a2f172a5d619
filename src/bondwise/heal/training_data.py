"""What is trained on, and what is held out: never the same text."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from bondwise.errors import DataError
from bondwise.flow.data import Batch, batches
from bondwise.flow.text import fitting, read_text, windows
from bondwise.train.recipe import Healing

SHARE = 5  # at most one of so many windows is held out
BORDERS = ("\n\n", "\n", " ")  # between documents, or lines, or words


@dataclass(frozen=True)
class TrainingData:
    """Batches to train on, and batches to judge on.

    Attributes:
        shown: one tensor of samples, or batches of keyword arguments.
        held: the same, never trained on; empty where there is too little to hold any out.
        notes: what was done that was not asked for.
    """

    shown: Tensor | Sequence[Batch]
    held: Tensor | Sequence[Batch]
    notes: tuple[str, ...] = ()


def training_data(
    model: nn.Module, data: Any, tokenizer: Any, recipe: Healing, validation: Any = None
) -> TrainingData:
    """What a healing needs of some data.

    Of a text, the end is held out, from the last border between documents before it; of samples and
    batches the last ones. The windows of a text come in a drawn order.

    Args:
        model: whose positions bound the length of a window.
        data: as `bondwise.flow.data.batches` takes it.
        tokenizer: for text.
        recipe: how many windows, how long, and how many are held out.
        validation: other data to judge on, of the same kind.

    Raises:
        DataError: data that cannot be used, or shorter than one window.
    """
    notes: tuple[str, ...] = ()
    _check(data, tokenizer)
    _check(validation, tokenizer)
    if isinstance(data, str | Path):
        text, end = read_text(data), ""
        length = fitting(model, recipe.length)
        if validation is None:
            text, end = _split(tokenizer, text, length, recipe)
        shown = windows(tokenizer, text, None, length, recipe.seed)[: recipe.windows]
        held = windows(tokenizer, end, None, length, 0) if end else shown[:0]
    else:
        shown = _together(list(batches(data, tokenizer)))
        shown, held = _last(shown, recipe) if validation is None else (shown, shown[:0])
        shown = shown[: recipe.windows]
        if isinstance(shown, Tensor):
            draw = torch.Generator().manual_seed(recipe.seed)
            shown = shown[torch.randperm(len(shown), generator=draw)]
    if validation is not None:
        held = _judged(model, validation, tokenizer, recipe)
    if not len(held):
        why = "too little data came to hold any out" if recipe.validate else "nothing is held out"
        notes = (f"{why}: the last weights are kept, not the best",)
    held = held[: recipe.validate] if isinstance(held, Tensor) else held
    return TrainingData(shown, held, notes)


def _check(given: Any, tokenizer: Any) -> None:
    if isinstance(given, str | Path) and tokenizer is None:
        raise DataError("Text came without a tokenizer; add tokenizer=.., or give token ids.")
    if isinstance(given, Tensor) and given.ndim < 2:
        raise DataError(
            f"A tensor of shape {tuple(given.shape)} came as data; give (samples, ..), "
            "such as token ids (windows, length)."
        )


def as_windows(shown: Tensor | Sequence[Batch], length: int) -> Tensor:
    """Token ids as windows of one length: rows as they are, or all tokens of batches in a row.

    Raises:
        DataError: fewer tokens than one window.
    """
    if isinstance(shown, Tensor):
        return shown
    rows = [row for batch in shown for row in _rows(batch)]
    if rows and len({len(row) for row in rows}) == 1:
        return torch.stack(rows)
    ids = torch.cat(rows) if rows else torch.zeros(0, dtype=torch.long)
    if len(ids) < length:
        raise DataError(
            f"The data has {len(ids)} tokens, but a window needs {length}; "
            "give more text, or write a shorter length."
        )
    return ids[: len(ids) // length * length].view(-1, length)


def token_ids(found: TrainingData) -> Tensor | None:
    """Some token ids, where the data has any."""
    shown: Any = found.shown if isinstance(found.shown, Tensor) else found.shown[0]
    ids = shown if isinstance(shown, Tensor) else shown.get("input_ids")
    if not isinstance(ids, Tensor) or ids.is_floating_point() or ids.ndim != 2:
        return None
    return ids if ids.shape[1] > 1 else None


def _rows(batch: Batch) -> list[Tensor]:
    """The tokens of each sample, without padding."""
    if isinstance(batch, Tensor):
        return list(batch)
    ids, mask = batch.get("input_ids"), batch.get("attention_mask")
    if not isinstance(ids, Tensor):
        raise DataError(f"A batch of {', '.join(batch)} came; language models need input_ids.")
    if not isinstance(mask, Tensor):
        return list(ids)
    return [row[keep.bool()] for row, keep in zip(ids, mask, strict=True)]


def _split(tokenizer: Any, text: str, length: int, recipe: Healing) -> tuple[str, str]:
    """A text, and its end that is held out, in whole documents where there are some."""
    there = len(windows(tokenizer, text, None, length))
    held = min(recipe.validate, there // SHARE)
    share = (held + 0.5) / there
    while held and share <= 0.5:  # an end of blank lines or of long words holds few tokens
        shown, end = _cut(text, share)
        if _holds(tokenizer, shown, length) and _holds(tokenizer, end, length):
            return shown, end
        share *= 1.5
    return text, ""


def _cut(text: str, share: float) -> tuple[str, str]:
    """A share of a text off its end, more where a border between documents is near."""
    place = len(text) - int(len(text) * share)
    for border in BORDERS:
        at = text.rfind(border, 0, place)
        if at > 0 and len(text) - at < 2 * share * len(text):
            return text[:at], text[at + len(border) :]
    return text[:place], text[place:]


def _holds(tokenizer: Any, text: str, length: int) -> bool:
    """Whether a text holds a window."""
    try:
        return len(windows(tokenizer, text, None, length)) > 0
    except DataError:
        return False


def _together(shown: list[Batch]) -> Tensor | list[Batch]:
    """Batches as one tensor of samples, where they are tensors of one shape."""
    tensors = [batch for batch in shown if isinstance(batch, Tensor)]
    one = len(tensors) == len(shown) and len({(t.shape[1:], t.dtype) for t in tensors}) == 1
    return torch.cat(tensors) if one else shown


def _last(
    shown: Tensor | list[Batch], recipe: Healing
) -> tuple[Tensor | list[Batch], Tensor | list[Batch]]:
    """What is trained on, and the last ones; of batches one in eight."""
    count = len(shown)
    if isinstance(shown, Tensor):
        held = min(recipe.validate, count // SHARE)
    else:
        held = count // 8 or int(count > 2)
    cut = count - held if recipe.validate else count
    return shown[:cut], shown[cut:]


def _judged(
    model: nn.Module, validation: Any, tokenizer: Any, recipe: Healing
) -> Tensor | list[Batch]:
    if isinstance(validation, str | Path):
        length = fitting(model, recipe.length)
        return windows(tokenizer, read_text(validation), None, length, 0)
    return _together(list(batches(validation, tokenizer)))
