"""What an item of data is, a text, a chat, a row or a batch; and rows put together as a batch."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from bondwise.errors import DataError
from bondwise.flow.data import IGNORED
from bondwise.flow.forms.chat import is_chat

AXES = {  # of one sample; one more, and it is a batch
    "input_ids": 1, "attention_mask": 1, "token_type_ids": 1, "position_ids": 1,
    "decoder_input_ids": 1, "decoder_attention_mask": 1, "input_values": 1,
    "input_features": 2, "inputs_embeds": 2, "pixel_values": 3,
}  # fmt: skip
MAIN = ("input_ids", "inputs_embeds", "input_features", "input_values")

GIVE = "give text, a tensor, rows or batches of tensors, or a DataLoader"

Row = Mapping[str, Any]


def plain(data: Any) -> Any:
    """Arrays as tensors, tables of pandas and polars as rows; all else as it is."""
    if isinstance(data, np.ndarray):
        if data.dtype.kind in "OUS":
            return data.tolist()
        return torch.as_tensor(data)
    if hasattr(data, "to_dicts"):
        return data.to_dicts()
    if hasattr(data, "to_dict") and hasattr(data, "columns"):
        return data.to_dict("records")
    return data


def is_table(data: Any) -> bool:
    """Whether data is a data set, whose items are samples: of datasets, or of torch."""
    if isinstance(data, list | tuple | Mapping | Tensor):
        return False
    of_torch = hasattr(data, "__getitem__") and hasattr(data, "__len__")
    return hasattr(data, "column_names") or (of_torch and not isinstance(data, Sequence))


def kind_of(item: Any, is_table: bool) -> str | None:
    """What an item is; None where it is nothing that a model could be shown."""
    item = plain(item)
    if isinstance(item, str | Path):
        return "text"
    if isinstance(item, Mapping):
        return _kind_of_mapping(cast(Row, item), is_table)
    if isinstance(item, Tensor):
        return _kind_of_tensor(item, is_table)
    if isinstance(item, Sequence) and item:
        return _kind_of_list(cast(Sequence[Any], item), is_table)
    return None


def _kind_of_mapping(item: Row, is_table: bool) -> str | None:
    if not item:
        return None
    if is_table or is_row(item):
        return "row"
    tensors = any(isinstance(value, Tensor | np.ndarray) for value in item.values())
    lists = any(isinstance(value, list | tuple) for value in item.values())
    return "columns" if lists and not tensors else "batch"


def _kind_of_tensor(item: Tensor, is_table: bool) -> str | None:
    if item.ndim == 1 and not item.is_floating_point():
        return "tokens"
    if item.ndim == 1 or (is_table and item.ndim):
        return "sample"
    return "batch" if item.ndim > 1 else None


def _kind_of_list(item: Sequence[Any], is_table: bool) -> str | None:
    if is_chat(item):
        return "chat"
    if all(isinstance(value, str) for value in item):
        return "texts"
    if all(_is_number(value) for value in item):
        whole = all(isinstance(value, int | np.integer) for value in item)
        return "tokens" if whole else "sample"
    if isinstance(item[0], Tensor | np.ndarray):  # an input and its target
        return "batch"
    return "batch" if kind_of(item[0], is_table) in ("batch", "columns") else None


def collated(rows: Sequence[Row], pad: int = 0) -> dict[str, Tensor]:
    """Rows as one batch: token columns padded where they differ in length, and then masked.

    Columns that hold no numbers are left out. Labels are padded with -100, which no loss counts.

    Args:
        rows: of lists, arrays or tensors, or of single numbers.
        pad: the token id that stands in padding.

    Raises:
        DataError: columns that differ in length and are no tokens, or nothing but words.

    >>> collated([{"input_ids": [1, 2], "name": "a"}, {"input_ids": [3], "name": "b"}], pad=9)
    {'input_ids': tensor([[1, 2],
            [3, 9]]), 'attention_mask': tensor([[1, 1],
            [1, 0]])}
    """
    columns: dict[str, list[Tensor]] = {}
    for name, value in rows[0].items():
        if _is_numeric(value):
            columns[name] = [_numbers(name, row[name]) for row in rows]
    if not columns:
        raise DataError(
            f"Rows with the columns {', '.join(rows[0])} came, none of numbers or text that a "
            f"model could be shown; {GIVE}."
        )
    _check_masks(columns)
    found: dict[str, Tensor] = {}
    for name, values in columns.items():
        sizes = {tuple(value.shape) for value in values}
        if len(sizes) == 1:
            found[name] = torch.stack(values)
            continue
        fill = pad if name.endswith("input_ids") else IGNORED if name == "labels" else 0
        found[name] = _filled(name, values, fill)
        mask = _mask_name(name)
        if mask is not None and mask not in columns:
            ones = [torch.ones(len(value), dtype=torch.long) for value in values]
            found[mask] = _filled(mask, ones, 0)
    return found


def _check_masks(columns: Mapping[str, Sequence[Tensor]]) -> None:
    """Refuse a mask, or labels, of another length than the tokens that they are of."""
    for main in MAIN:
        for name in (_mask_name(main), "labels" if main == "input_ids" else None):
            for own, ids in zip(columns.get(name or "", ()), columns.get(main, ()), strict=False):
                if own.ndim and ids.ndim and name != "labels" and len(own) != len(ids):
                    raise DataError(
                        f"A row of {len(ids)} {main} came with an {name} of {len(own)}; give one "
                        "number of the mask for each token."
                    )


def _mask_name(name: str) -> str | None:
    """The mask that says where a column is padded; None where another column's does."""
    if name == "decoder_input_ids":
        return "decoder_attention_mask"
    return "attention_mask" if name in MAIN else None


