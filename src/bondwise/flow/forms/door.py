"""The one door for data: whatever form it comes in, batches that a model takes.

=============================================  ===================================================
what comes                                     what a model is shown
=============================================  ===================================================
text: a path, a string, a list of strings      windows of tokens, drawn
a file of samples: .pt, .safetensors, .npy     the tensors in it, as below
chats: messages, a list or column of them      tokens by the tokenizer's template
rows: a list of dicts, a ``datasets.Dataset``  their tokens, padded and masked; or their text
lists of token ids, of any lengths             the same
a tensor or array, dimension 0 is samples      some samples at a time
batches: a list of them, a DataLoader          the batches
a generator of any of these                    the same, of as much as is needed, read once
=============================================  ===================================================
"""

from collections.abc import Iterable, Mapping, Sequence
from math import prod
from pathlib import Path
from typing import Any, SupportsIndex, cast

import numpy as np
import torch
from torch import Tensor

from bondwise.errors import DataError, whole_number
from bondwise.flow.data import IGNORED, SAMPLES, Batch, samples
from bondwise.flow.forms.chat import is_chat, is_message, rendered
from bondwise.flow.forms.rows import (
    GIVE,
    Row,
    collated,
    has_numbers,
    is_row,
    is_table,
    kind_of,
    plain,
    rows_of,
    text_column,
    text_of,
)
from bondwise.flow.forms.samples import is_samples, read_samples
from bondwise.flow.text import check_draw, read_text, windows

VECTORS = 2**16  # numbers that a model sees at once where samples are small: vectors, images
TEXTS = 4096  # rows of a data set that text is taken from, where a number of windows is asked
CHARACTERS = 8  # of a text that a token has at most, on the whole
ENDLESS = 4096  # samples of a generator where no number is asked
ENDLESS_BYTES = 2**30  # of a generator's tensors, whatever number is asked


def batches(
    data: Any,
    tokenizer: Any = None,
    *,
    count: SupportsIndex | None = 64,
    length: SupportsIndex = 256,
    seed: SupportsIndex = 0,
) -> list[Batch]:
    """Batches that a model takes.

    Args:
        data: in any of the forms above. A batch is a tensor, a mapping of keyword arguments, or a
            tuple whose first element is the input.
        tokenizer: a Hugging Face tokenizer, for text, chats and padding.
        count: windows of text, or as many as there are; also the rows that are drawn of a data set,
            and what is read of a generator. None for all.
        length: tokens of a window.
        seed: which windows, which rows.

    Raises:
        DataError: empty, of an unknown kind, mixed, ragged with no way to pad, text or chats
            without a tokenizer that can read them.

    >>> batches([{"input_ids": [5, 6, 7]}, {"input_ids": [8]}])[0]["attention_mask"]
    tensor([[1, 1, 1],
            [1, 0, 0]])
    """
    found = opened(data, tokenizer, count=count, length=length, seed=seed)
    if isinstance(found, Texts):
        return found.batches(tokenizer, count, length, seed)
    return found


class Texts(tuple[str, ...]):
    """Data that turned out to be text: documents, in their order."""

    __slots__ = ()

    def batches(
        self,
        tokenizer: Any,
        count: SupportsIndex | None = None,
        length: SupportsIndex = 256,
        seed: SupportsIndex = 0,
    ) -> list[Batch]:
        """Windows of them, drawn; None for all.

        Raises:
            DataError: fewer tokens than one window.
        """
        every = windows(tokenizer, self, None, whole_number("length", length), _seed(seed))
        return samples_of(every[: None if count is None else whole_number("windows", count)])

    @property
    def joined(self) -> str:
        """One text, a blank line between documents."""
        return "\n\n".join(self)


def opened(
    data: Any,
    tokenizer: Any = None,
    *,
    count: SupportsIndex | None = 64,
    length: SupportsIndex = 256,
    seed: SupportsIndex = 0,
    learning: bool = False,
) -> Texts | list[Batch]:
    """Data as `batches` has it, text still as text.

    Args:
        data: as `batches`.
        tokenizer: as `batches`.
        count: as `batches`.
        length: as `batches`; a longer chat is cut into pieces.
        seed: as `batches`.
        learning: chats get ``labels``, which count what the assistant said and nothing else; and
            rows come in at least eight batches where there are as many, so that some can be held
            out.

    Raises:
        DataError: as `batches`.
    """
    most = None if count is None else whole_number("windows", count)
    size = whole_number("length", length)
    check_draw(most, size)
    door = _Door(tokenizer, most, size, _seed(seed), learning)
    return door.open(data)


