"""How long a product takes on this machine: a model of a few rates, measured once and kept."""

import json
import os
import platform
import tempfile
import warnings
from dataclasses import asdict, dataclass, fields
from functools import cache
from math import isfinite, prod
from pathlib import Path
from typing import Any

import torch

SCHEMA = 1
FRESH = 2**25  # bytes from which an allocator asks the system each time, and pages are cleared
CHUNKS = (512, 256, 128, 64, 32, 16)  # rows at a time, where not all at once


@dataclass(frozen=True, slots=True)
class Rates:
    """What matmuls and copies cost in one dtype.

    A product of an (m x k) and a (k x n) matrix takes
    ``call + m n k / (peak s(m, m0) s(n, n0) s(k, k0)) + bytes / speed`` seconds, with
    ``s(x, x0) = x / (x + x0)``: small sides do not fill the processor. A batch of products has a
    peak and half sizes of its own. The bytes are those of both matrices and the result: at the
    speed of the cache where they fit there, else of memory, and for a large result of memory that
    is fresh from the system.

    Attributes:
        call: seconds of one call.
        peak: multiplications a second of a large matmul.
        half: sizes (m, n, k) at which a matmul reaches half of it.
        batch_peak: multiplications a second of a batch of matmuls.
        batch_half: its half sizes.
        fresh: bytes a second written to memory fresh from the system.
        memory: bytes a second read and written where the cache is too small.
        stream: bytes a second read from memory in one go.
        cached: bytes a second from the cache and to it.
        copy: bytes a second of a permuting copy.
        cache: bytes that stay in the cache of a core.
    """

    call: float = 1.6e-6
    peak: float = 115e9
    half: tuple[float, float, float] = (0.7, 12.0, 2.4)
    batch_peak: float = 168e9
    batch_half: tuple[float, float, float] = (29.0, 0.45, 1.2)
    fresh: float = 2.8e9
    memory: float = 29e9
    stream: float = 26e9
    cached: float = 82e9
    copy: float = 10.7e9
    cache: float = 1.5e6

    def product(self, extents: tuple[int, int, int, int], itemsize: int) -> float:
        """Seconds of g products (m x k)(k x n), for extents (g, m, n, k)."""
        g, *sides = extents
        peak, half = (self.peak, self.half) if g == 1 else (self.batch_peak, self.batch_half)
        rate = peak * prod(side / (side + h) for side, h in zip(sides, half, strict=True))
        return self.call + prod(extents) / rate + self.moving(extents, itemsize)

    def moving(self, extents: tuple[int, int, int, int], itemsize: int) -> float:
        """Seconds that the bytes of g products take: read once, written to a new place."""
        g, m, n, k = extents
        weight, left, result = n * k, g * m * k, g * m * n
        fits = itemsize * (weight + left + result) <= self.cache
        if fits:
            return itemsize * (weight + left + result) / self.cached
        new = self.fresh if itemsize * result >= FRESH else self.memory
        most, least = max(weight, left), min(weight, left)
        return itemsize * (most / self.stream + least / self.cached + result / new)

    def permuted(self, numbers: int, itemsize: int) -> float:
        """Seconds of a copy in another order."""
        return self.call + 2 * numbers * itemsize / self.copy


@dataclass(frozen=True, slots=True)
class Machine:
    """Rates by the bytes of a number: 4 and 8 as float32, 2 as bfloat16 and float16.

    >>> Machine().rates(4).product((1, 256, 1024, 1024), 4) > 1e-3
    True
    """

    single: Rates = Rates()
    half: Rates = Rates(
        call=2.5e-6,
        peak=610e9,
        half=(71.0, 97.0, 112.0),
        batch_peak=430e9,
        batch_half=(44.0, 19.0, 23.0),
        fresh=3.1e9,
        memory=29e9,
        stream=17e9,
        cached=84e9,
        copy=5.7e9,
    )
    measured: bool = False

    def rates(self, itemsize: int) -> Rates:
        """The rates for numbers of so many bytes."""
        return self.half if itemsize < 4 else self.single

    def as_dict(self) -> dict[str, Any]:
        """As JSON holds it, with the number of threads that it was measured with."""
        return {
            "threads": torch.get_num_threads(),
            "float32": asdict(self.single),
            "bfloat16": asdict(self.half),
        }


STATED = Machine()
"""What is taken where nothing was measured: one thread of a Xeon with AVX-512 and AMX, of 2023."""


def cache_file() -> Path:
    """Where measured rates are kept: ``$BONDWISE_TUNING``, or a file in the user's cache folder."""
    named = os.environ.get("BONDWISE_TUNING")
    if named:
        return Path(named)
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(home) / "bondwise" / "tuning.json"


def machine() -> Machine:
    """The rates measured by `calibrate` for this processor and number of threads, or `STATED`.

    They are read once a process. A file that cannot be read, or is of another processor or number
    of threads, is left aside with one warning.
    """
    return _read(str(cache_file()), torch.get_num_threads())


@cache
def _read(path: str, threads: int) -> Machine:
    file = Path(path)
    if not file.exists():
        return STATED
    try:
        found = json.loads(file.read_text("utf-8"))
        if found["schema"] != SCHEMA or found["processor"] != _processor():
            raise ValueError("it is of another version or processor")
        entry = found["threads"].get(str(threads))
        if entry is None:
            return STATED
        return Machine(_rates(entry["single"]), _rates(entry["half"]), measured=True)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        warnings.warn(
            f"The tuning file {file} came and is left aside ({error}); write `bondwise tune` to "
            "make it anew.",
            stacklevel=3,
        )
        return STATED


def _rates(entry: dict[str, Any]) -> Rates:
    values = {
        field.name: tuple(map(float, entry[field.name]))
        if isinstance(entry[field.name], list)
        else float(entry[field.name])
        for field in fields(Rates)
    }
    flat = [n for v in values.values() for n in (v if isinstance(v, tuple) else (v,))]
    if not all(isfinite(n) and n >= 0 for n in flat) or len(flat) != 15:
        raise ValueError("it holds rates that are none")
    return Rates(**values)  # pyright: ignore[reportArgumentType]


def keep(found: Machine) -> Path:
    """Write measured rates beside those for other numbers of threads, whole or not at all."""
    file, threads = cache_file(), str(torch.get_num_threads())
    file.parent.mkdir(parents=True, exist_ok=True)
    entry = {"single": asdict(found.single), "half": asdict(found.half)}
    whole = {
        "schema": SCHEMA,
        "processor": _processor(),
        "threads": _others(file) | {threads: entry},
    }
    with tempfile.NamedTemporaryFile(
        "w", dir=file.parent, suffix=".part", delete=False, encoding="utf-8"
    ) as part:
        json.dump(whole, part, indent=1)
    Path(part.name).replace(file)
    _read.cache_clear()
    return file


def _others(file: Path) -> dict[str, Any]:
    try:
        found = json.loads(file.read_text("utf-8"))
        mine = found["schema"] == SCHEMA and found["processor"] == _processor()
        return dict(found["threads"]) if mine else {}
    except (OSError, ValueError, KeyError, TypeError):
        return {}


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text("utf-8").splitlines()
        named = next(line.split(":")[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        named = platform.processor() or platform.machine()
    return f"{named}, torch {torch.__version__}"
