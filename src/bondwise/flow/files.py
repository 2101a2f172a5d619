"""Files of a run: written beside their place and renamed, so that what is there is whole."""

import json
import uuid
from collections.abc import Generator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, cast

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from bondwise.errors import CheckpointError


@contextmanager
def beside(path: Path, mend: str = "free some space and start again") -> Generator[Path]:
    """A file beside its place that takes it once it is whole, or is gone.

    Args:
        path: its place; the folders above are made.
        mend: what to do where it cannot be written.

    Raises:
        CheckpointError: it cannot be written (a full disk); what was there before is left.
    """
    half = path.with_name(f".{path.name}-{uuid.uuid4().hex[:8]}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield half
        half.replace(path)
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise CheckpointError(
            f"{path} cannot be written ({reason}), and what was kept before is still there; {mend}."
        ) from error
    finally:
        with suppress(OSError):
            half.unlink(missing_ok=True)


def write(path: Path, tensors: Mapping[str, Tensor], note: Mapping[str, Any] | None = None) -> None:
    """A safetensors file; the note is kept in it as JSON.

    Raises:
        CheckpointError: as `beside`.
    """
    own = {k: t.detach().contiguous().cpu() for k, t in tensors.items()}
    with beside(path) as half:
        save_file(own, str(half), metadata={"note": json.dumps(dict(note or {}))})


def read(path: Path) -> dict[str, Tensor]:
    """The tensors of a file.

    Raises:
        CheckpointError: it cannot be read.
    """
    try:
        with safe_open(str(path), framework="pt") as file:
            return {key: cast(Tensor, file.get_tensor(key)) for key in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise _unreadable(path, error) from error


def read_row(path: Path, name: str, row: int) -> Tensor:
    """One row of a tensor of a file; the others are not read.

    Raises:
        CheckpointError: it cannot be read.
    """
    try:
        with safe_open(str(path), framework="pt") as file:
            return cast(Tensor, file.get_slice(name)[row])
    except (OSError, SafetensorError) as error:
        raise _unreadable(path, error) from error


def read_note(path: Path) -> dict[str, Any]:
    """The note of a file.

    Raises:
        CheckpointError: it cannot be read.
    """
    try:
        with safe_open(str(path), framework="pt") as file:
            return cast(dict[str, Any], json.loads(file.metadata()["note"]))
    except (OSError, SafetensorError, TypeError, KeyError, ValueError) as error:
        raise _unreadable(path, error) from error


def write_json(path: Path, values: Mapping[str, Any]) -> None:
    """A JSON file.

    Raises:
        CheckpointError: as `beside`.
    """
    with beside(path) as half:
        half.write_text(json.dumps(values, indent=1) + "\n", encoding="utf-8")


def read_json(path: Path) -> dict[str, Any]:
    """What a JSON file of ours holds.

    Raises:
        CheckpointError: it cannot be read.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(found, dict):
            raise ValueError(f"it holds a {type(found).__name__}")
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"{path} cannot be read ({error}); remove {path.parent} and begin anew."
        ) from error
    return cast(dict[str, Any], found)


def _unreadable(path: Path, error: Exception) -> CheckpointError:
    return CheckpointError(f"{path} cannot be read ({error}); remove it and start again.")
