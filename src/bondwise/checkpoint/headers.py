"""What safetensors files say of their tensors, without reading one."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError, safe_open

from bondwise.errors import CheckpointError


@dataclass(frozen=True)
class Header:
    """What a file says of one tensor.

    Attributes:
        shape: its sizes.
        dtype: as safetensors writes it, such as ``"F32"``.
        file: where it is.
    """

    shape: tuple[int, ...]
    dtype: str
    file: Path


def headers(files: Iterable[str | Path]) -> dict[str, Header]:
    """Every tensor in some safetensors, by name, without reading one.

    Raises:
        CheckpointError: a file is truncated or corrupt.
    """
    found: dict[str, Header] = {}
    for file in map(Path, files):
        try:
            with safe_open(str(file), framework="pt") as opened:
                for name in opened.keys():  # noqa: SIM118  it is no mapping
                    part = opened.get_slice(name)
                    found[name] = Header(tuple(part.get_shape()), part.get_dtype(), file)
        except (SafetensorError, OSError) as error:
            raise CheckpointError(
                f"{file.name} is truncated or corrupt ({error}); copy or save it again."
            ) from error
    return found
