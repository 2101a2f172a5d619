"""A tree of products as arithmetic: permutations, shapes and one matmul for each step."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import inf, prod
from typing import Literal

from bondwise.compute.search import Names, Pair, search

BATCH = "*"  # the name of the batch index; no index of a network can be called so
ANY = -1  # its size in a shape: whatever comes, 0 included

Kind = Literal["linear", "bmm", "mul"]


@dataclass(frozen=True, slots=True)
class View:
    """How an operand enters: the axes summed away, the order of the others, their new shape."""

    sums: tuple[int, ...]
    order: tuple[int, ...]  # empty: as they are
    shape: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Step:
    """One product: ``linear`` (M K, N K), ``bmm`` (G M K, G N K) or ``mul`` (G M 1, G 1 N).

    Operands are counted as they come, the products of earlier steps after them. The result has
    the axes (G, M, N), opened up to ``shape``. ``over`` are the indices that are summed (K),
    ``extents`` the sizes (G, M, N, K) at the batch that the order was sought for.
    """

    left: int
    right: int
    kind: Kind
    left_view: View | None  # None: as it is
    right_view: View | None
    shape: tuple[int, ...]
    over: Names
    extents: tuple[int, int, int, int]

    @property
    def macs(self) -> int:
        """Multiplications: the product of the sizes of all distinct indices."""
        return prod(self.extents)


@dataclass(frozen=True, slots=True)
class Recipe:
    """Steps, and how the last value (or the only operand) becomes the result."""

    steps: tuple[Step, ...]
    result: View | None

    @property
    def macs(self) -> int:
        """Multiplications of all steps, for the whole batch."""
        return sum(step.macs for step in self.steps)


def recipe(inputs: Sequence[Names], output: Names, sizes: dict[str, int]) -> Recipe:
    """The cheapest order of an einsum, lowered to matmuls.

    An index on one operand only and not in the output is summed away first, which counts as no
    multiplication. Every other index of the einsum may sit on any number of operands.

    >>> sizes = {"o": 8, "a": 2, "i": 8, "*": 64}
    >>> found = recipe([("o", "a"), ("a", "i"), ("*", "i")], ("*", "o"), sizes)
    >>> [(step.left, step.right, step.kind, step.shape) for step in found.steps], found.macs
    ([(2, 1, 'linear', (-1, 2)), (3, 0, 'linear', (-1, 8))], 2048)
    """
    values = [_without_lonely(k, inputs, output) for k in range(len(inputs))]
    held = [tuple(names) for names in inputs]  # before lonely indices are summed away
    pairs = search(values, output, sizes)
    ends = _ends(values, output, pairs)
    steps: list[Step] = []
    for at, pair in enumerate(pairs):
        left, right = sorted(pair, key=lambda k: _weight(values[k], sizes), reverse=True)
        product = _Product(values[left], values[right], at, ends, sizes)
        steps.append(product.step(left, right, held[left], held[right]))
        values.append(product.result)
        held.append(product.result)
    return Recipe(tuple(steps), _view(held[-1], output, _shape(output, sizes), sizes))


@dataclass(frozen=True, slots=True)
class _Product:
    """Indices of a product by their part: shared and kept (G), one-sided (M, N), summed (K)."""

    left: Names
    right: Names
    at: int
    ends: dict[str, float]
    sizes: dict[str, int]

    @property
    def shared(self) -> Names:
        return tuple(n for n in self.left if n in self.right and self.ends[n] > self.at)

    @property
    def summed(self) -> Names:
        return tuple(n for n in self.left if self.ends[n] == self.at)

    @property
    def only_left(self) -> Names:
        names = tuple(n for n in self.left if n not in self.right)
        return names if BATCH in self.left else self._soonest_last(names)

    @property
    def only_right(self) -> Names:
        return self._soonest_last(tuple(n for n in self.right if n not in self.left))

    @property
    def result(self) -> Names:
        return (*self.shared, *self.only_left, *self.only_right)

    def _soonest_last(self, names: Names) -> Names:
        # what is summed next stands last, where a matmul wants it; the side with the batch is large
        # and stays as it is, so that it need not be copied
        return tuple(sorted(names, key=lambda n: -self.ends[n]))

    def step(self, left: int, right: int, held_left: Names, held_right: Names) -> Step:
        g, m, n, k = self.shared, self.only_left, self.only_right, self.summed
        size = self._size
        kind: Kind = "mul" if not k else "bmm" if g else "linear"
        shapes = {
            "linear": ((size(m), size(k)), (size(n), size(k))),
            "bmm": ((size(g), size(m), size(k)), (size(g), size(n), size(k))),
            "mul": ((size(g), size(m), 1), (size(g), 1, size(n))),
        }[kind]
        return Step(
            left,
            right,
            kind,
            _view(held_left, (*g, *m, *k), shapes[0], self.sizes),
            _view(held_right, (*g, *n, *k), shapes[1], self.sizes),
            _shape(self.result, self.sizes),
            k,
            (self._extent(g), self._extent(m), self._extent(n), self._extent(k)),
        )

    def _size(self, names: Names) -> int:
        return ANY if BATCH in names else self._extent(names)

    def _extent(self, names: Names) -> int:
        return prod(self.sizes[name] for name in names)


def _without_lonely(k: int, inputs: Sequence[Names], output: Names) -> Names:
    needed = {*output}.union(*(names for j, names in enumerate(inputs) if j != k))
    return tuple(name for name in inputs[k] if name in needed)


def _ends(inputs: Sequence[Names], output: Names, pairs: Sequence[Pair]) -> dict[str, float]:
    """The step at which each index is summed; those of the output never are."""
    values = [set(names) for names in inputs]
    alive = set(range(len(inputs)))
    ends: dict[str, float] = dict.fromkeys(output, inf)
    for at, (a, b) in enumerate(pairs):
        alive -= {a, b}
        both = values[a] | values[b]
        gone = both.difference(output, *(values[k] for k in alive))
        ends.update(dict.fromkeys(gone, at))
        alive.add(len(values))
        values.append(both - gone)
    return ends


def _weight(names: Names, sizes: dict[str, int]) -> tuple[bool, int]:
    return BATCH in names, prod(sizes[name] for name in names)


def _view(held: Names, wanted: Names, shape: tuple[int, ...], sizes: dict[str, int]) -> View | None:
    if held == wanted and shape == _shape(held, sizes):
        return None
    sums = tuple(axis for axis, name in enumerate(held) if name not in wanted)
    left = [name for name in held if name in wanted]
    order = tuple(left.index(name) for name in wanted)
    return View(sums, () if order == tuple(range(len(left))) else order, shape)


def _shape(names: Names, sizes: dict[str, int]) -> tuple[int, ...]:
    return tuple(ANY if name == BATCH else sizes[name] for name in names)
