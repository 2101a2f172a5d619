"""The matmuls that an einsum is lowered to, as plain data, and as a table of 80 columns."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import prod
from textwrap import fill, shorten
from typing import Literal

from bondwise.compute.search import Names
from bondwise.network.network import Network

BATCH = "*"  # the name of the batch index; no index of a network can be called so
ANY = -1  # its size in a shape: whatever comes, 0 included
WIDTH = 80

Kind = Literal["linear", "push", "bmm", "mul"]


@dataclass(frozen=True, slots=True)
class View:
    """How an operand enters: the axes summed away, the order of the others, their new shape."""

    sums: tuple[int, ...]
    order: tuple[int, ...]  # empty: as they are
    shape: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Step:
    """One product of two values, which come as matrices.

    - ``linear``: (M K), (N K) -> (M N)
    - ``push``: (G M K), (N K) -> (G N M): a matrix that multiplies in the middle, as it lies
    - ``bmm``: (G M K), (G N K) -> (G M N)
    - ``mul``: (G M 1), (G 1 N) -> (G M N)

    Operands are counted as they come, the products of earlier steps after them. The result is
    opened up to ``shape``. ``over`` are the indices that are summed (K), ``extents`` the sizes
    (G, M, N, K) at the batch that the order was sought for, and ``moved`` the numbers that the left
    operand copies into another order, at that batch.
    """

    left: int
    right: int
    kind: Kind
    left_view: View | None  # None: as it is
    right_view: View | None
    shape: tuple[int, ...]
    over: Names
    extents: tuple[int, int, int, int]
    moved: int = 0
    grows: int | None = None  # which of G and M grows with the batch; None for weights alone

    @property
    def macs(self) -> int:
        """Multiplications: the product of the sizes of all distinct indices."""
        return prod(self.extents)

    @property
    def numbers(self) -> int:
        """Numbers of the result."""
        g, m, n, _ = self.extents
        return g * m * n

    def resized(self, batch: int, rows: int) -> "Step":
        """The step with so many rows of the batch in place of those that it has."""
        if self.grows is None:
            return self
        g, m, n, k = self.extents
        extents = (g // batch * rows, m, n, k) if self.grows == 0 else (g, m // batch * rows, n, k)
        return replace(self, extents=extents, moved=self.moved // batch * rows)


@dataclass(frozen=True, slots=True)
class Program:
    """Steps, and how the last value (or the only operand) becomes the result.

    It runs any batch; ``batch`` is the one that the sizes in it are for.
    """

    steps: tuple[Step, ...]
    result: View | None
    batch: int

    @property
    def macs(self) -> int:
        """Multiplications of all steps, for the whole batch."""
        return sum(step.macs for step in self.steps)

    @property
    def path(self) -> tuple[Step, ...]:
        """The products that the batch goes through."""
        return tuple(step for step in self.steps if step.grows is not None)

    @property
    def width(self) -> int:
        """Numbers of the largest value on the path, for each row of the batch."""
        return max(step.numbers // self.batch for step in self.path)

    def resized(self, rows: int) -> "Program":
        """The same with the sizes at another batch."""
        steps = tuple(step.resized(self.batch, rows) for step in self.steps)
        return replace(self, steps=steps, batch=rows)


def squeezed(names: Names, sizes: dict[str, int]) -> Names:
    """Without the indices of size 1, which no product needs; the batch always stays."""
    return tuple(name for name in names if sizes[name] > 1 or name == BATCH)


def view(
    held: Names,
    wanted: Names,
    sizes: dict[str, int],
    groups: Sequence[Names] | None = None,
) -> View | None:
    """From the indices that a value has to those wanted, each group of them as one axis."""
    shape = shape_of(wanted, sizes) if groups is None else tuple(size_of(g, sizes) for g in groups)
    if held == wanted and shape == shape_of(held, sizes):
        return None
    sums = tuple(axis for axis, name in enumerate(held) if name not in wanted and sizes[name] > 1)
    left = [name for axis, name in enumerate(held) if axis not in sums]
    ones = [axis for axis, name in enumerate(left) if name not in wanted]
    order = (*ones, *(left.index(name) for name in wanted if name in left))
    return View(sums, () if order == tuple(range(len(left))) else order, shape)


def shape_of(names: Names, sizes: dict[str, int]) -> tuple[int, ...]:
    """Sizes of the axes; that of the batch is open."""
    return tuple(size_of((name,), sizes) for name in names)


def size_of(names: Names, sizes: dict[str, int]) -> int:
    """Numbers along some axes taken as one."""
    return ANY if BATCH in names else prod(sizes[name] for name in names)


def table(
    net: Network, batch: int, goal: str, steps: Sequence[Step], chunk: int | None = None
) -> str:
    """One line a step: its operands, the matrices at the planned batch, and its multiplications."""
    names = [*(f"core_{k}" for k in range(len(net.cores))), "x"]
    names += [f"t{k}" for k in range(1, len(steps))] + ["y"]
    at_a_time = "" if chunk is None else f", {chunk} rows at a time"
    lines = [fill(str(net), WIDTH), f"planned for batch {batch}, goal {goal}{at_a_time}", ""]
    lines.append(f"{'product':<22} {'as':<6} {'matrices':<22} {'over':<10} {'macs':>16}")
    for step, result in zip(steps, names[len(net.cores) + 1 :], strict=True):
        product = f"{result} = {names[step.left]} {names[step.right]}"
        over = shorten(" ".join(step.over), 10, placeholder="..")
        lines.append(
            f"{product:<22} {step.kind:<6} {_matrices(step):<22} {over:<10} {step.macs:>16,}"
        )
    macs, dense = sum(step.macs for step in steps), batch * prod(net.shape)
    return "\n".join([*lines, f"total {macs:,} macs, {macs / dense:.3g} of dense ({dense:,})"])


def _matrices(step: Step) -> str:
    g, m, n, k = step.extents
    if step.kind == "push":
        m, n = n, m
    return f"{g} of " * (g > 1) + f"{m}x{k} {k}x{n}"
