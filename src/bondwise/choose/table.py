"""The table of what will change or has changed: every parameter, from what to what, or why not."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from math import prod
from typing import Any

from bondwise.choose.candidates import Candidate
from bondwise.choose.ladder import cost
from bondwise.choose.rivals import runner_up
from bondwise.choose.select import Weight
from bondwise.network.network import Network

WIDTH = 100  # columns of a printed row


@dataclass(frozen=True)
class Row:
    """One parameter: left alone for a reason, or a network in place of a dense weight.

    Attributes:
        weight: what it was.
        reason: why it is left alone; empty where it changes.
        format: name of the format; None where it is left alone.
        network: what it becomes.
        after: numbers stored then.
        error: relative error of the fit, in the inputs' metric if there is one; None before it.
        held_out: the same on tokens that the fit did not see.
        runner_up: the next best format, and its squared error over this one's at equal numbers.
        macs: multiplications for one token.
        seconds: modelled, for a batch of 1 and of 256 tokens.
        remainder: dense columns kept beside the network.
        shared: names of the weights that it shares a core with.
    """

    weight: Weight
    reason: str
    after: int
    format: str | None = None
    network: Network | None = None
    error: float | None = None
    held_out: float | None = None
    runner_up: tuple[str, float] | None = None
    macs: int | None = None
    seconds: tuple[float, float] | None = None
    remainder: int = 0
    shared: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """Path of the module, or of the parameter."""
        return self.weight.name

    @property
    def before(self) -> int:
        """Numbers stored before."""
        return self.weight.numbers

    @property
    def changes(self) -> bool:
        """Whether it becomes a network."""
        return self.network is not None

    def as_dict(self) -> dict[str, Any]:
        """The row as plain data."""
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
            "remainder": self.remainder,
            "shared": list(self.shared),
            "block": block(self.name),
        }


@dataclass(frozen=True)
class Table:
    """All rows, the keep that was asked, and notes (patterns that match nothing, a budget missed).

    ``print(table)`` shows it; ``table.kept`` is the fraction of the targeted numbers that stays.
    """

    rows: tuple[Row, ...]
    keep: float
    notes: tuple[str, ...] = field(default=())

    def __iter__(self) -> Iterator[Row]:
        return iter(self.rows)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, name: str) -> Row:
        for row in self.rows:
            if name == row.name or name in row.weight.aliases:
                return row
        raise KeyError(name)

    @property
    def targeted(self) -> tuple[int, int]:
        """Stored numbers of the targeted weights, before and after."""
        rows = [row for row in self.rows if row.weight.chosen]
        return sum(row.before for row in rows), sum(row.after for row in rows)

    @property
    def kept(self) -> float:
        """Fraction of the targeted numbers that is still stored."""
        before, after = self.targeted
        return after / before

    def with_rows(self, rows: dict[str, Row]) -> "Table":
        """The table with some rows replaced, by name."""
        return replace(self, rows=tuple(rows.get(row.name, row) for row in self.rows))

    def __str__(self) -> str:
        before, after = self.targeted
        total = (
            f"targeted: {before:,} -> {after:,} stored numbers, "
            f"kept {self.kept:.4f} of {self.keep:g} asked"
        )
        return "\n".join([*map(_line, self.rows), total, *(f"note: {n}" for n in self.notes)])


def changed(weight: Weight, form: str, net: Network, bits: int) -> Row:
    """The row of a weight that becomes a network."""
    return Row(weight, "", cost(net, bits), form, net)


def decided(weight: Weight, chosen: Candidate, site: Sequence[Candidate]) -> Row:
    """The row of a weight for which a candidate of its site was chosen.

    What weights that share a core take is split in proportion to what each stored before.
    """
    if not chosen.networks:
        reason = "protected" if weight.protected else "dense at this budget"
        return Row(weight, reason, weight.numbers)
    at = chosen.weights.index(weight.name)
    sizes = [prod(net.shape) for net in chosen.networks]
    part = sizes[at] / sum(sizes)
    # each share ends where the next begins, so that together they are all
    ends = [chosen.numbers * sum(sizes[:k]) // sum(sizes) for k in (at, at + 1)]
    return Row(
        weight,
        "",
        ends[1] - ends[0],
        chosen.format,
        chosen.networks[at],
        held_out=chosen.errors[at] ** 0.5,
        runner_up=runner_up(chosen, weight.name, site),
        macs=round(chosen.macs * part),
        seconds=(chosen.seconds[0] * part, chosen.seconds[1] * part),
        remainder=chosen.remainder,
        shared=tuple(name for name in chosen.weights if name != weight.name),
    )


def block(name: str) -> str:
    """The repeated block that a parameter is in: its path up to the first number.

    >>> block("model.layers.3.self_attn.q_proj"), block("lm_head")
    ('model.layers.3', '')
    """
    parts = name.split(".")
    at = next((k for k, part in enumerate(parts) if part.isdigit()), None)
    return "" if at is None else ".".join(parts[: at + 1])


def _line(row: Row) -> str:
    shape = "x".join(map(str, row.weight.shape))
    start = f"{_shorten(row.name, 38):38} {shape:>12} "
    what, found = _becomes(row), "; ".join(_found(row))
    if len(start + what + found) + 2 <= WIDTH:
        return start + ", ".join(filter(None, (what, found)))
    return f"{start}{what},\n{found:>{WIDTH}}"


def _becomes(row: Row) -> str:
    if row.network is None:
        return f"left alone: {row.reason}"
    ranks = ",".join(map(str, row.network.bonds.values()))
    columns = f" + {row.remainder} columns" if row.remainder else ""
    return f"{row.format} {ranks}{columns}, {row.before:,} -> {row.after:,}"


def _found(row: Row) -> Iterator[str]:
    """What is known of the errors."""
    error = row.error if row.held_out is None else row.held_out
    if error is not None:
        yield f"error {error:.3f}"
    if row.runner_up is not None:
        form, ratio = row.runner_up
        yield f"{form} would have {ratio:.3g} x its square"


def _shorten(name: str, width: int) -> str:
    return name if len(name) <= width else f"..{name[2 - width :]}"
