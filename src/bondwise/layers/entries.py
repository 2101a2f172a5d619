"""Entries of a weight that are kept exactly: columns, rows, single ones, or all of them."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from bondwise.errors import ShapeError
from bondwise.gauge.pivots import pack, packed, unpack
from bondwise.layers.terms import Kind, Places, Spec, Term

_LARGEST = 2**31  # positions are stored in at most int32

Numbers = tuple[Tensor, ...]


@dataclass(frozen=True)
class Dense(Kind):
    """The whole weight: ``y = x W^T``. Its parameter is ``t0_dense`` in the first term of a layer.

    Attributes:
        shape: (out, in).
    """

    kind: ClassVar[str] = "dense"
    shape: tuple[int, int]

    @property
    def names(self) -> tuple[str, ...]:
        """Never "weight", which is made when it is read."""
        return ("dense",)

    @property
    def shapes(self) -> tuple[tuple[int, ...], ...]:
        """Of the weight."""
        return (self.shape,)

    def dense(self, numbers: Numbers, places: Places) -> Tensor:  # noqa: ARG002
        """Itself."""
        return numbers[0]

    def apply(
        self,
        numbers: Numbers,
        places: Places,  # noqa: ARG002
        x: Tensor,
        bias: Tensor | None = None,
    ) -> Tensor:
        """One product."""
        return F.linear(x, numbers[0], bias)

    def macs(self, rows: int) -> int:
        """As many as it has entries, for each row of input."""
        return rows * self.shape[0] * self.shape[1]

    def spec(self) -> Spec:
        """Its shape."""
        return {"kind": self.kind, "shape": list(self.shape)}


@dataclass(frozen=True)
class Placed(Kind):
    """Entries at stated places, `count` of them out of `total`, each once, in ascending order.

    Stored are the positions (int32), or one bit for each place where that is less.

    Attributes:
        count: how many columns, rows or single entries.
        shape: (out, in) of the weight.
    """

    count: int
    shape: tuple[int, int]

    @property
    def names(self) -> tuple[str, ...]:
        """One tensor."""
        return ("entries",)

    @property
    def total(self) -> int:
        """How many places there are."""
        raise NotImplementedError

    @property
    def kept(self) -> tuple[tuple[int, torch.dtype], ...]:
        """Length and dtype of the positions."""
        return (packed(self.count, self.total),)

    def places(self, stored: tuple[Tensor, ...]) -> Places:
        """Ascending positions (int64).

        Raises:
            ShapeError: they repeat, are out of order, or lie outside.
        """
        found = unpack(stored[0], self.total).nonzero().flatten()
        self.check(found)
        return (found,)

    def stored(self, places: Places) -> tuple[Tensor, ...]:
        """Positions as they are stored."""
        return (pack(places[0], self.total),)

    def check(self, positions: Tensor) -> None:
        """Refuse positions that are not so many, sorted, distinct and inside.

        Raises:
            ShapeError: saying what came.
        """
        whole = not positions.is_floating_point() and positions.dtype != torch.bool
        if positions.ndim != 1 or not whole or len(positions) != self.count or not self.count:
            raise ShapeError(
                f"Positions of shape {tuple(positions.shape)} and {positions.dtype} came as "
                f"{self.kind}; write {self.count or 'one or more'} whole numbers in one dimension."
            )
        rising = bool((positions[1:] > positions[:-1]).all())
        if not rising or int(positions[0]) < 0 or int(positions[-1]) >= self.total:
            raise ShapeError(
                f"Positions {positions[:3].tolist()}.. came as {self.kind} of a weight "
                f"{self.shape[0]} x {self.shape[1]}; write each once, in ascending order, from 0 "
                f"to {self.total - 1}."
            )

    def spec(self) -> Spec:
        """Its count and shape."""
        return {"kind": self.kind, "count": self.count, "shape": list(self.shape)}


@dataclass(frozen=True)
class Columns(Placed):
    """Whole columns: ``y += x[.., positions] entries^T``, entries being out x count."""

    kind: ClassVar[str] = "columns"

    @property
    def shapes(self) -> tuple[tuple[int, ...], ...]:
        """(out, count)."""
        return ((self.shape[0], self.count),)

    @property
    def total(self) -> int:
        """The weight's columns."""
        return self.shape[1]

    def dense(self, numbers: Numbers, places: Places) -> Tensor:
        """Zero in all other columns."""
        (own,) = numbers
        return own.new_zeros(self.shape).index_add(1, places[0], own)

    def apply(
        self, numbers: Numbers, places: Places, x: Tensor, bias: Tensor | None = None
    ) -> Tensor:
        """A product with the inputs of the columns alone."""
        return F.linear(x.index_select(-1, places[0]), numbers[0], bias)

    def rows(self, numbers: Numbers, places: Places, ids: Tensor) -> Tensor:
        """Rows of the columns, zero elsewhere."""
        found = F.embedding(ids, numbers[0])
        return found.new_zeros(*ids.shape, self.shape[1]).index_add(-1, places[0], found)

    def macs(self, rows: int) -> int:
        """For each row of input as many as there are entries."""
        return rows * self.shape[0] * self.count


