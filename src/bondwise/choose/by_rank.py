"""One cut for all weights, without data: a network of one format for each, at the same fraction."""

import re
from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from math import ceil, gcd, isfinite, prod

from bondwise.choose.select import Weight
from bondwise.errors import BudgetError, NetworkError
from bondwise.gauge.compact import pivot_bits, stored_numbers
from bondwise.network.groups import grouped_network
from bondwise.network.network import Network, parse
from bondwise.network.ranks import capped
from bondwise.network.shapes import balanced, divisors
from bondwise.topology import registry
from bondwise.topology.tucker2 import tucker2

Modes = tuple[int, ...]
Build = Callable[[int, int, Modes, int], Network]
"""From (out, in) of a group, the kernel of a convolution (else ()) and the rank."""
Price = Callable[[Network | None], float]

STEP = 8  # ranks that are multiples of this run at the speed that their multiplications promise


def cost(net: Network, bits: int) -> int:
    """Stored numbers of a network without its gauge; pivots count as the bits they take.

    Args:
        net: the network.
        bits: bits of one stored number.
    """
    return stored_numbers(net) + ceil(pivot_bits(net) / bits)


@dataclass(frozen=True)
class ByRank:
    """The networks that one weight may become: one per rank, while smaller than dense.

    Attributes:
        weight: the one.
        build: makes its networks.
        bits: of a stored number.
        price: of a network, and of the dense weight (None), in what the budget counts; None where
            that is stored numbers. It grows with the rank, and is infinite where it is not known.
    """

    weight: Weight
    build: Build
    bits: int
    price: Price | None = None

    def at(self, rank: int) -> Network:
        """The network of that rank, bonds no larger than they can use."""
        return _built(self.build, self.weight.modes, self.weight.groups, rank)

    def cost(self, rank: int) -> int:
        """Stored numbers at that rank; they grow with it."""
        return _cost(self.build, self.weight.modes, self.weight.groups, rank, self.bits)

    def spent(self, rank: int) -> float:
        """What the network of that rank takes of the budget."""
        return float(self.cost(rank)) if self.price is None else self.price(self.at(rank))

    @cached_property
    def dense(self) -> float:
        """What the dense weight takes of it."""
        return float(self.weight.numbers) if self.price is None else self.price(None)

    @cached_property
    def top(self) -> int:
        """The largest rank that stores less than dense; 0 for none, or what has no price."""
        if self.weight.protected or not isfinite(self.spent(1)):
            return 0
        high = 1
        while self.cost(high) < self.weight.numbers and self.cost(high) < self.cost(2 * high):
            high *= 2
        return bisect_right(range(1, 2 * high + 1), self.weight.numbers - 0.5, key=self.cost)

    def best(self, budget: float) -> int:
        """The largest rank that takes at most so much; from 2 `STEP` a multiple of it."""
        rank = bisect_right(range(1, self.top + 1), budget, key=self.spent)
        return rank - rank % STEP if rank >= 2 * STEP else rank


@cache
def _cost(build: Build, modes: tuple[int, int, Modes], groups: int, rank: int, bits: int) -> int:
    return cost(_built(build, modes, groups, rank), bits)


def _built(build: Build, modes: tuple[int, int, Modes], groups: int, rank: int) -> Network:
    return capped(grouped_network(build(*modes, rank), groups))


def builder(form: object) -> Build:
    """How a format makes a network from (out, in, kernel, rank).

    The format is a topology's name, or an einsum with free sizes: there the modes are split evenly,
    the last columns are the kernel's, an index open on both sides gets at most four values, and
    every bond has the same rank. "auto" is low rank, and Tucker-2 of a convolution.

    Raises:
        NetworkError: neither a known topology nor an einsum.
    """
    if not isinstance(form, str):
        known = ", ".join(registry.names(kernels=True))
        raise NetworkError(
            f"format={form!r} came; write auto, {known}, or an einsum such as "
            "'o a, a i -> (o) (i)'."
        )
    if form == "auto":
        return _auto
    if "->" not in form:
        found, plain = registry.find(form), registry.find("lowrank")

        def sized(out: int, inp: int, kernel: Modes, rank: int) -> Network:
            of = found if kernel or not found.kernel_only else plain  # the same without a kernel
            return of.sized(out, inp, rank, kernel)

        return sized
    names = set(re.findall(r"[A-Za-z_]\w*", form))
    shape = parse(form, **dict.fromkeys(names, 1))

    def build(out: int, inp: int, kernel: Modes, rank: int) -> Network:
        return parse(form, **_sizes(shape, out, inp, kernel) | dict.fromkeys(shape.bonds, rank))

    return build


def format_of(form: str, weight: Weight) -> str:
    """What a format comes to for a weight.

    >>> format_of("auto", Weight("a", "Conv2d", (8, 36), kernel=(3, 3)))
    'tucker2'
    """
    out, inp, kernel = weight.modes
    if form == "auto":
        return "lowrank" if prod(kernel) == 1 or min(out, inp) == 1 else "tucker2"
    alone = "->" not in form and registry.find(form).kernel_only and not kernel
    return "lowrank" if alone else form


