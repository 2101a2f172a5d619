"""A remainder: a few entries of a weight that are kept exactly, beside its network."""

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from bondwise.errors import ShapeError

_LARGEST = 2**31  # positions are stored in int32


@dataclass(frozen=True, eq=False)
class Columns:
    """Whole columns of a weight: ``y += x[.., positions] values^T``.

    Attributes:
        positions: k columns, ascending, of any integer dtype; stored as int32.
        values: out x k.

    >>> R = Columns(torch.tensor([0, 2]), torch.tensor([[1.0, 2.0], [3.0, 4.0]]))
    >>> R.add_to(torch.zeros(2, 3))
    tensor([[1., 0., 2.],
            [3., 0., 4.]])
    >>> R.apply(torch.tensor([10.0, 20.0, 30.0]), 2)
    tensor([ 70., 150.])
    """

    kind: ClassVar[str] = "columns"
    positions: Tensor
    values: Tensor

    @classmethod
    def empty(cls, count: int, shape: tuple[int, int], device: Any, dtype: Any) -> "Columns":
        """As many columns, to be filled from a checkpoint."""
        positions = torch.arange(count, device=device)
        return cls(positions, torch.empty(shape[0], count, device=device, dtype=dtype))

    def check(self, shape: tuple[int, int]) -> None:
        """Refuse what cannot be columns of a weight of this shape.

        Raises:
            ShapeError: positions that are not ascending columns, or not one column of values each.
        """
        count = _ascending(self.positions, shape[1], f"columns of a weight of {shape[1]}")
        if tuple(self.values.shape) != (shape[0], count):
            raise ShapeError(
                f"Values of shape {tuple(self.values.shape)} came for {count} columns of a weight "
                f"{shape[0]} x {shape[1]}; write ({shape[0]}, {count})."
            )

    def apply(self, x: Tensor, out: int) -> Tensor:  # noqa: ARG002
        """What they add to the outputs."""
        return F.linear(x.index_select(-1, self.positions), self.values)

    def add_to(self, weight: Tensor) -> Tensor:
        """The weight with them, out x in."""
        return weight.index_add(1, self.positions, self.values)


@dataclass(frozen=True, eq=False)
class Entries:
    """Single entries of a weight: ``y[row] += x[column] value`` for each.

    They are applied row by row, each a sum of weighted inputs, so that neither the dense weight nor
    a product for every entry is ever in memory.

    Attributes:
        positions: k times ``row * in + column``, ascending, of any integer dtype; stored as int32.
        values: k.

    >>> R = Entries(torch.tensor([1, 5]), torch.tensor([2.0, 3.0]))
    >>> R.add_to(torch.zeros(2, 3))
    tensor([[0., 2., 0.],
            [0., 0., 3.]])
    >>> R.apply(torch.tensor([10.0, 20.0, 30.0]), 2)
    tensor([40., 90.])
    """

    kind: ClassVar[str] = "entries"
    positions: Tensor
    values: Tensor

    @classmethod
    def empty(cls, count: int, shape: tuple[int, int], device: Any, dtype: Any) -> "Entries":
        """As many entries, to be filled from a checkpoint."""
        del shape
        positions = torch.arange(count, device=device)
        return cls(positions, torch.empty(count, device=device, dtype=dtype))

    def check(self, shape: tuple[int, int]) -> None:
        """Refuse what cannot be entries of a weight of this shape.

        Raises:
            ShapeError: positions that are not ascending entries, or not one value for each.
        """
        total = shape[0] * shape[1]
        if total > _LARGEST:
            raise ShapeError(
                f"Single entries of a weight of {total} came; their positions fit up to "
                f"{_LARGEST}: keep whole columns."
            )
        count = _ascending(self.positions, total, f"entries of a weight of {total}")
        if tuple(self.values.shape) != (count,):
            raise ShapeError(
                f"Values of shape {tuple(self.values.shape)} came for {count} entries; "
                f"write ({count},)."
            )

    def apply(self, x: Tensor, out: int) -> Tensor:
        """What they add to the outputs."""
        width = x.shape[-1]
        rows = torch.arange(out, device=x.device, dtype=torch.int64) * width
        starts = torch.searchsorted(self.positions.long(), rows)
        columns = self.positions.long() % width
        inputs = x.reshape(-1, width).T.contiguous()  # as it lies it would run ten times slower
        values = self.values.to(x.dtype)  # autocast casts F.linear, not this
        y = F.embedding_bag(columns, inputs, starts, mode="sum", per_sample_weights=values)
        return y.T.reshape(*x.shape[:-1], out)

    def add_to(self, weight: Tensor) -> Tensor:
        """The weight with them, out x in."""
        flat = weight.reshape(-1).index_add(0, self.positions, self.values)
        return flat.view(weight.shape)


Remainder = Columns | Entries
KINDS: dict[str, type[Columns] | type[Entries]] = {"columns": Columns, "entries": Entries}


def _ascending(positions: Tensor, count: int, what: str) -> int:
    """How many positions there are, once they are known to be distinct, sorted and inside."""
    if positions.ndim != 1 or positions.is_floating_point() or not len(positions):
        raise ShapeError(
            f"Positions of shape {tuple(positions.shape)} and {positions.dtype} came; "
            "write one or more whole numbers in one dimension."
        )
    if positions.is_meta:
        return len(positions)
    sorted_ = bool((positions[1:] > positions[:-1]).all())
    if not sorted_ or int(positions[0]) < 0 or int(positions[-1]) >= count:
        raise ShapeError(
            f"Positions {positions[:3].tolist()}.. came as {what}; write each once, in ascending "
            f"order, from 0 to {count - 1}."
        )
    return len(positions)
