"""A tree of products as arithmetic: permutations, shapes and one matmul for each step."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise, permutations
from math import inf, prod

from bondwise.compute import layouts
from bondwise.compute.search import Names, Pair, search
from bondwise.compute.steps import BATCH, Kind, Program, Step, shape_of, squeezed, view

ORDERS = 24  # orders of new indices that are looked at: all, up to four
KEPT = 12  # orders of a value that are followed on, the cheapest


def program(
    inputs: Sequence[Names],
    output: Names,
    sizes: dict[str, int],
    pairs: Sequence[Pair] | None = None,
    copying: float = 1.0,
) -> Program:
    """An einsum as matmuls: in the cheapest order, or in that of the given pairs.

    An index on one operand only and not in the output is summed away first, which counts as no
    multiplication. Every other index of the einsum may sit on any number of operands. Products
    without the batch come first: nothing of the input is in them. The others are the *path* of the
    input. Each of its values may lie in memory in several orders; those that cost least are chosen
    along the whole path (`bondwise.compute.layouts`), where a copy costs ``copying`` times what is
    stated there.

    >>> sizes = {"o": 8, "a": 2, "i": 8, "*": 64}
    >>> found = program([("o", "a"), ("a", "i"), ("*", "i")], ("*", "o"), sizes)
    >>> [(step.left, step.right, step.kind, step.shape) for step in found.steps], found.macs
    ([(2, 1, 'linear', (-1, 2)), (3, 0, 'linear', (-1, 8))], 2048)
    """
    values = operands(inputs, output, sizes)
    pairs = search(values, squeezed(output, sizes), sizes) if pairs is None else pairs
    return _Tree(tuple(inputs), tuple(values), output, sizes).lowered(pairs, copying)


def operands(inputs: Sequence[Names], output: Names, sizes: dict[str, int]) -> list[Names]:
    """What is left to multiply: indices larger than 1 that another operand or the output has."""
    left = list[Names]()
    for k, names in enumerate(inputs):
        needed = {*output}.union(*(other for j, other in enumerate(inputs) if j != k))
        left.append(squeezed(tuple(name for name in names if name in needed), sizes))
    return left


@dataclass(frozen=True, eq=False)
class _Tree:
    """An einsum whose products are to be lowered."""

    inputs: tuple[Names, ...]  # before lonely indices are summed away
    values: tuple[Names, ...]
    output: Names
    sizes: dict[str, int]

    def lowered(self, pairs: Sequence[Pair], copying: float) -> Program:
        pairs = self._weights_first(pairs)
        one_path = sum(BATCH in names for names in self.inputs) == 1
        last = ends(self.values, self.output, pairs)
        values, held = list(self.values), list(self.inputs)
        steps: list[Step] = []
        for at, pair in enumerate(pairs):
            left, right = sorted(pair, key=lambda k: self._weight(values[k]), reverse=True)
            product = _Product(values[left], values[right], at, last, self.sizes)
            if BATCH in product.left and one_path:
                path = _Path(self, pairs[at:], at, last, values, held, copying)
                return Program((*steps, *path.steps), path.result, self.sizes[BATCH])
            steps.append(product.step(left, right, held[left], held[right]))
            values.append(product.result)
            held.append(product.result)
        return Program(tuple(steps), view(held[-1], self.output, self.sizes), self.sizes[BATCH])

    def _weights_first(self, pairs: Sequence[Pair]) -> list[Pair]:
        """The same tree, its products without the batch before the others."""
        count = len(self.inputs)
        batched = [BATCH in names for names in self.inputs]
        for a, b in pairs:
            batched.append(batched[a] or batched[b])
        order = sorted(range(len(pairs)), key=lambda at: batched[count + at])
        place = {count + at: count + new for new, at in enumerate(order)}
        return [
            (place.get(pairs[at][0], pairs[at][0]), place.get(pairs[at][1], pairs[at][1]))
            for at in order
        ]

    def _weight(self, names: Names) -> tuple[bool, int]:
        return BATCH in names, prod(self.sizes[name] for name in names)


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
        return tuple(n for n in self.left if n not in self.right)

    @property
    def only_right(self) -> Names:
        # what is summed next stands last, where a matmul wants it
        return tuple(
            sorted((n for n in self.right if n not in self.left), key=lambda n: -self.ends[n])
        )

    @property
    def result(self) -> Names:
        return (*self.shared, *self.only_left, *self.only_right)

    def step(self, left: int, right: int, held_left: Names, held_right: Names) -> Step:
        return self.lowered(left, right, held_left, held_right, self.only_right)

    def lowered(self, left: int, right: int, held: Names, held_right: Names, n: Names) -> Step:
        """The product as one matmul whose new indices have the order ``n``."""
        g, m, k = self.shared, self.only_left, self.summed
        kind: Kind = "mul" if not k else "bmm" if g else "linear"
        shapes = {
            "linear": ((m, k), (n, k)),
            "bmm": ((g, m, k), (g, n, k)),
            "mul": ((g, m, ()), (g, (), n)),
        }[kind]
        return Step(
            left,
            right,
            kind,
            view(held, (*g, *m, *k), self.sizes, shapes[0]),
            view(held_right, (*g, *n, *k), self.sizes, shapes[1]),
            shape_of((*g, *m, *n), self.sizes),
            k,
            (self._extent(g), self._extent(m), self._extent(n), self._extent(k)),
            0 if _lies(held, (g, m, k), self.sizes) else self._extent(held),
            self._grows(g, m),
        )

    def pushed(self, left: int, right: int, held: Names, held_right: Names, n: Names) -> Step:
        """The product in the middle: what is summed lies between two other groups of indices."""
        k, (before, after) = self.summed, self.around
        return Step(
            left,
            right,
            "push",
            view(held, (*before, *k, *after), self.sizes, (before, k, after)),
            view(held_right, (*n, *k), self.sizes, (n, k)),
            shape_of((*before, *n, *after), self.sizes),
            k,
            (self._extent(before), self._extent(after), self._extent(n), self._extent(k)),
            0,
            self._grows(before, after),
        )

    @property
    def around(self) -> tuple[Names, Names]:
        """What lies before and after the summed indices."""
        at = [self.left.index(name) for name in self.summed]
        return self.left[: at[0]], self.left[at[-1] + 1 :]

    @property
    def pushes(self) -> bool:
        """Whether what is summed is one piece with something behind it, and nothing is shared."""
        at = [self.left.index(name) for name in self.summed]
        if not at or self.shared:
            return False
        return at == list(range(at[0], at[-1] + 1)) and at[-1] + 1 < len(self.left)

    def _extent(self, names: Names) -> int:
        return prod(self.sizes[name] for name in names)

    def _grows(self, *groups: Names) -> int | None:
        return next((k for k, names in enumerate(groups) if BATCH in names), None)


class _Path:
    """The products that the input goes through, in the orders that cost least altogether."""

    def __init__(
        self,
        tree: _Tree,
        pairs: Sequence[Pair],
        first: int,
        ends: dict[str, float],
        values: Sequence[Names],
        held: Sequence[Names],
        copying: float,
    ) -> None:
        self.tree, self.ends, self.copying = tree, ends, copying
        at = next(k for k in pairs[0] if BATCH in values[k])
        raw = held[at]  # the input as it comes, with its indices of size 1
        found: dict[Names, tuple[float, tuple[Step, ...]]] = {values[at]: (0.0, ())}
        for offset, pair in enumerate(pairs):
            (other,) = (k for k in pair if k != at)
            after: dict[Names, tuple[float, tuple[Step, ...]]] = {}
            for lies, (cost, steps) in found.items():
                product = _Product(lies, values[other], first + offset, ends, tree.sizes)
                given = lies if offset else raw
                for step, result in self._ways(product, at, other, given, held[other]):
                    best = after.get(result, (inf, ()))
                    whole = cost + self._cost(step)
                    if whole < best[0]:
                        after[result] = (whole, (*steps, step))
            kept = KEPT if offset + 1 < len(pairs) else None  # of the last, one lies as it should
            found = dict(sorted(after.items(), key=lambda item: item[1][0])[:kept])
            at = len(values) + offset
        last = min(found, key=lambda names: found[names][0] + self._last(names))
        self.steps = found[last][1]
        end = view(last, tree.output, tree.sizes)
        self.result = end if end and end.order else None  # else it lies as it should

    def _ways(
        self, product: _Product, left: int, right: int, held: Names, held_right: Names
    ) -> Iterator[tuple[Step, Names]]:
        g, m = product.shared, product.only_left
        first = product.only_right
        orders = permutations(first) if prod(range(1, len(first) + 1)) <= ORDERS else [first]
        for n in orders:
            yield product.lowered(left, right, held, held_right, n), (*g, *m, *n)
            if product.pushes:
                before, after = product.around
                yield product.pushed(left, right, held, held_right, n), (*before, *n, *after)

    def _cost(self, step: Step) -> float:
        copy = self.copying * layouts.copied(step.moved) if step.moved else 0.0
        return copy + layouts.product(step.extents)

    def _last(self, held: Names) -> float:
        if held == squeezed(self.tree.output, self.tree.sizes):
            return 0.0
        return self.copying * layouts.copied(prod(self.tree.sizes[name] for name in held))


def ends(inputs: Sequence[Names], output: Names, pairs: Sequence[Pair]) -> dict[str, float]:
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


def _lies(held: Names, groups: Sequence[Names], sizes: dict[str, int]) -> bool:
    """Whether a contiguous value has the groups as strided axes that a matmul takes as they are."""
    held = squeezed(held, sizes)
    groups = [group for group in groups if group]
    places = [[held.index(name) for name in group] for group in groups]
    if any(b != a + 1 for place in places for a, b in pairwise(place)):
        return False
    last = len(held) - 1  # one of the two axes of the matrix is the fastest
    return not held or any(place[-1] == last for place in places[-2:])
