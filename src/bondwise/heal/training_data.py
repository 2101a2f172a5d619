"""What is trained on, and what is held out: never the same text."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from bondwise.errors import DataError
from bondwise.flow.data import IGNORED, Batch
from bondwise.flow.forms.door import Texts, opened
from bondwise.flow.padding import masks
from bondwise.flow.text import fitting, windows
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
        told: of windows of tokens those that count in the loss, (windows, length); None for all.
        told_held: the same of what is held out.
    """

    shown: Tensor | Sequence[Batch]
    held: Tensor | Sequence[Batch]
    notes: tuple[str, ...] = ()
    told: Tensor | None = None
    told_held: Tensor | None = None


def training_data(
    model: nn.Module, data: Any, tokenizer: Any, recipe: Healing, validation: Any = None
) -> TrainingData:
    """What a healing needs of some data.

    Of a text, the end is held out, from the last border between documents before it; of samples and
    batches the last ones. The windows of a text come in a drawn order.

    Args:
        model: whose positions bound the length of a window.
        data: as `bondwise.flow.forms.door` has it.
        tokenizer: for text, chats and padding.
        recipe: how many windows, how long, and how many are held out.
        validation: other data to judge on, of the same kind.

    Raises:
        DataError: data that cannot be used, or shorter than one window.
    """
    notes: tuple[str, ...] = ()
    length = fitting(model, recipe.length)
    given = _opened(model, data, tokenizer, recipe)
    judged = None if validation is None else _judged(model, validation, tokenizer, recipe)
    if isinstance(given, Texts):
        text, end = given.joined, ""
        if judged is None:
            text, end = _split(tokenizer, text, length, recipe)
        shown = windows(tokenizer, text, None, length, recipe.seed)[: recipe.windows]
        held = windows(tokenizer, end, None, length, 0) if end else shown[:0]
    else:
        shown = _together(given)
        shown, held = _last(shown, recipe) if judged is None else (shown, shown[:0])
        shown = shown[: recipe.windows]
        if isinstance(shown, Tensor):
            draw = torch.Generator().manual_seed(recipe.seed)
            shown = shown[torch.randperm(len(shown), generator=draw)]
    held = held if judged is None else judged
    if not len(held):
        why = "too little data came to hold any out" if recipe.validate else "nothing is held out"
        notes = (f"{why}: the last weights are kept, not the best",)
    held = held[: recipe.validate] if isinstance(held, Tensor) else held
    return TrainingData(shown, held, notes)


def _opened(model: nn.Module, data: Any, tokenizer: Any, recipe: Healing) -> Texts | list[Batch]:
    return opened(
        data,
        tokenizer,
        count=recipe.windows,
        length=fitting(model, recipe.length),
        seed=recipe.seed,
        learning=True,
    )


def as_windows(shown: Tensor | Sequence[Batch], length: int) -> Tensor:
    """Token ids as windows of one length: rows as they are, or all tokens of batches in a row.

    Raises:
        DataError: fewer tokens than one window.
    """
    if isinstance(shown, Tensor):
        return shown
    rows = [row for batch in shown for row, _ in _rows(batch)]
    if rows and len({len(row) for row in rows}) == 1:
        return torch.stack(rows)
    ids = torch.cat(rows) if rows else torch.zeros(0, dtype=torch.long)
    if len(ids) < length:
        raise DataError(
            f"The data has {len(ids)} tokens, but a window needs {length}; "
            "give more text, or write a shorter length."
        )
    return ids[: len(ids) // length * length].view(-1, length)


def told_windows(shown: Tensor | Sequence[Batch], length: int) -> tuple[Tensor, Tensor | None]:
    """Windows as `as_windows` has them, and which of their tokens count; None where all do.

    Where labels leave tokens out (-100), a row is a window of its own, or several; what lacks
    behind its end is filled with zeros, which do not count: nothing that a causal model says
    depends on what follows. Windows in which nothing counts are left out.

    Raises:
        DataError: no token counts.
    """
    rows = [] if isinstance(shown, Tensor) else [row for batch in shown for row in _rows(batch)]
    if all(bool(told.all()) for _, told in rows):
        return as_windows(shown, length), None
    pieces = [
        piece
        for row in rows
        for piece in zip(*(part.split(length) for part in row), strict=True)
        if bool(piece[1][1:].any())
    ]
    if not pieces:
        raise DataError("No token of the data counts in the loss; give labels that are not -100.")
    ids, told = (pad_sequence(list(parts), batch_first=True) for parts in zip(*pieces, strict=True))
    return ids, told


def token_ids(found: TrainingData) -> Tensor | None:
    """Some token ids, where the data has any."""
    shown: Any = found.shown if isinstance(found.shown, Tensor) else found.shown[0]
    ids = shown if isinstance(shown, Tensor) else shown.get("input_ids")
    if not isinstance(ids, Tensor) or ids.is_floating_point() or ids.ndim != 2:
        return None
    return ids if ids.shape[1] > 1 else None


def _rows(batch: Batch) -> list[tuple[Tensor, Tensor]]:
    """The tokens of each sample, without padding, and which of them count."""
    if isinstance(batch, Tensor):
        return [(row, torch.ones_like(row, dtype=torch.bool)) for row in batch]
    ids, labels = batch.get("input_ids"), batch.get("labels")
    if not isinstance(ids, Tensor):
        raise DataError(f"A batch of {', '.join(batch)} came; language models need input_ids.")
    real = next(iter(masks(batch)), torch.ones_like(ids, dtype=torch.bool))
    told = torch.ones_like(ids, dtype=torch.bool)
    if isinstance(labels, Tensor) and labels.shape == ids.shape:
        told = labels.ne(IGNORED)
    return [(row[keep], t[keep]) for row, keep, t in zip(ids, real, told, strict=True)]


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
    found = _opened(model, validation, tokenizer, replace(recipe, windows=None))
    if isinstance(found, Texts):
        return windows(tokenizer, found.joined, None, fitting(model, recipe.length), 0)
    return _together(found)
