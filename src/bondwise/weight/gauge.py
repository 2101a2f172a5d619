"""A network without its gauge: the cores with an identity block each, which is not stored.

An invertible ``X`` and its inverse, put on a bond, change two cores and no weight. So a network has
more numbers than it needs: one of the two cores beside a bond of size r can always be given an
r x r identity block (arXiv 2501.19090), without loss and with all its other entries bounded.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from itertools import combinations
from math import prod

import torch
from torch import Tensor

from bondwise.compute.run import dense
from bondwise.network.network import Network
from bondwise.weight.joints import (
    Joint,
    Push,
    checked,
    forest,
    hyperedges,
    joints,
    level,
    pushes,
    take_up,
    unfolding,
)
from bondwise.weight.pivots import unpack
from bondwise.weight.slots import Plain, Slot, pinned, slots


@dataclass(frozen=True)
class GaugeForm:
    """For every core the bond on which it is pinned (carries an identity block), or None.

    Several bonds between the same two cores are pinned as one and named with a space between. A
    core pinned on an index of three or more cores has one entry 1 for each of its values.

    >>> GaugeForm.from_list([None, "a"]).to_list()
    [None, 'a']
    """

    pinned: tuple[str | None, ...]

    def to_list(self) -> list[str | None]:
        """As JSON holds it."""
        return list(self.pinned)

    @classmethod
    def from_list(cls, pinned: Sequence[str | None]) -> "GaugeForm":
        """Back from JSON."""
        return cls(tuple(pinned))


@cache
def gauge_form(net: Network) -> GaugeForm:
    """Which cores to pin on which bonds so that the fewest numbers are stored.

    A spanning tree over the cores, the bonds that save most first; its root is the core that leaves
    most saved (the first of equals). Every other core is pinned on the bond to its parent, if the
    rest of the core is at least as large as that bond. In a loop one bond so stays as it is.

    >>> from bondwise import cp, lowrank
    >>> gauge_form(lowrank(6, 4, 2)).pinned, gauge_form(cp((2, 3), 4, 5)).pinned
    ((None, 'a'), (None, 'r', 'r'))
    """
    pins: list[str | None] = [None] * len(net.cores)
    for push in _pinned(net):
        pins[push.core] = " ".join(push.bonds)
    return GaugeForm(tuple(pins))


def stored_numbers(net: Network, form: GaugeForm | None = None) -> int:
    """Numbers of a network without its gauge: r (m + n - r) for low rank, up to r = min(m, n).

    >>> from bondwise import lowrank
    >>> stored_numbers(lowrank(6, 4, 2)), stored_numbers(lowrank(6, 4, 4))
    (16, 24)
    """
    return sum(prod(slot.free) for slot in _slots(net, form or gauge_form(net)))


def pivot_bits(net: Network, form: GaugeForm | None = None) -> int:
    """Bits that the positions of the identity blocks take, as stored."""
    stored = [slot.pivots for slot in _slots(net, form or gauge_form(net))]
    return sum(count * dtype.itemsize * 8 for count, dtype in filter(None, stored))


def free_shapes(
    net: Network, form: GaugeForm
) -> tuple[list[tuple[int, int]], list[tuple[int, torch.dtype] | None]]:
    """Shape of the free entries of each core, and length and dtype of its pivots if it has any."""
    slots = _slots(net, form)
    return [slot.free for slot in slots], [slot.pivots for slot in slots]


@dataclass(frozen=True, eq=False)
class Compact:
    """A weight without its gauge: the free entries of each core, and where its identity blocks sit.

    Attributes:
        free: one matrix per core. Not pinned: the core in its `bondwise.network.ranks.layouts`.
            Pinned on a bond of size r: r x (blocks * (rest - r)), all but the identity blocks, in
            order of position; on an index of three or more cores r x (rest - 1), all but the ones.
        pivots: None for a core that is not pinned; else those of its blocks * rest positions that
            hold the identity, in ascending order: a mask of bits (uint8) or, where smaller,
            int32; for an index of three or more cores one position per value (int32).
    """

    network: Network
    form: GaugeForm
    free: tuple[Tensor, ...]
    pivots: tuple[Tensor | None, ...]

    @property
    def parameters(self) -> int:
        """Numbers stored."""
        return sum(free.numel() for free in self.free)

    @property
    def bits(self) -> int:
        """Bits of the pivots."""
        return sum(p.numel() * p.element_size() * 8 for p in self.pivots if p is not None)

    def cores(self) -> tuple[Tensor, ...]:
        """All cores, in core-axis order."""
        return expand(self.network, self.form, self.free, self.pivots)

    def dense(self) -> Tensor:
        """The weight, out x in."""
        return dense(self.network, self.cores())


def compact(net: Network, cores: Sequence[Tensor], dtype: torch.dtype | None = None) -> Compact:
    """The same weight without its gauge, exact up to rounding (float64 inside).

    From the leaves of the tree to its root: a pinned core with matrix ``U`` (rest x bond) becomes
    ``U U[p]^-1``, the identity at the pivots p, and its parent is multiplied by ``U[p]``. Pivots
    are rows of near maximum volume of an orthonormal basis of ``U`` (QR), so that ill-scaled,
    rank-deficient and zero cores pass, and no stored entry of a pinned core is above 1.05
    (`bondwise.weight.pivots.BOUND`). On an index of three or more cores, ``U`` is divided by its
    largest entry for every value. Sizes stay; where a bond is larger than the rest of both its
    cores, neither is pinned on it (`bondwise.network.ranks.capped` gives a network without).

    Args:
        net: the network.
        cores: one tensor per core, in core-axis order.
        dtype: of the free entries; that of each core by default.

    Raises:
        ShapeError: cores of another number or shape than the network's.
        FitError: a core holds values that are not finite.

    >>> from bondwise import lowrank
    >>> compact(lowrank(6, 4, 2), [torch.rand(6, 2), torch.rand(2, 4)]).parameters
    16
    """
    form = gauge_form(net)
    pivots: list[Tensor | None] = [None] * len(net.cores)
    with torch.no_grad():
        work = level(net, checked(net, cores))
        for push in _pinned(net):
            k, parent = push.core, push.parent
            work[k], pivots[k], factor = pinned(net, push).reduce(work[k])
            work[parent] = take_up(net, push, work[parent], factor)
        for k, slot in enumerate(_slots(net, form)):
            if isinstance(slot, Plain):
                work[k] = slot.reduce(work[k])
        free = [new.to(dtype or core.dtype) for new, core in zip(work, cores, strict=True)]
    return Compact(net, form, tuple(f.contiguous() for f in free), tuple(pivots))


def expand(
    net: Network, form: GaugeForm, free: Sequence[Tensor], pivots: Sequence[Tensor | None]
) -> tuple[Tensor, ...]:
    """The cores in core-axis order from what `Compact` stores, differentiable in ``free``.

    Raises:
        ShapeError: the form does not fit the network, or a pinned core came without pivots.
    """
    return fill(_slots(net, form), free, pivots)


def fill(
    slots: Sequence[Slot], free: Sequence[Tensor], pivots: Sequence[Tensor | None]
) -> tuple[Tensor, ...]:
    """`expand` with slots (`bondwise.weight.slots.slots`) made beforehand: for ``torch.compile``.

    Raises:
        ShapeError: a pinned core came without pivots.
    """
    return tuple(slot.expand(f, p) for slot, f, p in zip(slots, free, pivots, strict=True))


def positions(pivots: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Stored pivots as positions out of ``count``, and all the other positions; both ascending.

    With them a low-rank ``A [I | F] P`` runs as it is stored: ``y = A (x[pivots] + F x[rest])``.
    Their lengths depend on the values, so call it when a layer is built, not in ``forward``.

    >>> positions(torch.tensor([0b01001000], dtype=torch.uint8), 6)
    (tensor([1, 4]), tensor([0, 2, 3, 5]))
    """
    mask = unpack(pivots, count)
    return mask.nonzero().flatten(), (~mask).nonzero().flatten()


