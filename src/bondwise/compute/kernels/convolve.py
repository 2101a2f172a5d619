"""A network as a stack of convolutions: which cores to join, in which order to apply them.

The input has channels and positions. A core that is applied to it sums the channels that it shares
with it, gives new ones, and convolves the axes whose kernel modes it has; so every step is one
convolution, of which a product (1 x 1), a separable and a depthwise one are special cases. Cores
may be multiplied with each other first: all of them, and the step is the dense convolution.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import combinations
from math import prod
from sys import maxsize

from torch import Tensor

from bondwise.compute.kernels.geometry import Geometry, Sizes
from bondwise.compute.lower import program
from bondwise.compute.product import contract
from bondwise.compute.steps import BATCH, Program
from bondwise.errors import ShapeError
from bondwise.network.network import Network

EVERY = 5  # cores up to which any of them may be joined; above it two of them, or all that are left
FOLLOWED = 16  # ways to apply so many cores that are followed on, the cheapest
SIZE = 32  # of each axis, where no input was seen
Names = tuple[str, ...]


@dataclass(frozen=True)
class Convolved:
    """One step: some cores as one convolution.

    Attributes:
        cores: positions of those that are multiplied with each other first.
        weight: how, and what it is then permuted to.
        shape: of the weight, as torch has it.
        axes: those that are convolved.
        groups: of the channels: what is kept of those shared with the input.
        channels: of the input that the cores meet.
        beside: those that they do not meet, which go with the samples.
        before: sizes of the input's channels as modes, and their order with those beside first;
            None where they lie that way.
        as_is: whether as many go with the samples as already do.
    """

    cores: tuple[int, ...]
    weight: Program
    shape: Sizes
    axes: Sizes
    groups: int
    channels: int
    beside: int
    before: tuple[Sizes, Sizes] | None
    as_is: bool


@dataclass(frozen=True)
class ConvPlan:
    """The stack of convolutions of fewest multiplications, for an input size.

    Attributes:
        geometry: of the convolution.
        size: of the input, one for each axis.
        steps: in the order in which the input meets them.
        last: sizes of the output's channels as modes and their order; None where they lie so.
        macs: multiplications for one sample.
    """

    geometry: Geometry
    size: Sizes
    steps: tuple[Convolved, ...]
    last: tuple[Sizes, Sizes] | None
    macs: int

    def __call__(self, cores: Sequence[Tensor], x: Tensor, bias: Tensor | None = None) -> Tensor:
        """``y = W * x + b``: (n, channels, *spatial) -> (n, channels, *spatial)."""
        count = x.shape[0]  # len is a constant where a graph is traced
        for k, step in enumerate(self.steps):
            weight = contract(step.weight, [cores[at] for at in step.cores]).reshape(step.shape)
            weight = weight.contiguous()  # torch lays out the output as it finds the weight
            own = bias if k == len(self.steps) - 1 and self.last is None else None
            x = self.geometry.convolve(
                _ordered(x, count, step), weight, own, step.axes, step.groups
            )
        if self.last is None:
            return x
        x = _permuted(x, count, *self.last)
        return x if bias is None else x + bias.to(x.dtype).reshape(-1, *(1,) * self.geometry.axes)


def convolution_macs(geometry: Geometry, out: int, inp: int, size: Sizes) -> int:
    """Multiplications of a dense convolution for one sample; channels of all groups.

    >>> convolution_macs(Geometry((3,), (1,), ((1, 1),), (1,)), 8, 4, (10,))
    960
    """
    where = size if geometry.transposed else geometry.extents(size)
    return out * inp // geometry.groups * geometry.taps * prod(where)


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

    def __init__(self, net: Network, geometry: Geometry, size: Sizes) -> None:
        self.net, self.geometry, self.size = net, geometry, size
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
        found: dict[frozenset[int], tuple[tuple[int, int], tuple[tuple[int, ...], ...]]] = {
            frozenset(): ((0, 0), ())
        }
        for count in range(len(self.all)):
            reached = sorted((key for key in found if len(key) == count), key=lambda k: found[k][0])
            for done in reached[:FOLLOWED]:
                (macs, steps), way = found[done]
                for some in self._next(done):
                    there = done | set(some)
                    least = found[there][0] if there in found else (maxsize, 0)
                    own = macs + self._applying(done, some)
                    if own <= least[0]:  # to look for the best product of cores takes longest
                        cost = (own + self._joining(some), steps + 1)
                        if cost < least:
                            found[there] = (cost, (*way, some))
        (macs, _), way = found[self.all]
        return self._lowered(way, macs)

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
        if len(some) == 1:
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


@cache
def _joined(names: tuple[Names, ...], output: Names, sizes: tuple[tuple[str, int], ...]) -> Program:
    return program(names, output, {**dict(sizes), BATCH: 1})


def _ordered(x: Tensor, count: int, step: Convolved) -> Tensor:
    """The input with the channels that a step does not meet beside the samples."""
    if step.before is not None:
        x = _permuted(x, count, *step.before)
    return x if step.as_is else x.reshape(count * step.beside, step.channels, *x.shape[2:])


def _permuted(x: Tensor, count: int, sizes: Sizes, order: Sizes) -> Tensor:
    """The channels, and what lies with the samples, as modes in another order."""
    where = x.shape[2:]
    modes = x.reshape(count, *sizes, *where)
    axes = (*(k + 1 for k in order), *range(1 + len(sizes), modes.ndim))
    return modes.permute(0, *axes).reshape(count, prod(sizes), *where)
