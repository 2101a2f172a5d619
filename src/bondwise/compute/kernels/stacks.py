"""Which cores of a convolution to join, and in which order to apply them.

A dynamic programme over the cores that have been applied. Cores may be multiplied with each other
first: all of them, and the one step is the dense convolution.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cache
from itertools import combinations
from math import prod
from operator import itemgetter

from bondwise.compute.kernels.convolve import SIZE, Convolved, ConvPlan, convolution_macs
from bondwise.compute.kernels.geometry import Geometry, Sizes
from bondwise.compute.lower import program
from bondwise.compute.steps import BATCH, Program
from bondwise.errors import ShapeError
from bondwise.network.network import Network

EVERY = 5  # cores up to which any of them may be joined; above it two of them, or all that are left
FOLLOWED = 16  # sets of cores that are followed on, the cheapest
OTHERS = 4  # ways to the same set that are followed on, where more than the cheapest is asked for
LISTED = 6  # stacks that are offered
Names = tuple[str, ...]
Order = tuple[tuple[int, ...], ...]
"""Cores that are joined, step by step."""


@cache
def conv_plan(net: Network, geometry: Geometry, size: Sizes | None = None) -> ConvPlan:
    """The plan of a network for a convolution.

    Args:
        net: out x (in * kernel); its last column modes are the kernel's, or one is all of it.
        geometry: of the convolution; of groups, the first row and column mode is their index.
        size: of the input, one for each axis; `SIZE` each where it is not known.

    Raises:
        ShapeError: the network is not of such a convolution.
    """
    found = _Search(net, geometry, size or (SIZE,) * geometry.axes)
    return found.best()


@cache
def conv_plans(net: Network, geometry: Geometry, size: Sizes) -> tuple[ConvPlan, ...]:
    """Stacks of few multiplications where cores were joined beforehand, the cheapest first.

    The whole kernel as one step is not among them, nor what is dearer.

    Raises:
        ShapeError: the network is not of such a convolution.
    """
    return tuple(_Search(net, geometry, size, joined=True).listed())


def kernel_modes(net: Network, geometry: Geometry) -> dict[str, Sizes]:
    """The axes that each kernel mode stands for, by its name.

    Raises:
        ShapeError: the last column modes are not the kernel's, or the groups are not on both sides.
    """
    both = {index.name for index in net.rows} & {index.name for index in net.cols}
    groups = prod(net.sizes[name] for name in both)
    if groups != geometry.groups:
        raise ShapeError(
            f"A network '{net}' of {groups} groups came for a convolution of {geometry.groups}; "
            "write an index of that size that is open on both sides, as in "
            "'g o a, g a i y x -> (g o) (g i y x)'."
        )
    sizes = tuple(index.size for index in net.cols)
    names = [index.name for index in net.cols]
    if sizes[-geometry.axes :] == geometry.kernel and len(sizes) > geometry.axes:
        return {name: (a,) for a, name in enumerate(names[-geometry.axes :])}
    if sizes[-1] == geometry.taps and len(sizes) > 1 and geometry.axes > 1:
        return {names[-1]: tuple(range(geometry.axes))}
    if geometry.taps == 1:
        return {}
    shown, wanted = (between.join(map(str, geometry.kernel)) for between in (" x ", ", "))
    raise ShapeError(
        f"A network '{net}' with column modes {sizes} came for a kernel of {shown}; its last "
        f"column modes are the kernel's: write columns such as (.., {wanted})."
    )


class _Search:
    """The cheapest way to apply all cores, by a dynamic programme over those applied."""

    def __init__(
        self, net: Network, geometry: Geometry, size: Sizes, *, joined: bool = False
    ) -> None:
        self.net, self.geometry, self.size = net, geometry, size
        self.joined = joined  # beforehand, which then costs nothing
        self.names = net.names
        self.joining = dict[tuple[int, ...], int]()
        self.kernel = kernel_modes(net, geometry)
        self.open_rows = {index.name for index in net.rows}
        self.channels = tuple(i.name for i in net.cols if i.name not in self.kernel)
        self.holders = {name: set(places) for name, places in net.places.items()}
        self.all = frozenset(range(len(net.cores)))
        self.idle = self._idle()

    def _idle(self) -> tuple[int, Sizes]:
        """Axes without a kernel mode, and the core that moves along them: where least is left."""
        used = {axis for axes in self.kernel.values() for axis in axes}
        axes = tuple(a for a in range(self.geometry.axes) if a not in used)
        names = [i.name for i in self.net.rows] if self.geometry.transposed else self.channels
        return min(self.holders[names[-1]]), axes

    def best(self) -> ConvPlan:
        """The plan; among equals the one of fewest steps."""
        (macs, _), order = self._orders(1)[0]
        return self._lowered(order, macs)

    def listed(self) -> Iterator[ConvPlan]:
        """Plans of two steps and more, the cheapest first; none that is dearer than dense."""
        found = dict.fromkeys(
            shorter for _, order in self._orders(OTHERS) for shorter in _shortened(order)
        )
        priced = sorted((self._macs(order), len(order), order) for order in found if len(order) > 1)
        for macs, _, order in priced[:LISTED]:
            if macs < self.dense:
                yield self._lowered(order, macs)

    @property
    def dense(self) -> int:
        """Multiplications of the dense convolution."""
        out, inp = self.net.shape
        return convolution_macs(self.geometry, out, inp // self.geometry.taps, self.size)

    def _orders(self, count: int) -> list[tuple[tuple[int, int], Order]]:
        """The cheapest orders in which to apply all cores, with multiplications and steps."""
        found: dict[frozenset[int], list[tuple[tuple[int, int], Order]]] = {
            frozenset(): [((0, 0), ())]
        }
        for size in range(len(self.all)):
            reached = sorted((key for key in found if len(key) == size), key=lambda k: found[k][0])
            for done in reached[:FOLLOWED]:
                for some in self._next(done):
                    there = found.setdefault(done | set(some), [])
                    applied = self._applying(done, some)
                    for (macs, steps), order in found[done]:
                        own = macs + applied
                        if len(there) == count and own > there[-1][0][0]:
                            continue  # to look for the best product of cores takes longest
                        there.append(((own + self._joining(some), steps + 1), (*order, some)))
                        there.sort(key=itemgetter(0))
                        del there[count:]
        return found[self.all]

    def _macs(self, order: Order) -> int:
        total, done = 0, frozenset[int]()
        for some in order:
            total += self._applying(done, some)
            done |= set(some)
        return total

    def _next(self, done: frozenset[int]) -> Iterator[tuple[int, ...]]:
        """Cores that may be applied next: a kernel mode is convolved once, by all that hold it."""
        rest = sorted(self.all - done)
        few = range(1, len(rest) + 1) if len(self.all) <= EVERY else {1, 2, len(rest)}
        for size in sorted(n for n in few if n <= len(rest)):
            for some in combinations(rest, size):
                own = set(some)
                if all(not self.holders[n] & own or self.holders[n] <= own for n in self.kernel):
                    yield some

    def _held(self, done: Iterable[int]) -> Names:
        """Channels of the input once some cores were applied, those of rows in their order."""
        done = set(done)
        held = [n for n in self.channels if not self.holders[n] <= done or n in self.open_rows]
        new = dict.fromkeys(n for k in sorted(done) for n in self.names[k])
        more = [
            n
            for n in new
            if n not in self.kernel
            and n not in self.channels
            and (n in self.open_rows or not self.holders[n] <= done)
        ]
        return (*held, *more)

    def _axes(self, cores: Iterable[int]) -> Sizes:
        """The axes that some cores convolve."""
        cores = set(cores)
        own = {a for n, axes in self.kernel.items() if self.holders[n] & cores for a in axes}
        at, idle = self.idle
        return tuple(sorted(own | (set(idle) if at in cores else set())))

    def _sizes(self, done: Iterable[int]) -> Sizes:
        axes = self._axes(done)
        return tuple(
            self.geometry.extent(a, n) if a in axes else n for a, n in enumerate(self.size)
        )

    def _parts(self, done: Iterable[int], some: tuple[int, ...]) -> dict[str, Names]:
        """Channels by their part: beside the cores, kept, summed, and new."""
        before, after = self._held(done), self._held({*done, *some})
        own = {name for k in some for name in self.names[k]}
        return {
            "beside": tuple(n for n in before if n not in own),
            "kept": tuple(n for n in before if n in own and n in after),
            "summed": tuple(n for n in before if n in own and n not in after),
            "new": tuple(n for n in after if n not in before),
        }

    def _applying(self, done: frozenset[int], some: tuple[int, ...]) -> int:
        """Multiplications of the convolution alone."""
        sizes, parts = self.net.sizes, self._parts(done, some)
        channels = prod(sizes[n] for names in parts.values() for n in names)
        axes = self._axes(some)
        taps = prod(self.geometry.kernel[a] for a in axes)
        where = self._sizes(done) if self.geometry.transposed else self._sizes({*done, *some})
        return channels * taps * prod(where)

    def _joining(self, some: tuple[int, ...]) -> int:
        """Multiplications that make one weight of some cores."""
        if len(some) == 1 or self.joined:
            return 0
        if some not in self.joining:
            inside = set(some)
            seen = {n for k in some for n in self.names[k]
                    if n in self.net.open or not self.holders[n] <= inside}  # fmt: skip
            output = tuple(n for n in self.net.sizes if n in seen)
            self.joining[some] = self._product(some, output).macs
        return self.joining[some]

    def _product(self, some: tuple[int, ...], output: Names) -> Program:
        return _joined(tuple(self.names[k] for k in some), output, tuple(self.net.sizes.items()))

    def _weight(self, some: tuple[int, ...], parts: Mapping[str, Names]) -> Program:
        """The weight of a step as a product of its cores."""
        kernel = [n for n in self.kernel if self.holders[n] & set(some)]
        ends = (parts["summed"], parts["new"]) if self.geometry.transposed else (
            parts["new"], parts["summed"])  # fmt: skip
        output = (*parts["kept"], *ends[0], *ends[1], *kernel)
        return self._product(some, output)

    def _lowered(self, way: Sequence[tuple[int, ...]], macs: int) -> ConvPlan:
        done, steps, order = frozenset[int](), list[Convolved](), self.channels
        for some in way:
            parts = self._parts(done, some)
            steps.append(self._step(some, parts, order, steps[-1].beside if steps else 1))
            order = (*parts["beside"], *parts["kept"], *parts["new"])
            done |= set(some)
        wanted = tuple(index.name for index in self.net.rows)
        last = None if order == wanted and not steps[-1].beside > 1 else self._view(order, wanted)
        return ConvPlan(self.geometry, self.size, tuple(steps), last, macs)

    def _step(
        self, some: tuple[int, ...], parts: dict[str, Names], order: Names, beside: int
    ) -> Convolved:
        kept, summed, new = (self._count(parts[p]) for p in ("kept", "summed", "new"))
        axes = self._axes(some)
        taps = [self.geometry.kernel[a] if a in axes else 1 for a in range(self.geometry.axes)]
        ends = (kept * summed, new) if self.geometry.transposed else (kept * new, summed)
        wanted = (*parts["beside"], *parts["kept"], *parts["summed"])
        lies, apart = order == wanted, self._count(parts["beside"])
        return Convolved(
            some,
            self._weight(some, parts),
            (*ends, *taps),
            axes,
            kept,
            kept * summed,
            apart,
            None if lies else self._view(order, wanted),
            apart == (beside if lies else 1),
        )

    def _view(self, order: Names, wanted: Names) -> tuple[Sizes, Sizes]:
        return tuple(self.net.sizes[n] for n in order), tuple(order.index(n) for n in wanted)

    def _count(self, names: Iterable[str]) -> int:
        return prod(self.net.sizes[n] for n in names)


def _shortened(order: Order) -> Iterator[Order]:
    """An order, and those with two or more steps in a row as one; all of them for few steps."""
    yield order
    if len(order) > 1:
        for k in range(len(order) - 1):
            both = tuple(sorted((*order[k], *order[k + 1])))
            shorter = (*order[:k], both, *order[k + 2 :])
            yield from _shortened(shorter) if len(order) <= EVERY else (shorter,)


@cache
def _joined(names: tuple[Names, ...], output: Names, sizes: tuple[tuple[str, int], ...]) -> Program:
    return program(names, output, {**dict(sizes), BATCH: 1})