@dataclass(frozen=True)
class Rows(Placed):
    """Whole rows: ``y[.., positions] += x entries^T``, entries being count x in."""

    kind: ClassVar[str] = "rows"

    @property
    def shapes(self) -> tuple[tuple[int, ...], ...]:
        """(count, in)."""
        return ((self.count, self.shape[1]),)

    @property
    def total(self) -> int:
        """The weight's rows."""
        return self.shape[0]

    def dense(self, numbers: Numbers, places: Places) -> Tensor:
        """Zero in all other rows."""
        (own,) = numbers
        return own.new_zeros(self.shape).index_add(0, places[0], own)

    def apply(
        self, numbers: Numbers, places: Places, x: Tensor, bias: Tensor | None = None
    ) -> Tensor:
        """A product that gives some of the outputs."""
        found = F.linear(x, numbers[0])
        y = found.new_zeros(*x.shape[:-1], self.shape[0]).index_add(-1, places[0], found)
        return y if bias is None else y + bias.to(y.dtype)

    def macs(self, rows: int) -> int:
        """For each row of input as many as there are entries."""
        return rows * self.count * self.shape[1]


@dataclass(frozen=True)
class Entries(Placed):
    """Single entries, at positions ``row * in + column``.

    As built, the weight is made whole for a product: they save numbers, not multiplications.
    """

    kind: ClassVar[str] = "entries"

    @property
    def shapes(self) -> tuple[tuple[int, ...], ...]:
        """(count,)."""
        return ((self.count,),)

    @property
    def total(self) -> int:
        """All entries of the weight."""
        return self.shape[0] * self.shape[1]

    def check(self, positions: Tensor) -> None:
        """As for all, and not of a weight that is too large.

        Raises:
            ShapeError: saying what came.
        """
        if self.total > _LARGEST:
            raise ShapeError(
                f"Single entries of a weight of {self.total} came; their positions fit up to "
                f"{_LARGEST}: keep whole columns."
            )
        super().check(positions)

    def dense(self, numbers: Numbers, places: Places) -> Tensor:
        """Zero elsewhere."""
        (own,) = numbers
        return own.new_zeros(self.total).index_add(0, places[0], own).view(self.shape)

    def apply(
        self, numbers: Numbers, places: Places, x: Tensor, bias: Tensor | None = None
    ) -> Tensor:
        """One product with the weight made whole."""
        return F.linear(x, self.dense(numbers, places), bias)

    def macs(self, rows: int) -> int:
        """As many as dense."""
        return rows * self.total


def dense(weight: Tensor) -> Term:
    """A dense term, out x in.

    >>> dense(torch.eye(2)).kind
    Dense(shape=(2, 2))
    """
    return Term(Dense(_matrix(weight)), (weight,))


def columns(positions: Any, values: Any, shape: tuple[int, int]) -> Term:
    """Columns of a weight of a shape (out, in): positions (k,), ascending; values out x k.

    Raises:
        ShapeError: positions that are no ascending columns, or not one column of values each.

    >>> columns(torch.tensor([0, 2]), torch.tensor([[1.0, 2.0], [3.0, 4.0]]), (2, 3)).dense()
    tensor([[1., 0., 2.],
            [3., 0., 4.]])
    """
    return _placed(Columns, positions, values, shape)


def rows(positions: Any, values: Any, shape: tuple[int, int]) -> Term:
    """Rows of a weight of a shape (out, in): positions (k,), ascending; values k x in.

    Raises:
        ShapeError: positions that are no ascending rows, or not one row of values each.

    >>> rows(torch.tensor([1]), torch.tensor([[1.0, 2.0]]), (2, 2)).dense()
    tensor([[0., 0.],
            [1., 2.]])
    """
    return _placed(Rows, positions, values, shape)


def entries(positions: Any, values: Any, shape: tuple[int, int]) -> Term:
    """Single entries of a weight of a shape (out, in).

    Args:
        positions: (k,), ``row * in + column``, ascending.
        values: (k,).
        shape: (out, in).

    Raises:
        ShapeError: positions that are no ascending entries, or not one value each.

    >>> entries(torch.tensor([1, 5]), torch.tensor([2.0, 3.0]), (2, 3)).dense()
    tensor([[0., 2., 0.],
            [0., 0., 3.]])
    """
    return _placed(Entries, positions, values, shape)


def _placed(
    make: Callable[[int, tuple[int, int]], Placed],
    given: Any,
    numbers: Any,
    shape: tuple[int, int],
) -> Term:
    positions, values = torch.as_tensor(given), torch.as_tensor(numbers)
    kind = make(positions.numel(), (int(shape[0]), int(shape[1])))
    kind.check(positions)
    return Term(kind, (values,), (positions.long().clone(),))


def _matrix(weight: Tensor) -> tuple[int, int]:
    if weight.ndim != 2:
        raise ShapeError(f"A weight of shape {tuple(weight.shape)} came; write it as out x in.")
    return weight.shape[0], weight.shape[1]
