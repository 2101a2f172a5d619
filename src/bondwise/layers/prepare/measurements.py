"""Measured seconds of layers, and the file that keeps them: JSON, of one processor."""

import json
import os
import platform
import uuid
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from hashlib import sha256
from math import isfinite
from pathlib import Path
from typing import Any, cast

import torch

from bondwise.errors import DataError
from bondwise.layers.hosts.convolution import geometry_of
from bondwise.layers.module import TensorLayer
from bondwise.layers.networks import Cores

KIND, SCHEMA = "bondwise measurements", 1
AGAIN = "write `bondwise bench MODEL --measurements FILE` to make one"

Key = tuple[Any, ...]
Sizes = Mapping[str, int]
NO_SIZES: Sizes = {}


@dataclass(frozen=True)
class Measurement:
    """How long one layer takes for so many rows, in the fastest way that was found.

    Attributes:
        host: the kind of module that it stands for ("linear", "convolution 2d", ..).
        shape: (out, in) of its matrix; of a convolution (out, in / groups * kernel).
        network: of its weight, as an einsum; None where the weight is dense.
        sizes: of the network's indices.
        pinned: for each core the bond that its identity blocks are on, or None.
        rows: that enter at once; samples of a convolution.
        dtype: of its numbers, "float32", ..
        way: what runs it fastest.
        seconds: of that way, of the dense layer, and of the layer as it is built.
        dense_seconds: see ``seconds``; measured in turns with them.
        built_seconds: see ``seconds``.
        beside: kinds of the terms beside the network ("columns", ..).
        geometry: how a convolution moves, in words; empty for other hosts.
        size: of a convolution's input, one for each axis.
    """

    host: str
    shape: tuple[int, int]
    network: str | None
    sizes: Sizes
    pinned: tuple[str | None, ...]
    rows: int
    dtype: str
    way: str
    seconds: float
    dense_seconds: float
    built_seconds: float
    beside: tuple[str, ...] = ()
    geometry: str = ""
    size: tuple[int, ...] = ()

    @classmethod
    def of(
        cls,
        layer: TensorLayer,
        rows: int,
        way: str,
        seconds: tuple[float, float, float],
        size: Sequence[int] = (),
    ) -> "Measurement":
        """That of a layer of terms.

        Args:
            layer: what was measured.
            rows: that entered at once.
            way: what ran it fastest.
            seconds: of that way, of the dense layer, and of the layer as it is built.
            size: of a convolution's input.

        >>> from bondwise import TensorLinear, lowrank
        >>> layer = TensorLinear(lowrank(6, 4, 2))
        >>> found = Measurement.of(layer, 256, "path", (2e-6, 3e-6, 4e-6))
        >>> found.network, found.sizes, found.dtype
        ('o a, a i -> (o) (i)', {'o': 6, 'a': 2, 'i': 4}, 'float32')
        """
        kinds = [part.kind for part in layer.parts]
        first = next((kind for kind in kinds if isinstance(kind, Cores)), None)
        geometry = geometry_of(layer)
        return cls(
            layer.host,
            layer.shape,
            None if first is None else str(first.network),
            {} if first is None else dict(first.network.sizes),
            () if first is None else first.pinned,
            rows,
            str(layer.like.dtype).removeprefix("torch."),
            way,
            *seconds,
            tuple(kind.kind for kind in kinds if kind is not first),
            "" if geometry is None else moving(geometry),
            tuple(size),
        )

    @property
    def key(self) -> Key:
        """What was measured: a newer one of the same key takes the place of an older one."""
        return (
            *self.place,
            self.rows,
            self.network or "",
            tuple(sorted(self.sizes.items())),
            tuple(pin or "" for pin in self.pinned),
            self.beside,
        )

    @property
    def place(self) -> Key:
        """Which dense layer it stands for."""
        return self.host, self.shape, self.dtype, self.geometry, self.size


def moving(geometry: Any) -> str:
    """How a convolution moves, as a measurement has it.

    >>> from bondwise.compute.kernels.geometry import Geometry
    >>> moving(Geometry.of(torch.nn.Conv2d(4, 8, 3, stride=2, padding=1)))
    'kernel 3x3, stride 2x2, padding 1+1x1+1, dilation 1x1, groups 1, zeros'
    """
    pads = (f"{before}+{behind}" for before, behind in geometry.padding)
    told = [
        f"kernel {_by(geometry.kernel)}",
        f"stride {_by(geometry.stride)}",
        f"padding {_by(pads)}",
        f"dilation {_by(geometry.dilation)}",
        f"groups {geometry.groups}",
        geometry.mode,
    ]
    return ", ".join(told + [f"more {_by(geometry.output_padding)}"] * geometry.transposed)


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
            own = str(head["processor"]), str(head["torch"]), _whole(head["threads"])
            entries = [_entry(each) for each in head["entries"]]
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


def _entry(found: Any) -> Measurement:
    """One entry of a file, once it is known to be one."""
    given = dict(found)
    own = {name: given.pop(name) for name in (f.name for f in fields(Measurement)) if name in given}
    if given:
        raise ValueError(f"an entry with a {next(iter(given))!r}")
    for name in ("seconds", "dense_seconds", "built_seconds"):
        own[name] = _seconds(name, own[name])
    own["rows"], own["sizes"] = _whole(own["rows"]), {n: _whole(s) for n, s in own["sizes"].items()}
    out, inp = (_whole(n) for n in own["shape"])
    own["shape"], own["pinned"] = (out, inp), tuple(own["pinned"])
    own["beside"] = tuple(own.get("beside", ()))
    own["size"] = tuple(_whole(n) for n in own.get("size", ()))
    own["network"] = None if own["network"] is None else str(own["network"])
    return Measurement(**own | {name: str(own[name]) for name in ("host", "dtype", "way")})


def _seconds(name: str, value: Any) -> float:
    found = float(value)
    if not isfinite(found) or found <= 0:
        raise ValueError(f"{name} of {value}")
    return found


def _whole(value: Any) -> int:
    if type(value) is not int or value < 1:
        raise ValueError(f"{value!r} where a whole number of 1 or more is expected")
    return value


def _by(sizes: Iterable[Any]) -> str:
    return "x".join(map(str, sizes))


def _unwritten(path: Path, why: str) -> DataError:
    return DataError(f"Measurements {path} cannot be written ({why}); name another file.")
