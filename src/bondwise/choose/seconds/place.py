"""Where a weight stands: all that its seconds depend on, beside the terms that it becomes."""

from dataclasses import dataclass
from typing import Any

from torch import nn

from bondwise.choose.kinds.kernels import Moves
from bondwise.layers.hosts.convolution import geometry_of
from bondwise.layers.hosts.registry import host_of, matrix_of
from bondwise.layers.prepare.measurement import Key, moving


@dataclass(frozen=True)
class Place:
    """A dense layer, as measurements know it.

    Attributes:
        host: the kind of module.
        shape: (out, in) of its matrix.
        dtype: of its numbers, "float32", ..
        moves: of a convolution, how it moves over which input; None for others.
        rows: that meet the matrix for each that is counted: more than one where samples are counted
            and each has many rows.
    """

    host: str
    shape: tuple[int, int]
    dtype: str
    moves: Moves | None = None
    rows: int = 1

    @classmethod
    def of(cls, module: nn.Module, moves: Moves | None = None, rows: int = 1) -> "Place":
        """That of a dense module.

        >>> Place.of(nn.Linear(4, 6)).words
        'linear 6 x 4, float32'
        """
        matrix = matrix_of(module)
        out, inp = matrix.shape
        dtype = str(matrix.dtype).removeprefix("torch.")
        return cls(host_of(module).name, (out, inp), dtype, moves, rows)

    @property
    def key(self) -> Key:
        """As `Measurement.place` has it."""
        geometry, size = ("", ()) if self.moves is None else _moves(self.moves)
        return self.host, self.shape, self.dtype, geometry, size

    @property
    def words(self) -> str:
        """As a sentence names it."""
        out, inp = self.shape
        geometry, size = ("", ()) if self.moves is None else _moves(self.moves)
        more = f", {geometry}, input {'x'.join(map(str, size))}" if geometry else ""
        return f"{self.host} {out} x {inp}, {self.dtype}{more}"


def _moves(moves: Moves) -> tuple[str, tuple[int, ...]]:
    return moving(moves.geometry), tuple(moves.size)


def movement(module: Any) -> str:
    """How a module moves, if it is a convolution; empty for others."""
    geometry = geometry_of(module)
    return "" if geometry is None else moving(geometry)