def _filled(name: str, values: Sequence[Tensor], fill: int) -> Tensor:
    ragged = {tuple(value.shape[1:]) for value in values}
    if len(ragged) > 1 or any(not v.ndim for v in values) or not _may_be_padded(name):
        one, two = values[0], next(v for v in values if v.shape != values[0].shape)
        raise DataError(
            f"Rows of the shapes {tuple(one.shape)} and {tuple(two.shape)} came in the column "
            f"{name}; pad them, or name token ids input_ids."
        )
    longest = max(len(value) for value in values)
    dtype = torch.promote_types(values[0].dtype, values[-1].dtype)
    found = torch.full((len(values), longest, *values[0].shape[1:]), fill, dtype=dtype)
    for row, value in zip(found, values, strict=True):
        row[: len(value)] = value
    return found


def _may_be_padded(name: str) -> bool:
    return name in AXES or name == "labels" or name.endswith(("_ids", "_mask"))


def is_row(item: Row) -> bool:
    """Whether a mapping is one sample and not a batch of them."""
    known = [_axes(value) == AXES[name] for name, value in item.items() if name in AXES]
    if known:
        return all(known)
    if "messages" in item:
        return is_chat(item["messages"])
    if any(isinstance(value, str) for value in item.values()):
        return True
    return not any(isinstance(v, Tensor | np.ndarray) or _axes(v) > 1 for v in item.values()) and (
        not any(_axes(value) == 1 and isinstance(value[0], str) for value in item.values())
    )


def _axes(value: Any) -> int:
    """How deep a value is nested."""
    if isinstance(value, Tensor | np.ndarray):
        return value.ndim
    if isinstance(value, list | tuple):
        own = cast(Sequence[Any], value)
        return 1 + (_axes(own[0]) if own else 0)
    return 0


def rows_of(columns: Row) -> list[Row]:
    """A mapping of columns as rows."""
    sizes = {name: len(value) for name, value in columns.items() if hasattr(value, "__len__")}
    if len(set(sizes.values())) != 1:
        said = ", ".join(f"{name} {size}" for name, size in sizes.items())
        raise DataError(f"Columns of different lengths came ({said}); give one value for each row.")
    many = next(iter(sizes.values()))
    return [{name: columns[name][k] for name in sizes} for k in range(many)]


def text_column(row: Any) -> str | None:
    """The column of text: the one that is called so, or the only one of strings.

    Raises:
        DataError: the one that is called so holds something else, or there are several.
    """
    if not isinstance(row, Mapping):
        return None
    own = cast(Row, row)
    if "text" in own:
        text_of(own, "text")
        return "text"
    found = [name for name, value in own.items() if isinstance(value, str)]
    if len(found) > 1 and not has_numbers(own) and "messages" not in own:
        raise DataError(
            f"Rows with the text columns {', '.join(found)} came; give one of them, as "
            f"data['{found[0]}'], or name it text."
        )
    return found[0] if len(found) == 1 else None


def text_of(row: Row, column: str) -> str:
    """The text of a row.

    Raises:
        DataError: the column holds something else.
    """
    value = row[column]
    if not isinstance(value, str):
        raise DataError(
            f"The column {column} holds {type(value).__name__}, not text; give strings, or token "
            "ids in a column input_ids."
        )
    return value


def has_numbers(row: Row) -> bool:
    """Whether a row has what a model takes as it is."""
    return any(name in AXES for name in row)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float | np.number) and not isinstance(value, bool)


def _is_numeric(value: Any) -> bool:
    """Whether a value is a number, or holds numbers."""
    if isinstance(value, Tensor):
        return True
    if isinstance(value, np.ndarray):
        return value.dtype.kind not in "OUS"
    if isinstance(value, list | tuple):
        own = cast(Sequence[Any], value)
        return bool(own) and _is_numeric(own[0])
    return isinstance(value, bool | int | float | np.number)


def _numbers(name: str, value: Any) -> Tensor:
    try:
        return value if isinstance(value, Tensor) else torch.as_tensor(np.asarray(value))
    except (TypeError, ValueError) as error:
        raise DataError(
            f"The column {name} holds {value!r:.60}, which is no row of numbers; give lists of one "
            "length in each row, or tensors."
        ) from error
