"""The table of what will change or has changed: every parameter, from what to what, or why not."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from bondwise.choose.by_rank import cost
from bondwise.choose.candidates import Candidate, Terms, network_of
from bondwise.choose.select import Weight
from bondwise.layers.entries import Placed
from bondwise.layers.terms import Kind
from bondwise.network.network import Network

WIDTH = 100  # columns of a printed line


@dataclass(frozen=True)
class Line:
    """One parameter: left alone for a reason, or a network in place of a dense weight.

    Attributes:
        weight: what it was.
        reason: why it is left alone; empty where it changes.
        format: name of the format; None where it is left alone.
        terms: what it becomes the sum of; empty where it is left alone.
        after: numbers stored then.
        error: relative error of the fit, in the inputs' metric if there is one; None before it.
        held_out: the same on tokens that the fit did not see.
        runner_up: the next best format, and its squared error over this one's at equal numbers.
        macs: multiplications for one token.
        seconds: measured, for each number of rows of the file; None where none was read.
    """

    weight: Weight
    reason: str
    after: int
    format: str | None = None
    terms: Terms = ()
    error: float | None = None
    held_out: float | None = None
    runner_up: tuple[str, float] | None = None
    macs: int | None = None
    seconds: tuple[float, ...] | None = None

    @property
    def name(self) -> str:
        """Path of the module, or of the parameter."""
        return self.weight.name

    @property
    def before(self) -> int:
        """Numbers stored before."""
        return self.weight.numbers

    @property
    def network(self) -> Network | None:
        """The network among its terms."""
        return network_of(self.terms)

    @property
    def beside(self) -> tuple[Kind, ...]:
        """What stands beside the network."""
        return tuple(term for term in self.terms if isinstance(term, Kind))

    @property
    def changes(self) -> bool:
        """Whether it becomes a network."""
        return self.network is not None

    def as_dict(self) -> dict[str, Any]:
        """The line as plain data."""
        net = self.network
        return {
            "name": self.name,
            "kind": self.weight.kind,
            "shape": list(self.weight.shape),
            "action": "tensorize" if self.changes else "leave",
            "reason": self.reason,
            "format": self.format,
            "network": None if net is None else str(net),
            "sizes": {} if net is None else dict(net.sizes),
            "ranks": {} if net is None else dict(net.bonds),
            "before": self.before,
            "after": self.after,
            "error": self.error,
            "held_out": self.held_out,
            "runner_up": None if self.runner_up is None else list(self.runner_up),
            "macs": self.macs,
            "seconds": None if self.seconds is None else list(self.seconds),
            "terms": [_term(term) for term in self.terms],
            "block": block(self.name),
        }


@dataclass(frozen=True)
class Table:
    """All lines, the keep that was asked, and notes (patterns that match nothing, a budget missed).

    ``print(table)`` shows it; ``table.kept`` is the fraction of the targeted numbers that stays.
    """

    lines: tuple[Line, ...]
    keep: float
    notes: tuple[str, ...] = field(default=())

    def __iter__(self) -> Iterator[Line]:
        return iter(self.lines)

    def __len__(self) -> int:
        return len(self.lines)

    def __getitem__(self, name: str) -> Line:
        for line in self.lines:
            if name == line.name or name in line.weight.aliases:
                return line
        raise KeyError(name)

    @property
    def targeted(self) -> tuple[int, int]:
        """Stored numbers of the targeted weights, before and after."""
        lines = [line for line in self.lines if line.weight.chosen]
        return sum(line.before for line in lines), sum(line.after for line in lines)

    @property
    def kept(self) -> float:
        """Fraction of the targeted numbers that is still stored."""
        before, after = self.targeted
        return after / before

    def with_lines(self, lines: dict[str, Line]) -> "Table":
        """The table with some lines replaced, by name."""
        return replace(self, lines=tuple(lines.get(line.name, line) for line in self.lines))

    def __str__(self) -> str:
        before, after = self.targeted
        total = (
            f"targeted: {before:,} -> {after:,} stored numbers, "
            f"kept {self.kept:.4f} of {self.keep:g} asked"
        )
        return "\n".join([*map(_line, self.lines), total, *(f"note: {n}" for n in self.notes)])


def changed(weight: Weight, form: str, net: Network, bits: int) -> Line:
    """The line of a weight that becomes a network."""
    return Line(weight, "", cost(net, bits), form, (net,))


def decided(weight: Weight, chosen: Candidate, group: Sequence[Candidate]) -> Line:
    """The line of a weight for which a candidate of its group was chosen."""
    if chosen.network is None:
        reason = "protected" if weight.protected else "dense at this budget"
        return Line(weight, reason, weight.numbers)
    return Line(
        weight,
        "",
        chosen.numbers,
        chosen.format,
        chosen.terms,
        held_out=chosen.error**0.5,
        runner_up=runner_up(chosen, group),
        macs=chosen.macs,
        seconds=chosen.seconds or None,
    )


def runner_up(chosen: Candidate, group: Sequence[Candidate]) -> tuple[str, float] | None:
    """The next best format of a weight, and its error over the chosen one's at equal numbers.

    Between two ranks the error is interpolated. None where the chosen candidate has no error, or no
    other format has one at so few numbers.

    >>> from bondwise.choose.candidates import Group, candidates
    >>> from bondwise.choose.fitted import fitted
    >>> import torch
    >>> here = Group({"q": torch.arange(256.0).reshape(16, 16).sin()})
    >>> exact, others = candidates(here), list(fitted(here, formats=["mpo"], prefer="size"))
    >>> form, ratio = runner_up(others[0], [*exact, *others])
    >>> form, ratio > 0
    ('lowrank', True)
    """
    rivals: dict[str, list[tuple[int, float]]] = {}
    for c in group:
        if c.weight == chosen.weight and c.format not in ("dense", chosen.format):
            rivals.setdefault(c.format, []).append((c.numbers, c.error))
    found = [(_between(points, chosen.numbers), form) for form, points in rivals.items()]
    reached = [(value, form) for value, form in found if value is not None]
    if not reached or chosen.error <= 0:
        return None
    value, form = min(reached)
    return form, value / chosen.error


def _between(points: list[tuple[int, float]], numbers: int) -> float | None:
    """The error at so many numbers, on the line between the two nearest points."""
    below = max((p for p in points if p[0] <= numbers), default=None)
    above = min((p for p in points if p[0] > numbers), default=None)
    if below is None or above is None:
        return None if below is None else below[1]
    part = (numbers - below[0]) / (above[0] - below[0])
    return below[1] + part * (above[1] - below[1])


def block(name: str) -> str:
    """The repeated block that a parameter is in: its path up to the first number.

    >>> block("model.layers.3.self_attn.q_proj"), block("lm_head")
    ('model.layers.3', '')
    """
    parts = name.split(".")
    at = next((k for k, part in enumerate(parts) if part.isdigit()), None)
    return "" if at is None else ".".join(parts[: at + 1])


def _line(line: Line) -> str:
    shape = "x".join(map(str, line.weight.shape))
    start = f"{_shorten(line.name, 38):38} {shape:>12} "
    what, found = _becomes(line), "; ".join(_found(line))
    if len(start + what + found) + 2 <= WIDTH:
        return start + ", ".join(filter(None, (what, found)))
    return f"{start}{what},\n{found:>{WIDTH}}" if found else start + what


def _becomes(line: Line) -> str:
    if line.network is None:
        return f"left alone: {line.reason}"
    ranks = ",".join(map(str, line.network.bonds.values()))
    first = (line.format or "").partition(" + ")[0]
    terms = " + ".join([f"{first} {ranks}", *map(_words, line.beside)])
    return f"{terms}, {line.before:,} -> {line.after:,}"


def _words(kind: Kind) -> str:
    return f"{kind.count} {kind.kind}" if isinstance(kind, Placed) else kind.kind


def _term(term: Network | Kind) -> dict[str, Any]:
    """A term as plain data."""
    if isinstance(term, Kind):
        return term.spec()
    return {"kind": "network", "network": str(term), "sizes": dict(term.sizes)}


def _found(line: Line) -> Iterator[str]:
    """What is known of the errors."""
    error = line.error if line.held_out is None else line.held_out
    if error is not None:
        yield f"error {error:.3f}"
    if line.runner_up is not None:
        form, ratio = line.runner_up
        yield f"{form} would have {ratio:.3g} x its square"


def _shorten(name: str, width: int) -> str:
    return name if len(name) <= width else f"..{name[2 - width :]}"
