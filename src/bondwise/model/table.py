"""The table of what will change or has changed: every parameter, from what to what, or why not."""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

from bondwise.model.ladder import cost
from bondwise.model.select import Weight
from bondwise.network.network import Network


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
    """

    weight: Weight
    reason: str
    after: int
    format: str | None = None
    network: Network | None = None
    error: float | None = None

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
    return f"{_shorten(row.name, 38):38} {shape:>12} {_becomes(row)}"


def _becomes(row: Row) -> str:
    if row.network is None:
        return f"left alone: {row.reason}"
    ranks = ",".join(map(str, row.network.bonds.values()))
    error = "" if row.error is None else f", error {row.error:.3f}"
    return f"{row.format} {ranks}, {row.before:,} -> {row.after:,}{error}"


def _shorten(name: str, width: int) -> str:
    return name if len(name) <= width else f"..{name[2 - width :]}"
