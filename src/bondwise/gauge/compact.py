"""A network without its gauge: the cores with an identity block each, which is not stored.

An invertible ``X`` and its inverse, put on a bond, change two cores and no weight. So a network has
more numbers than it needs: one of the two cores beside a bond of size r can always be given an
r x r identity block (arXiv 2501.19090), without loss and with all its other entries bounded.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from math import prod

import torch
from torch import Tensor

from bondwise.compute.run import dense
from bondwise.errors import ShapeError
from bondwise.fit.metric import Metric
from bondwise.gauge.bonds import Branch, absorb, checked, even_norms, unfolding
from bondwise.gauge.center import spanning_trees
from bondwise.gauge.forms import CoreForm, NormalizedForm, PinnedForm, PlainForm, core_forms
from bondwise.gauge.rounding import core_metrics, feedback, gram, moment_of
from bondwise.network.network import Network


@dataclass(frozen=True)
class GaugeForm:
    """For every core the bond on which it is pinned (carries an identity block), or None.

    Several bonds between the same two cores are pinned as one and named with a space between. A
    core pinned on an index of three or more cores has one entry 1 for each of its values.
    """

    pinned: tuple[str | None, ...]


@cache
def gauge_form(net: Network) -> GaugeForm:
    """Which cores to pin on which bonds so that the fewest numbers are stored.

    A spanning tree over the cores, the bonds that save most first; its root, the centre, is the
    core that leaves most saved (the first of equals). Every other core is pinned on the bond to its
    parent, if the rest of the core is at least as large as that bond. In a loop one bond so stays
    as it is.

    >>> from bondwise import cp, lowrank
    >>> gauge_form(lowrank(6, 4, 2)).pinned, gauge_form(cp((2, 3), 4, 5)).pinned
    ((None, 'a'), (None, 'r', 'r'))
    """
    return gauge_forms(net)[0]


def gauge_forms(net: Network) -> list[GaugeForm]:
    """All forms that store the fewest numbers: one per centre that leaves most saved.

    >>> from bondwise import lowrank
    >>> [form.pinned for form in gauge_forms(lowrank(6, 4, 2))]
    [(None, 'a'), ('a', None)]
    """
    return [GaugeForm(pins) for pins in spanning_trees(net)]


def stored_numbers(net: Network, form: GaugeForm | None = None) -> int:
    """Numbers of a network without its gauge: r (m + n - r) for low rank, up to r = min(m, n).

    >>> from bondwise import lowrank
    >>> stored_numbers(lowrank(6, 4, 2)), stored_numbers(lowrank(6, 4, 4))
    (16, 24)
    """
    return sum(prod(core.free) for core in _core_forms(net, form or gauge_form(net)))


def pivot_bits(net: Network, form: GaugeForm | None = None) -> int:
    """Bits that the positions of the identity blocks take, as stored."""
    stored = [core.pivots for core in _core_forms(net, form or gauge_form(net))]
    return sum(count * dtype.itemsize * 8 for count, dtype in filter(None, stored))


@dataclass(frozen=True, eq=False)
class Compact:
    """A weight without its gauge: the free entries of each core, and where its identity blocks sit.

    Attributes:
        free: one matrix per core. Not pinned: the core as a matrix.
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


