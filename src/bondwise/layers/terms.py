"""Terms: the summands of a weight, each a frozen kind beside its numbers and their positions."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from bondwise.errors import ShapeError

Spec = dict[str, Any]
Places = tuple[Tensor, ...]


class Kind(ABC):
    """What a term is, without its tensors: frozen data, one class for each kind.

    Attributes:
        kind: its name in a checkpoint.
        shape: (out, in) of the weight.
        names: of the tensors of numbers, as a state dict has them.
        shapes: of these tensors.
        kept: length and dtype of each tensor of positions, as stored.
    """

    kind: ClassVar[str]
    shape: tuple[int, int]

    def __deepcopy__(self, memo: dict[int, Any]) -> "Kind":
        return self  # frozen, and every copy of a layer has it

    @property
    @abstractmethod
    def names(self) -> tuple[str, ...]:
        """Names of the tensors of numbers, as those of a layer's first term."""

    @property
    @abstractmethod
    def shapes(self) -> tuple[tuple[int, ...], ...]:
        """Shapes of these tensors."""

    @property
    def kept(self) -> tuple[tuple[int, torch.dtype], ...]:
        """Length and dtype of each tensor of positions; none here."""
        return ()

    def places(self, stored: "tuple[Tensor, ...]") -> Places:  # noqa: ARG002
        """Positions as they are used, from those stored, once they are known to be right.

        Raises:
            ShapeError: they repeat, are out of order, or lie outside.
        """
        return ()

    def stored(self, places: Places) -> tuple[Tensor, ...]:  # noqa: ARG002
        """Positions as they are stored, from those used."""
        return ()

    @abstractmethod
    def dense(self, numbers: tuple[Tensor, ...], places: Places) -> Tensor:
        """What it adds to the weight, out x in; differentiable in the numbers."""

    @abstractmethod
    def apply(
        self, numbers: tuple[Tensor, ...], places: Places, x: Tensor, bias: Tensor | None = None
    ) -> Tensor:
        """What it adds to the outputs, (*batch, in) -> (*batch, out)."""

    def rows(self, numbers: tuple[Tensor, ...], places: Places, ids: Tensor) -> Tensor:
        """What it adds to some rows of the weight: ids -> (*ids.shape, in)."""
        return F.embedding(ids, self.dense(numbers, places))

    @abstractmethod
    def macs(self, rows: int) -> int:
        """Multiplications for so many rows of input."""

    @abstractmethod
    def spec(self) -> Spec:
        """All but the tensors, as plain JSON."""


@dataclass(frozen=True, eq=False)
class Term:
    """One summand of a weight.

    Attributes:
        kind: what it is.
        numbers: the tensors that are trained, in the order of `Kind.names`.
        places: positions as they are used; None until they are read from a checkpoint.

    Raises:
        ShapeError: tensors of other shapes than the kind's.
    """

    kind: Kind
    numbers: tuple[Tensor, ...]
    places: Places | None = ()

    def __post_init__(self) -> None:
        shapes = tuple(tuple(t.shape) for t in self.numbers)
        if shapes != self.kind.shapes:
            raise ShapeError(
                f"{type(self.kind).__name__} takes tensors of shapes {list(self.kind.shapes)}; "
                f"{list(shapes)} came."
            )

    def dense(self) -> Tensor:
        """What it adds to the weight, out x in."""
        assert self.places is not None
        return self.kind.dense(self.numbers, self.places)


def empty(kind: Kind, device: Any = None, dtype: torch.dtype | None = None) -> Term:
    """A term to be filled from a checkpoint; its positions are not known yet."""
    numbers = tuple(torch.empty(shape, device=device, dtype=dtype) for shape in kind.shapes)
    return Term(kind, numbers, None if kind.kept else ())


def stored_bits(kind: Kind) -> int:
    """Bits that its positions take, as stored."""
    return sum(8 * length * dtype.itemsize for length, dtype in kind.kept)
