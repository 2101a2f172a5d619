"""Where fetched and converted files are kept: `$XDG_CACHE_HOME/bondwise`, by default `~/.cache`."""

import os
import shutil
import tempfile
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

from bondwise.errors import CheckpointError


def cache_directory() -> Path:
    """The folder of everything that can be fetched or computed again; it may be deleted."""
    base = os.environ.get("XDG_CACHE_HOME", "")
    return (Path(base) if base else Path.home() / ".cache") / "bondwise"


@contextmanager
def filling(target: Path) -> Generator[Path]:
    """A fresh folder beside `target` that takes its name once the block has ended well.

    A block that fails, or is interrupted, leaves nothing. Where another process was faster, its
    folder stays and ours goes.

    Raises:
        CheckpointError: the cache cannot be written (no room, no permission).
    """
    fresh = None
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        fresh = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
        yield fresh
        if not target.exists():
            fresh.rename(target)
    except (OSError, SafetensorError) as error:
        if not target.exists():
            raise CheckpointError(
                f"The cache {target.parent} cannot be written ({error}); make "
                "room there or set XDG_CACHE_HOME to another folder"
            ) from error
    finally:
        if fresh is not None:
            shutil.rmtree(fresh, ignore_errors=True)