def compact(
    net: Network,
    cores: Sequence[Tensor],
    dtype: torch.dtype | None = None,
    scale: Tensor | Metric | None = None,
    form: GaugeForm | None = None,
) -> Compact:
    """The same weight without its gauge, exact up to rounding (float64 inside).

    From the leaves of the tree to its root: a pinned core with matrix ``U`` (rest x bond) becomes
    ``U U[p]^-1``, the identity at the pivots p, and its parent is multiplied by ``U[p]``. Pivots
    are rows of near maximum volume of an orthonormal basis of ``U`` (QR), so that ill-scaled,
    rank-deficient and zero cores pass. No stored entry of a pinned core is above 1.05; with a
    scale, whose rows are multiplied by it (within a factor of two of their median) before pivots
    are chosen, none above 4.2. On an index of three or more cores, ``U`` is divided by its largest
    entry for every value. Sizes stay; where a bond is larger than the rest of both its cores,
    neither is pinned on it (the network of a `fit` has no such bond).

    In half precision a core's rounding is made up for by its parent, in the metric of the inputs:
    the error is then near that of plain cores rounded to nearest.

    Args:
        net: the network.
        cores: one tensor per core, in core-axis order.
        dtype: of the free entries; that of each core by default.
        scale: root mean square of each input (in,), or their second moment (in x in), or a
            `Metric`: how errors are weighed. All alike by default.
        form: which cores to pin: one of `gauge_forms`, or none at all (the cores are then only
            brought to one norm and rounded); `gauge_form` by default.

    Raises:
        ShapeError: cores of another number or shape than the network's, or a form that it has not.
        FitError: a core holds values that are not finite, or the scale is none.

    >>> from bondwise import lowrank
    >>> compact(lowrank(6, 4, 2), [torch.rand(6, 2), torch.rand(2, 4)]).parameters
    16
    """
    form = form or gauge_form(net)
    branches, forms = _branches(net, form), _core_forms(net, form)
    kept = [dtype or core.dtype for core in cores]
    free, pivots = dict[int, Tensor](), dict[int, Tensor]()
    with torch.no_grad():
        work = _Sweep(net, even_norms(net, checked(net, cores)), moment_of(scale, net.shape[1]))
        for branch in branches:
            k, own = branch.core, forms[branch.core]
            assert not isinstance(own, PlainForm)
            free[k], pivots[k] = work.child(branch, own, kept[k])
        for k, own in enumerate(forms):
            if isinstance(own, PlainForm):
                free[k] = own.reduce(work.center(k, kept[k]))
    count = range(len(cores))
    return Compact(
        net, form, tuple(free[k].contiguous() for k in count), tuple(pivots.get(k) for k in count)
    )


class _Sweep:
    """Cores whose gauge is taken out from the leaves to the centre."""

    def __init__(self, net: Network, cores: list[Tensor], moment: Tensor | None) -> None:
        self.net, self.cores = net, cores
        self.metrics = core_metrics(net, moment)
        self.grams = dict[int, tuple[Branch, Tensor]]()  # by parent: its last child's

    def child(
        self, branch: Branch, form: PinnedForm | NormalizedForm, dtype: torch.dtype
    ) -> tuple[Tensor, Tensor]:
        """Free entries and pivots of a core; its parent absorbs the rest, and the rounding."""
        core, parent, bonds = branch.core, branch.parent, branch.bonds
        exact, pivots, factor = form.reduce(self.cores[core], self.metrics[core].scales(form.view))
        self._absorb(branch, factor)
        free = exact.to(dtype)
        if isinstance(form, PinnedForm) and _short(dtype):
            index = form.index(pivots)
            before, after = (form.expand(each.double(), index) for each in (exact, free))
            G, X = gram(self.metrics[core], form.view, before, after)
            self._absorb(branch, X)
            self.grams[parent] = branch, G
            if len(G) == 1:
                self.metrics[parent] = self.metrics[parent].with_bond(bonds, G[0])
        return free, pivots

    def center(self, at: int, dtype: torch.dtype) -> Tensor:
        """A core that is not pinned, rounded."""
        core = self.cores[at]
        if at in self.grams and _short(dtype):
            branch, G = self.grams[at]
            view = unfolding(self.net, branch, at)
            core = view.core(feedback(view.matrix(core), G, dtype))
        return core.to(dtype)

    def _absorb(self, branch: Branch, factor: Tensor) -> None:
        self.cores[branch.parent] = absorb(self.net, branch, self.cores[branch.parent], factor)


def _short(dtype: torch.dtype) -> bool:
    return dtype.itemsize < 4


def expand(
    net: Network, form: GaugeForm, free: Sequence[Tensor], pivots: Sequence[Tensor | None]
) -> tuple[Tensor, ...]:
    """The cores in core-axis order from what `Compact` stores, differentiable in ``free``.

    Raises:
        ShapeError: the form does not fit the network, or pivots are missing or not as it has them.
    """
    forms = _core_forms(net, form)
    return tuple(
        own.expand(part, own.index(pivot))
        for own, part, pivot in zip(forms, free, pivots, strict=True)
    )


@cache
def _core_forms(net: Network, form: GaugeForm) -> tuple[CoreForm, ...]:
    return core_forms(net, form.pinned)


def _branches(net: Network, form: GaugeForm) -> tuple[Branch, ...]:
    """The branches along which a form is made, leaves first."""
    known = spanning_trees(net)
    if form.pinned not in known and any(form.pinned):
        raise ShapeError(
            f"The form {list(form.pinned)} came for '{net}'; write one of "
            f"{[list(pins) for pins in known]}, or None for each core."
        )
    return known.get(form.pinned, ())