@cache
def _slots(net: Network, form: GaugeForm) -> tuple[Slot, ...]:
    return slots(net, form.pinned)


@cache
def _pinned(net: Network) -> tuple[Push, ...]:
    """Pushes of the cores that are pinned, leaves first."""
    count = len(net.cores)
    shared = [
        Joint(pair, (bond,))
        for bond in hyperedges(net)
        for pair in combinations(net.places[bond], 2)
    ]

    def worth(edge: Joint) -> int:
        one, two = edge.cores
        return max(
            _pin(net, Push(one, two, edge.bonds))[1], _pin(net, Push(two, one, edge.bonds))[1]
        )

    tree = forest(sorted([*joints(net), *shared], key=worth, reverse=True), count)
    found: list[Push] = []
    left = list(range(count))
    while left:
        piece = sorted({left[0], *(push.core for push in pushes(tree, left[0]))})
        rooted = [[_pin(net, push) for push in pushes(tree, root)] for root in piece]
        best = max(rooted, key=lambda pins: sum(saved for _, saved in pins))
        found.extend(push for push, saved in best if saved)
        left = [k for k in left if k not in piece]
    return tuple(found)


def _pin(net: Network, push: Push) -> tuple[Push, int]:
    """The push on as many of its bonds as save most, and the numbers saved."""
    if len(net.places[push.bonds[0]]) > 2:
        return push, net.sizes[push.bonds[0]]
    choices = [push, *(Push(push.core, push.parent, (bond,)) for bond in push.bonds)]
    return max(((choice, _saved(net, choice)) for choice in choices), key=lambda pair: pair[1])


def _saved(net: Network, push: Push) -> int:
    blocks, rest, bond = unfolding(net, push, push.core).shape
    return blocks * bond**2 if rest >= bond else 0
