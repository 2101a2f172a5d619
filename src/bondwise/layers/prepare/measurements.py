"""Measured seconds of layers, and the file that keeps them: JSON, of one processor."""

import json
import os
import platform
import uuid
import warnings
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any, cast

import torch

from bondwise.errors import DataError
from bondwise.layers.prepare.measurement import Measurement, entry, whole

KIND, SCHEMA = "bondwise measurements", 1
AGAIN = "write `bondwise bench MODEL --measurements FILE` to make one"


@dataclass(frozen=True)
class Measurements:
    """All that a file holds, of one processor and number of threads.

    Attributes:
        processor: its name.
        torch: the version.
        threads: that a layer was run with.
        entries: each key once, in order.
        digest: of the file that they were read from; empty for none.
    """

    processor: str
    torch: str
    threads: int
    entries: tuple[Measurement, ...]
    digest: str = field(default="", compare=False)

    @classmethod
    def here(cls, entries: Iterable[Measurement], device: Any = "cpu") -> "Measurements":
        """Measurements of this run.

        >>> Measurements.here([]).threads == torch.get_num_threads()
        True
        """
        threads = torch.get_num_threads() if torch.device(device).type == "cpu" else 1
        return cls(processor(device), torch.__version__, threads, _once(entries))

    @classmethod
    def read(cls, file: str | Path) -> "Measurements":
        """What a file holds.

        Raises:
            DataError: there is none, it is no file of measurements or one of another version, it
                is empty, or holds seconds that are none.
        """
        path = Path(file).expanduser()
        try:
            data = path.read_bytes()
        except OSError as error:
            raise DataError(
                f"Measurements {path} cannot be read ({error.strerror}); {AGAIN}."
            ) from error
        try:
            found = json.loads(data)
        except ValueError as error:
            raise DataError(f"{path} is no file of measurements (no JSON); {AGAIN}.") from error
        return cls._parsed(path, found, sha256(data).hexdigest())

    @classmethod
    def _parsed(cls, path: Path, found: Any, digest: str) -> "Measurements":
        if not isinstance(found, dict) or found.get("kind") != KIND:
            raise DataError(f"{path} is no file of measurements; {AGAIN}.")
        head = cast(dict[str, Any], found)
        if head.get("schema") != SCHEMA:
            raise DataError(
                f"Measurements {path} are of schema {head.get('schema')!r}, and this version reads "
                f"{SCHEMA}; {AGAIN}."
            )
        try:
            own = str(head["processor"]), str(head["torch"]), whole(head["threads"])
            entries = [entry(each) for each in head["entries"]]
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            said = f"no {error}" if isinstance(error, KeyError) else str(error)
            raise DataError(f"Measurements {path} cannot be used ({said}); {AGAIN}.") from error
        if not entries:
            raise DataError(f"Measurements {path} are empty; {AGAIN}.")
        return cls(*own, _once(entries), digest)

    def write(self, file: str | Path) -> "Measurements":
        """Write them beside what the file holds already, whole or not at all; return all of it.

        Of two of the same key the newer one stays.

        Raises:
            DataError: the file is of another machine or is none of ours, or cannot be written.
        """
        path = Path(file).expanduser()
        kept = self.room(path)
        whole = Measurements(self.processor, self.torch, self.threads, _once(kept + self.entries))
        head = {"kind": KIND, "schema": SCHEMA, **asdict(whole)}
        del head["digest"]
        half = path.with_name(f".{path.name}-{uuid.uuid4().hex[:8]}")
        try:
            half.write_text(json.dumps(head, indent=1) + "\n", encoding="utf-8")
            half.replace(path)
        except OSError as error:
            raise _unwritten(path, str(error.strerror)) from error
        finally:
            half.unlink(missing_ok=True)
        return whole

    def room(self, file: str | Path) -> tuple[Measurement, ...]:
        """What a file holds that these may be written to; nothing where there is none.

        Raises:
            DataError: the file is of another machine or is none of ours, or cannot be written.
        """
        path = Path(file).expanduser()
        if not path.parent.is_dir():
            raise _unwritten(path, "there is no such folder")
        if not path.exists():
            return ()
        if not os.access(path, os.W_OK) or not path.is_file():
            raise _unwritten(path, "it cannot be replaced")
        old = Measurements.read(path)
        mine, theirs = ((m.processor, m.torch, m.threads) for m in (self, old))
        if mine != theirs:
            raise DataError(
                f"Measurements {path} are of {old.machine}, and this is {self.machine}; name "
                "another file."
            )
        return old.entries

    @property
    def machine(self) -> str:
        """What they were measured on, in words."""
        threads = f"{self.threads} thread{'s' * (self.threads != 1)}"
        return f"{self.processor}, torch {self.torch}, {threads}"

    def compared(self, device: Any = "cpu") -> "Measurements":
        """Themselves, with a warning where they are of another processor or number of threads."""
        here = Measurements.here((), device)
        if (here.processor, here.threads) != (self.processor, self.threads):
            warnings.warn(
                f"The measurements are of {self.machine}, and this is {here.machine}: what is "
                "chosen by them is meant for that one.",
                stacklevel=2,
            )
        return self


def processor(device: Any = "cpu") -> str:
    """What the processor or the accelerator calls itself.

    >>> processor() != ""
    True
    """
    where = torch.device(device)
    if where.type == "cuda":
        return torch.cuda.get_device_name(where)
    try:
        lines = Path("/proc/cpuinfo").read_text("utf-8").splitlines()
        return next(line.split(":")[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def _once(entries: Iterable[Measurement]) -> tuple[Measurement, ...]:
    """The last of each key, in the order of keys."""
    last = {entry.key: entry for entry in entries}
    return tuple(last[key] for key in sorted(last))


def _unwritten(path: Path, why: str) -> DataError:
    return DataError(f"Measurements {path} cannot be written ({why}); name another file.")
