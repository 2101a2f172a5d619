"""What one layer took, measured: the layer in plain data, and its seconds."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from math import isfinite
from typing import Any

from bondwise.layers.hosts.convolution import geometry_of
from bondwise.layers.module import TensorLayer
from bondwise.layers.networks import Cores
from bondwise.layers.prepare.result import Choice

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
            () if geometry is None else tuple(size),
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
    >>> from torch import nn
    >>> moving(Geometry.of(nn.Conv2d(4, 8, 3, stride=2, padding=1)))
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


def measured(layers: Mapping[str, TensorLayer], choices: Iterable[Choice]) -> Iterator[Measurement]:
    """What `bondwise.prepare` found of layers that run alone.

    Args:
        layers: by path.
        choices: what was chosen for them.
    """
    for own in choices:
        if own.dense > 0 and not own.joined:
            seconds = own.seconds, own.dense, own.built
            yield Measurement.of(layers[own.name], own.rows, own.way, seconds, own.input[2:])


def entry(found: Any) -> Measurement:
    """A measurement from plain data, once it is known to be one.

    Raises:
        KeyError, TypeError, ValueError: it is none.
    """
    own: dict[str, Any] = dict(found)
    unknown = own.keys() - {f.name for f in fields(Measurement)}
    if unknown:
        raise ValueError(f"an entry with a {min(unknown)!r}")
    for name in ("seconds", "dense_seconds", "built_seconds"):
        own[name] = _seconds(name, own[name])
    own["rows"], own["sizes"] = whole(own["rows"]), {n: whole(s) for n, s in own["sizes"].items()}
    out, inp = (whole(n) for n in own["shape"])
    own["shape"], own["pinned"] = (out, inp), tuple(own["pinned"])
    own["beside"] = tuple(own.get("beside", ()))
    own["size"] = tuple(whole(n) for n in own.get("size", ()))
    own["network"] = None if own["network"] is None else str(own["network"])
    for name in ("host", "dtype", "way"):
        own[name] = str(own[name])
    return Measurement(**own)


def whole(value: Any) -> int:
    """A whole number from 1 on, as it came.

    Raises:
        ValueError: it is none.
    """
    if type(value) is not int or value < 1:
        raise ValueError(f"{value!r} where a whole number of 1 or more is expected")
    return value


def _seconds(name: str, value: Any) -> float:
    found = float(value)
    if not isfinite(found) or found <= 0:
        raise ValueError(f"{name} of {value}")
    return found


def _by(sizes: Iterable[Any]) -> str:
    return "x".join(map(str, sizes))
