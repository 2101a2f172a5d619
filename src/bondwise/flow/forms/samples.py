"""Files of samples: tensors that a model takes, read without unpickling.

`.pt` and `.pth` of ``torch.save``, `.safetensors`, `.npy` and `.npz` of numpy. A file holds one
tensor, dimension 0 its samples; or a table of tensors, the model's inputs by name; or a list of
either, which are batches as they are.
"""

import pickle
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, cast
from zipfile import is_zipfile

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from bondwise.errors import DataError
from bondwise.flow.data import SAMPLES, Batch, part, samples

SUFFIXES = (".pt", ".pth", ".safetensors", ".npy", ".npz")
WRITE = "write it with torch.save(tensor, 'samples.pt'), dimension 0 its samples"


def is_samples(source: object) -> bool:
    """Whether data is the name of a file of samples.

    >>> is_samples("samples.pt"), is_samples("text.txt"), is_samples("a text. It ends in .pt")
    (True, False, False)
    """
    if not isinstance(source, str | Path):
        return False
    named = isinstance(source, Path) or not any(letter.isspace() for letter in Path(source).name)
    return named and Path(source).suffix.lower() in SUFFIXES


def read_samples(source: str | Path) -> Tensor | list[Batch]:
    """What a file of samples holds: one tensor, or batches.

    Raises:
        DataError: no such file, one that only unpickling could read, no tensors, tensors that are
            empty, complex or not finite, or inputs of a table with unlike numbers of samples.

    >>> from tempfile import TemporaryDirectory
    >>> with TemporaryDirectory() as folder:
    ...     torch.save(torch.ones(20, 3), f"{folder}/samples.pt")
    ...     read_samples(f"{folder}/samples.pt").shape
    torch.Size([20, 3])
    """
    path = Path(source).expanduser()
    if not path.is_file():
        raise DataError(f"There is no file {source}; {WRITE}.")
    found = _as_tensors(_read(path), path)
    if isinstance(found, Tensor):
        _check(found, "the tensor", path)
        return found
    items = found if isinstance(found, list) else [found]
    if not items:
        raise DataError(f"{path} holds an empty list; {WRITE}.")
    for k, item in enumerate(items):
        for name, tensor in _named(item, k if isinstance(found, list) else None):
            _check(tensor, name, path)
    if isinstance(found, Mapping):
        _check_counts(cast("Mapping[str, Tensor]", found), path)
    return [each for item in items for each in (in_parts(item) if item is found else [item])]


def in_parts(batch: Batch, size: int = SAMPLES) -> list[Batch]:
    """A batch, some samples at a time."""
    count = samples(batch)
    return [part(batch, k, min(k + size, count)) for k in range(0, count, size)]


def _read(path: Path) -> Any:
    kind = path.suffix.lower()
    try:
        if kind == ".safetensors":
            return load_file(str(path))
        if kind in (".npy", ".npz"):
            found = np.load(path, allow_pickle=False)
            return dict(found) if kind == ".npz" else found
        mapped = is_zipfile(path)  # as torch.save has written since 1.6
        return torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
    except (pickle.UnpicklingError, ValueError) as error:
        raise DataError(
            f"{path} holds more than tensors, and could only be unpickled, which may run code; "
            f"{WRITE}."
        ) from error
    except (OSError, RuntimeError, EOFError, SafetensorError, KeyError) as error:
        reason = " ".join(str(error).split())[:120].rstrip(".")
        raise DataError(f"{path} cannot be read ({reason}); {WRITE}.") from error


def _as_tensors(found: Any, path: Path) -> Any:
    """Arrays as tensors, in the same nesting."""
    if isinstance(found, Tensor):
        return found.detach()
    if isinstance(found, np.ndarray):
        return _of_array(found, path)
    if isinstance(found, Mapping) and found:
        own = cast("Mapping[Any, Any]", found)
        return {str(name): _one(value, path) for name, value in own.items()}
    if isinstance(found, list | tuple):
        items = cast("list[Any]", found)
        return [_as_tensors(item, path) for item in items]
    raise _no_tensors(found, path)


def _one(value: Any, path: Path) -> Tensor:
    made = _as_tensors(value, path) if isinstance(value, Tensor | np.ndarray) else None
    if not isinstance(made, Tensor):
        raise _no_tensors(value, path)
    return made


def _of_array(array: Any, path: Path) -> Tensor:
    try:
        return torch.from_numpy(np.array(array))
    except TypeError as error:
        raise DataError(f"{path} holds {array.dtype} values; {WRITE}.") from error


def _no_tensors(found: Any, path: Path) -> DataError:
    return DataError(f"{path} holds a {type(found).__name__} where tensors are expected; {WRITE}.")


def _named(item: Any, at: int | None) -> Iterator[tuple[str, Tensor]]:
    where = "" if at is None else f" of batch {at}"
    if isinstance(item, Tensor):
        yield f"the tensor{where}", item
    elif isinstance(item, Mapping):
        own = cast("Mapping[str, Tensor]", item)
        yield from ((f"{name}{where}", tensor) for name, tensor in own.items())
    else:  # an input and its target, or several inputs: which is which, only names can say
        raise DataError(
            "A list of lists came as samples; write a list of tensors, or of dicts that name the "
            "model's inputs."
        )


def _check_counts(table: Mapping[str, Tensor], path: Path) -> None:
    """Refuse a table that cannot be split: its inputs have unlike numbers of samples."""
    counts = {name: len(tensor) for name, tensor in table.items()}
    if len(set(counts.values())) > 1:
        shown = ", ".join(f"{count} of {name}" for name, count in counts.items())
        raise DataError(
            f"{path} holds unlike numbers of samples ({shown}); write as many of each, or a list "
            "of tables for batches that go in as they are."
        )


def _check(tensor: Tensor, name: str, path: Path) -> None:
    shape = tuple(tensor.shape)
    if not tensor.ndim or not tensor.numel():
        raise DataError(f"{name} in {path} has shape {shape}, and no samples; {WRITE}.")
    if tensor.is_complex():
        raise DataError(
            f"{name} in {path} is complex; write real numbers, as torch.view_as_real(tensor) or "
            "tensor.abs() gives them."
        )
    if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
        bad = int((~torch.isfinite(tensor)).sum())
        raise DataError(
            f"{name} in {path} has {bad:,} numbers that are NaN or infinite; clean the data."
        )