def samples_of(data: Tensor) -> list[Batch]:
    """Some samples of a tensor at a time.

    Raises:
        DataError: it has no samples, or each is one number.
    """
    shape = tuple(data.shape)
    if data.ndim < 2 or not len(data):
        raise DataError(
            f"A tensor of shape {shape} came as data; give (samples, ..), dimension 0 its samples, "
            "such as token ids (windows, length)."
        )
    many = max(SAMPLES, VECTORS // max(1, prod(shape[1:]))) if data.is_floating_point() else SAMPLES
    return list(data.split(many))


class _Door:
    """What is asked of the data, while it is looked at."""

    def __init__(
        self, tokenizer: Any, count: int | None, length: int, seed: int, learning: bool
    ) -> None:
        self.tokenizer, self.count, self.length = tokenizer, count, length
        self.seed, self.learning = seed, learning

    def open(self, data: Any) -> Texts | list[Batch]:
        """Data of any form."""
        data = read_samples(data) if is_samples(data) else plain(data)
        if isinstance(data, str | Path):
            self._check_tokenizer()
            return Texts((read_text(data),))
        if isinstance(data, Tensor):
            return samples_of(data)
        if isinstance(data, Mapping):
            return self._items([_one_of_splits(cast(Row, data))], "mapping")
        if not _can_be_read(data):
            raise DataError(f"Data of type {type(data).__name__} came; {GIVE}.")
        items = [plain(item) for item in self._read(data)]
        return self._items(items, type(data).__name__, is_table=is_table(data))

    def _read(self, data: Any) -> list[Any]:
        """All items; of a data set as many as are drawn, of what has no end as many as needed."""
        if isinstance(data, Sequence) and not is_table(data):
            return list(cast(Sequence[Any], data))
        try:
            size = len(data)
        except TypeError:
            return self._until_enough(data)
        if not is_table(data):
            return list(data)
        most = self.count
        if most is not None and size and text_column(data[0]) is not None:
            most = max(TEXTS, most)
        if most is None or size <= most:
            return [data[k] for k in range(size)]
        draw = torch.randperm(size, generator=torch.Generator().manual_seed(self.seed))
        return [data[k] for k in draw[:most].tolist()]

    def _until_enough(self, data: Iterable[Any]) -> list[Any]:
        found, seen, room = list[Any](), 0.0, ENDLESS_BYTES
        for item in data:
            found.append(item)
            first = plain(_first(item))  # of a pair the input is what counts
            seen += self._share(first)
            room -= first.numel() * first.element_size() if isinstance(first, Tensor) else 0
            if seen >= (ENDLESS if self.count is None else self.count) or room <= 0:
                break
        return found

    def _share(self, item: Any) -> float:
        """How many samples an item is."""
        if isinstance(item, Mapping):
            column = text_column(cast(Row, item))
            item = item if column is None else cast(Row, item)[column]
        if isinstance(item, str):
            return len(item) / (CHARACTERS * self.length)
        is_batch = isinstance(item, Tensor) and item.ndim > 1
        is_batch |= isinstance(item, Mapping) and not is_row(cast(Row, item))
        return float(samples(cast(Batch, item))) if is_batch else 1.0

    def _items(self, items: list[Any], came: str, is_table: bool = False) -> Texts | list[Batch]:
        """A list of things of one kind."""
        if not items:
            what = (
                "An empty list came as data, which holds no batch"
                if came == "list"
                else "The data held no batch"
            )
            raise DataError(f"{what}; give at least one batch or row.")
        if is_table:
            items = [_first(item) for item in items]
        if is_message(items[0]) and is_chat(items):
            return self._chats([items])
        kind = kind_of(items[0], is_table)
        other = next((item for item in items if kind_of(item, is_table) != kind), None)
        if kind is None or other is not None:
            raise _mixed(items[0], None if kind is None else other)
        return self._of_kind(kind, items)

    def _of_kind(self, kind: str, items: list[Any]) -> Texts | list[Batch]:
        if kind == "text":
            return self._texts(items)
        if kind == "texts":
            return self._texts([text for texts in items for text in texts])
        if kind == "chat":
            return self._chats(items)
        if kind == "tokens":
            return self._rows([{"input_ids": item} for item in items], bare=True)
        if kind == "sample":
            return samples_of(_stack("samples", [torch.as_tensor(item) for item in items]))
        if kind == "row":
            return self._rows(items)
        if kind == "columns":
            return self._rows([row for columns in items for row in rows_of(columns)])
        return [_batch(item) for item in items]

    def _texts(self, texts: Sequence[Any]) -> Texts:
        self._check_tokenizer()
        if not any(str(text).strip() for text in texts):
            raise DataError(f"{len(texts)} texts came, all empty; give some thousand words.")
        return Texts(read_text(t) if isinstance(t, Path) else t for t in texts)

    def _check_tokenizer(self) -> None:
        if self.tokenizer is None:
            raise DataError("Text came without a tokenizer; add tokenizer=.., or give token ids.")

    def _rows(self, rows: list[Row], bare: bool = False) -> list[Batch] | Texts:
        names = rows[0].keys()
        if any(row.keys() != names for row in rows):
            odd = next(row for row in rows if row.keys() != names)
            raise DataError(
                f"Rows with {', '.join(names)} and with {', '.join(odd)} came; "
                "give rows of the same columns."
            )
        if "input_ids" not in names and "messages" in names:
            return self._chats([row["messages"] for row in rows])
        column = None if has_numbers(rows[0]) else text_column(rows[0])
        if column is not None:
            return self._texts([text_of(row, column) for row in rows])
        return self._padded(rows, bare)

    def _chats(self, chats: Sequence[Any]) -> list[Batch]:
        """Chats as rows, in pieces that are no longer than a window."""
        rows = list[Row]()
        for chat in chats:
            if not is_chat(chat):
                raise DataError(
                    f"A chat of type {type(chat).__name__} came; give a list of messages, as in "
                    '[{"role": "user", "content": ".."}].'
                )
            ids, said = rendered(self.tokenizer, chat)
            for start in range(0, len(ids), self.length):
                some = slice(start, start + self.length)
                if len(ids[some]) > 1:
                    labels = [
                        t if s else IGNORED for t, s in zip(ids[some], said[some], strict=True)
                    ]
                    rows.append(
                        {"input_ids": ids[some]} | ({"labels": labels} if self.learning else {})
                    )
        if not rows:
            raise DataError("The chats hold no tokens; give chats with something said.")
        return self._padded(rows[: self.count])

    def _padded(self, rows: Sequence[Row], bare: bool = False) -> list[Batch]:
        """Rows of numbers as batches."""
        many = SAMPLES
        if self.learning:
            many = max(1, min(SAMPLES, len(rows) // SAMPLES))
        parts = [rows[k : k + many] for k in range(0, len(rows), many)]
        made = [collated(part, _pad_id(self.tokenizer)) for part in parts]
        if bare and all(batch.keys() == {"input_ids"} for batch in made):
            return [batch["input_ids"] for batch in made]
        return list(made)


def _can_be_read(data: Any) -> bool:
    return isinstance(data, Iterable) or is_table(data)


def _one_of_splits(data: Row) -> Row:
    splits = [name for name, value in data.items() if is_table(value)]
    splits = [n for n in splits if hasattr(data[n], "column_names")]
    if splits:
        raise DataError(
            f"A mapping of data sets came, {', '.join(splits)}; give one, as data['{splits[0]}']."
        )
    return data


def _stack(name: str, values: Sequence[Tensor]) -> Tensor:
    sizes = sorted({tuple(value.shape) for value in values})
    if len(sizes) > 1:
        raise DataError(
            f"Samples of the shapes {sizes[0]} and {sizes[-1]} came as {name}; give them one shape."
        )
    return torch.stack(list(values))


def _first(item: Any) -> Any:
    """Of a pair of input and target the input."""
    is_pair = isinstance(item, tuple) and item and isinstance(item[0], Tensor | np.ndarray)
    return plain(item[0]) if is_pair else item


def _batch(item: Any) -> Batch:
    """A batch with tensors in the place of arrays; of a tuple its first element."""
    item = plain(item)
    if isinstance(item, Mapping):
        return {name: plain(value) for name, value in cast(Row, item).items()}
    return item if isinstance(item, Tensor) else _batch(item[0])


def _mixed(one: Any, other: Any) -> DataError:
    """What to say of items that are not of one kind, or of no kind."""
    if other is None:
        return DataError(f"{_said(one)} came among the data; {GIVE}.")
    return DataError(
        f"{_said(one)} and {_said(other)} came in one list of data; give items of one kind."
    )


def _said(item: Any) -> str:
    if isinstance(item, Tensor):
        return f"A tensor of shape {tuple(item.shape)} and {item.dtype}"
    if isinstance(item, Mapping):
        return f"A mapping of {', '.join(map(str, cast(Row, item))) or 'nothing'}"
    return f"An item of type {type(item).__name__}"


def _pad_id(tokenizer: Any) -> int:
    """What stands in padding, which a mask hides: any token will do."""
    for name in ("pad_token_id", "eos_token_id"):
        found = getattr(tokenizer, name, None)
        if isinstance(found, int):
            return found
    return 0


def _seed(seed: SupportsIndex) -> int:
    return whole_number("seed", seed)
