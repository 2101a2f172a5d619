"""Seconds of candidates that nobody has built, read off a file of measurements."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from statistics import mean, median

from torch import nn

from bondwise.choose.candidates import Candidate, Terms, network_of
from bondwise.choose.kinds.kernels import Moves
from bondwise.choose.seconds.interpolate import (
    WRITE,
    Family,
    Rung,
    at,
    family,
    ladders,
    multiplications,
)
from bondwise.choose.seconds.place import Place, movement
from bondwise.errors import BudgetError, DataError
from bondwise.layers.hosts.convolution import geometry_of
from bondwise.layers.prepare.measurement import Key, Measurement
from bondwise.layers.prepare.measurements import Measurements

SHOWN = 3  # shapes that a sentence names


def check_measured(unit: str, measurements: object) -> None:
    """Refuse seconds without a file of measurements, and a file where no seconds are counted.

    Raises:
        BudgetError: saying what to write.
    """
    if unit == "seconds" and measurements is None:
        raise BudgetError(
            "unit='seconds' came without measurements; give measurements=FILE, which `bondwise "
            "bench MODEL --measurements FILE` writes."
        )
    if unit != "seconds" and measurements is not None:
        raise BudgetError(
            f"measurements={str(measurements)!r} came with unit={unit!r}, which counts no seconds; "
            "write unit='seconds', or leave them out."
        )
    if measurements is not None and not isinstance(measurements, str | Path):
        raise BudgetError(
            f"A {type(measurements).__name__} came as measurements; give the path of a file."
        )


@dataclass(frozen=True)
class Clock:
    """A file of measurements, and how seconds are read off it.

    Attributes:
        found: what it holds.
        file: its name.
        dtype: of the layers that are to be; None for that of each weight.
    """

    found: Measurements
    file: str
    dtype: str | None = None

    @classmethod
    def read(cls, file: str | Path, dtype: str | None = None, device: str = "cpu") -> "Clock":
        """The clock of a file; where it is of another machine than this, that is warned of.

        Raises:
            DataError: the file cannot be used.
        """
        return cls(Measurements.read(file).compared(device), str(file), dtype)

    def on(self, places: Mapping[str, Place]) -> "Watch":
        """The seconds of some weights, each by its name and place.

        Raises:
            DataError: a weight was not measured, or not for numbers of rows that all were.
        """
        own = self.check(places)
        loads = self._loads(own.values())
        if not loads:
            raise DataError(
                f"Measurements {self.file} have no number of rows for which all of these weights "
                f"were measured; {WRITE}, with one --prompt."
            )
        return Watch(self, own, loads)

    def placed(self, module: nn.Module, rows: int = 1) -> Place:
        """The place of a module of which no input is known.

        A convolution's input is taken to be of the size that it was measured at, where that is one.

        Raises:
            DataError: a convolution was measured at several sizes.
        """
        place, geometry = Place.of(module, None, rows), geometry_of(module)
        if geometry is None:
            return place
        dtype = self.dtype or place.dtype
        known = (place.host, place.shape, dtype, movement(module))
        sizes = {key[-1] for key in self._by_place if key[:4] == known}
        if len(sizes) > 1:
            raise DataError(
                f"Measurements {self.file} have {place.words} at {len(sizes)} input sizes, and "
                "what is planned without data knows none; give data, or a file of one size."
            )
        size = next(iter(sizes), (0,) * geometry.axes)
        return replace(place, moves=Moves(geometry, size))

    @cached_property
    def _by_place(self) -> dict[Key, list[Measurement]]:
        found: dict[Key, list[Measurement]] = {}
        for entry in self.found.entries:
            found.setdefault(entry.place, []).append(entry)
        return found

    def of(self, place: Place, load: int) -> list[Measurement]:
        """What was measured in a place, for so many tokens or samples."""
        rows = load * place.rows
        return [entry for entry in self._by_place.get(place.key, []) if entry.rows == rows]

    def check(self, places: Mapping[str, Place]) -> dict[str, Place]:
        """The places, in the dtype that the layers are to have; all of them were measured.

        Raises:
            DataError: one was not; naming the first, by its name and place.
        """
        kind = self.dtype
        own = {n: p if kind is None else replace(p, dtype=kind) for n, p in places.items()}
        missing = {n: p for n, p in own.items() if p.key not in self._by_place}
        if missing:
            name, place = next(iter(missing.items()))
            kinds = len({p.key for p in missing.values()}) - 1
            more = f" ({kinds} more kinds of weights neither)" if kinds else ""
            raise DataError(
                f"{name} ({place.words}) was not measured in {self.file}{more}; {WRITE}."
            )
        return own

    def _loads(self, places: Iterable[Place]) -> tuple[int, ...]:
        """Numbers of tokens or samples for which every place was measured."""
        common: set[int] | None = None
        for place in dict.fromkeys(places):
            rows = {entry.rows for entry in self._by_place[place.key]}
            own = {n // place.rows for n in rows if n % place.rows == 0}
            common = own if common is None else common & own
        return tuple(sorted(common or ()))


@dataclass(frozen=True)
class Watch:
    """The seconds of some weights.

    Attributes:
        clock: that they are read off.
        places: of the weights, by name.
        loads: numbers of tokens (of samples, where these are counted), each for itself.
    """

    clock: Clock
    places: Mapping[str, Place]
    loads: tuple[int, ...]

    def seconds(self, name: str, terms: Terms = ()) -> tuple[float, ...] | None:
        """Of a weight as a sum of terms, dense without a network; None where it was not measured.

        One number for each of `loads`.
        """
        whole, net = self._dense[name], network_of(terms)
        if net is None:
            return whole
        own = self._ladders(self.places[name]).get(family(net, terms))
        if own is None:
            return None
        macs = multiplications(net, self.places[name].moves)
        return tuple(s * at(ladder, macs) for s, ladder in zip(whole, own, strict=True))

    def share(self, seconds: Sequence[float]) -> float:
        """Seconds over those of all weights dense, the numbers of rows counting alike.

        It adds up: the shares of all dense weights are 1 together.
        """
        return mean(s / whole for s, whole in zip(seconds, self._totals, strict=True))

    def timed(self, group: Sequence[Candidate]) -> tuple[list[Candidate], list[Candidate]]:
        """Candidates with their seconds, and those that have none."""
        found, others = list[Candidate](), list[Candidate]()
        for candidate in group:
            seconds = self.seconds(candidate.weight, candidate.terms)
            if seconds is None:
                others.append(candidate)
            else:
                found.append(replace(candidate, seconds=seconds))
        return found, others

    def unmeasured(self, left: Iterable[tuple[str, str]]) -> list[str]:
        """A note for each format that was left out of the choice, of weights by name."""
        shapes: dict[str, dict[str, None]] = {}
        for form, name in left:
            out, inp = self.places[name].shape
            shapes.setdefault(form, {})[f"{out} x {inp}"] = None
        return [
            f"{form} was not measured for {_named(list(some))}: it is no candidate there"
            for form, some in shapes.items()
        ]

    @property
    def told(self) -> str:
        """What was measured where, as a note."""
        counts = " and ".join(f"{load:,}" for load in self.loads)
        samples = any(p.moves is not None for p in self.places.values())
        unit = "samples" if samples else "rows"
        return (
            f"seconds are those of prepared layers at {counts} {unit}, {self.clock.found.machine}"
        )

    @cached_property
    def _dense(self) -> dict[str, tuple[float, ...]]:
        """Seconds of every weight dense."""
        by_place = {
            place: tuple(
                median(entry.dense_seconds for entry in self.clock.of(place, load))
                for load in self.loads
            )
            for place in dict.fromkeys(self.places.values())
        }
        return {name: by_place[place] for name, place in self.places.items()}

    @cached_property
    def _totals(self) -> tuple[float, ...]:
        return tuple(map(sum, zip(*self._dense.values(), strict=True)))

    @cached_property
    def _known(self) -> dict[Place, dict[Family, list[list[Rung]]]]:
        return {}

    def _ladders(self, place: Place) -> dict[Family, list[list[Rung]]]:
        """By format: its ladder for each of `loads`, where it has one for all."""
        if place not in self._known:
            entries = (self.clock.of(place, load) for load in self.loads)
            each = [ladders(some, place.moves, self.clock.file) for some in entries]
            common = [kind for kind in each[0] if all(kind in some for some in each)]
            self._known[place] = {kind: [some[kind] for some in each] for kind in common}
        return self._known[place]


def _named(some: Sequence[str]) -> str:
    more = len(some) - SHOWN
    return ", ".join(some[:SHOWN]) + (f" and {more} more shapes" if more > 0 else "")
