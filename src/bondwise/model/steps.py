"""How long each step took, and the most memory that the process held during it."""

import resource
import sys
import time
from collections.abc import Generator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

_STATUS, _RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")


@dataclass
class Steps:
    """A list of named steps with seconds and peak bytes, filled as they run.

    >>> steps = Steps()
    >>> with steps("fit"):
    ...     pass
    >>> steps.done[0]["name"]
    'fit'
    """

    done: list[dict[str, Any]] = field(default_factory=list[dict[str, Any]])

    @contextmanager
    def __call__(self, name: str) -> Generator[None]:
        """Time what happens inside; nothing is noted of a step that fails."""
        _forget_peak()
        start = time.perf_counter()
        yield
        seconds = time.perf_counter() - start
        self.done.append({"name": name, "seconds": seconds, "peak_bytes": peak_bytes()})


def peak_bytes() -> int:
    """Most resident memory so far (on Linux: since the last step began)."""
    with suppress(OSError, StopIteration):
        lines = _STATUS.read_text().splitlines()
        return 1024 * int(next(line for line in lines if line.startswith("VmHWM")).split()[1])
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak


def _forget_peak() -> None:
    with suppress(OSError):
        _RESET.write_text("5")