def _auto(out: int, inp: int, kernel: Modes, rank: int) -> Network:
    """Low rank; of a kernel Tucker-2 whose ranks are one fraction of the channels of both sides."""
    if prod(kernel) == 1 or min(out, inp) == 1:
        return registry.find("lowrank").sized(out, inp, rank, kernel)
    most = max(out, inp)
    return tucker2(out, inp, kernel, (ceil(rank * out / most), ceil(rank * inp / most)))


def uniform(series: Sequence[ByRank], keep: float) -> dict[str, Network]:
    """A network for each weight, all cut by the same factor, so that together they store ``keep``.

    The same factor for all comes first, ranks in multiples of 8; what is left of the budget goes, 8
    ranks at a time and then one by one, to the weights that keep least. A weight whose smallest
    network would be dearer than dense stays dense and is not in the answer.

    Raises:
        BudgetError: keep is outside (0, 1], or below what ranks of 1 store.
    """
    check_keep(keep)
    before = sum(nets.dense for nets in series)
    budget = keep * before
    if keep == 1:
        return {}
    stuck = [nets for nets in series if not nets.top]
    free = [nets for nets in series if nets.top]
    room = budget - sum(nets.dense for nets in stuck)
    least = sum(nets.spent(1) for nets in free)
    if series and all(nets.weight.protected for nets in series):
        raise BudgetError(
            "All weights that were chosen are protected, so that nothing is left to cut; "
            "protect fewer, or write keep=1."
        )
    if not free:
        raise BudgetError(
            "No weight stores less in this format than dense: they are small, or depthwise "
            "convolutions; target others, or write another format."
        )
    if least > room:
        smallest = (least + before - sum(nets.dense for nets in free)) / before
        raise BudgetError(
            f"keep={keep:g} is below what these formats can reach; "
            f"write at least {ceil(1000 * smallest) / 1000:g}."
        )
    ranks = _evenly(free, room)
    for step in (STEP, 1):
        while _spend(free, ranks, room, step):
            pass
    pairs = zip(free, ranks, strict=True)
    return {n.weight.name: n.at(rank) for n, rank in pairs if n.spent(rank) < n.dense}


def check_keep(keep: object) -> None:
    """Refuse a keep outside (0, 1].

    Raises:
        BudgetError: saying what keep means.
    """
    if isinstance(keep, bool) or not isinstance(keep, int | float) or not 0 < keep <= 1:
        shown = f"{keep:g}" if isinstance(keep, int | float) else repr(keep)
        raise BudgetError(
            f"keep={shown} came; it is the fraction of numbers that stays, "
            "above 0 and at most 1, as in 0.6."
        )


def common_fraction(fits: Callable[[float], bool]) -> float:
    """The largest fraction, the same for all weights, that fits (bisection).

    >>> round(common_fraction(lambda fraction: 8 * fraction <= 5), 6)
    0.625
    """
    low, high = 0.0, 1.0
    for _ in range(30):
        middle = (low + high) / 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low


def _evenly(series: Sequence[ByRank], room: float) -> list[int]:
    """Ranks by one common fraction, the largest whose total fits."""

    def cut(fraction: float) -> list[int]:
        return [max(1, nets.best(fraction * nets.dense)) for nets in series]

    return cut(common_fraction(lambda fraction: _total(series, cut(fraction)) <= room))


def _spend(series: Sequence[ByRank], ranks: list[int], room: float, step: int) -> bool:
    """Raise ranks by ``step`` where least is kept, until the total fills the room to 0.2 %.

    Returns whether any rank was raised.
    """
    before = list(ranks)
    left = room - _total(series, ranks)
    enough = 0.002 * room
    order = sorted(
        range(len(series)),
        key=lambda k: series[k].spent(ranks[k]) / series[k].dense,
    )
    for k in order:
        nets, rank = series[k], ranks[k]
        if left <= enough:
            break
        if rank + step <= nets.top and (step == 1 or rank % step == 0):
            more = nets.spent(rank + step) - nets.spent(rank)
            if more <= left:
                ranks[k] += step
                left -= more
    return ranks != before


def _total(series: Sequence[ByRank], ranks: Sequence[int]) -> float:
    return sum((nets.spent(rank) for nets, rank in zip(series, ranks, strict=True)), 0.0)


def _sizes(shape: Network, out: int, inp: int, kernel: Modes) -> dict[str, int]:
    """Sizes of the open indices of an einsum for an out x in weight, or with a kernel."""
    rows, cols = ([index.name for index in side] for side in (shape.rows, shape.cols))
    both = [name for name in rows if name in cols]
    if len(cols) <= len(kernel) > 0:
        raise NetworkError(
            f"'{shape}' has {len(cols)} column modes for a kernel of {kernel}; its last ones are "
            "the kernel's, and one or more before them the inputs."
        )
    sizes = dict(zip(cols[len(cols) - len(kernel) :], kernel, strict=True))
    cols = cols[: len(cols) - len(kernel)]
    for name in both:
        common = gcd(out, inp)
        sizes[name] = max(d for d in divisors(common) if d <= 4)
        out, inp = out // sizes[name], inp // sizes[name]
    for size, names in ((out, rows), (inp, cols)):
        own = [name for name in names if name not in both]
        if not own and size > 1:
            raise NetworkError(
                f"'{shape}' has no mode for {size} of the weight; add one on that side."
            )
        sizes |= dict(zip(own, balanced(size, len(own)) if own else (), strict=True))
    return sizes
