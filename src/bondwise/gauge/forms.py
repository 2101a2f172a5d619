"""How one core is stored without its gauge: plain, or all but an identity block or some ones."""

from dataclasses import dataclass

import torch
from torch import Tensor

from bondwise.errors import ShapeError
from bondwise.gauge.bonds import Branch, Unfolding, unfolding
from bondwise.gauge.pivots import dominant_rows, pack, packed, unpack
from bondwise.network.network import Network
from bondwise.network.ranks import Layout, layouts


@dataclass(frozen=True, slots=True)
class PlainForm:
    """A core that is not pinned, stored in its layout."""

    layout: Layout
    sizes: tuple[int, ...]
    pivots = None

    @property
    def free(self) -> tuple[int, int]:
        """Shape of the matrix stored."""
        return self.layout.shape(self.sizes)

    def reduce(self, core: Tensor) -> Tensor:
        """The core as stored."""
        return core.permute(self.layout.order).reshape(self.free)

    def index(self, pivots: Tensor | None = None) -> None:
        """Nothing: all is stored, in one order."""

    def expand(self, free: Tensor, index: Tensor | None = None) -> Tensor:  # noqa: ARG002
        """The core again."""
        order = (*self.layout.rows, *self.layout.cols)
        back = [order.index(axis) for axis in range(len(order))]
        return free.reshape([self.sizes[axis] for axis in order]).permute(back)


@dataclass(frozen=True, slots=True)
class PinnedForm:
    """A core with one identity block per block value, on a bond of two cores."""

    view: Unfolding

    @property
    def free(self) -> tuple[int, int]:
        """Shape of the free entries: bond x (blocks * (rest - bond))."""
        blocks, rest, bond = self.view.shape
        return bond, blocks * (rest - bond)

    @property
    def pivots(self) -> tuple[int, torch.dtype]:
        """Length and dtype of the stored pivots."""
        blocks, rest, bond = self.view.shape
        count, chosen = blocks * rest, blocks * bond
        return packed(chosen, count)

    def reduce(self, core: Tensor, scales: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Free entries, pivots, and what the parent absorbs: ``U = (U U[p]^-1) U[p]``.

        Pivots are chosen with the rows multiplied by their scales (blocks x rest).
        """
        U = self.view.matrix(core)
        rest = U.shape[1]
        bases = torch.linalg.qr(U * scales[..., None])[0]
        free, chosen, factors = list[Tensor](), list[Tensor](), list[Tensor]()
        for block, (Q, matrix, s) in enumerate(zip(bases, U, scales, strict=True)):
            p = dominant_rows(Q)
            others = torch.ones(rest, dtype=torch.bool, device=p.device).index_fill(0, p, False)
            entries = torch.linalg.solve(Q[p], Q[others], left=False)
            free.append(entries * s[p] / s[others, None])
            chosen.append(p + block * rest)
            factors.append(matrix[p])
        return torch.cat(free).T, pack(torch.cat(chosen), self._count), torch.stack(factors)

    def index(self, pivots: Tensor | None) -> Tensor:
        """For every position the column of ``[identity | free entries]`` that it takes (int64).

        Raises:
            ShapeError: no pivots, or not as many as the bond is large in every block.
        """
        blocks, rest, bond = self.view.shape
        mask = unpack(_present(pivots), self._count).view(blocks, rest)
        counts = mask.sum(1)
        if not bool((counts == bond).all()):
            raise ShapeError(
                f"Identity blocks of {sorted(set(counts.tolist()))} positions came on a bond of "
                f"{bond}; each takes {bond} different positions out of {rest}."
            )
        others = (~mask).flatten()
        return torch.where(mask.flatten(), mask.cumsum(1).flatten(), bond + others.cumsum(0)) - 1

    def stored(self, index: Tensor) -> Tensor:
        """The pivots, as they are stored, that an index came from."""
        return pack((index < self.view.shape[2]).nonzero().flatten(), self._count)

    def expand(self, free: Tensor, index: Tensor | None) -> Tensor:
        """The core again: every position takes a column of the identity or of the free entries."""
        bond = self.view.shape[2]
        full = torch.cat([torch.eye(bond, dtype=free.dtype, device=free.device), free], dim=1)
        return self.view.core(full.index_select(1, _present(index)).T)

    @property
    def _count(self) -> int:
        return self.view.shape[0] * self.view.shape[1]


@dataclass(frozen=True, slots=True)
class NormalizedForm:
    """A core with one entry 1 for every value of an index that sits on three or more cores."""

    view: Unfolding

    @property
    def free(self) -> tuple[int, int]:
        """Shape of the free entries: index x (rest - 1)."""
        _, rest, size = self.view.shape
        return size, rest - 1

    @property
    def pivots(self) -> tuple[int, torch.dtype]:
        """Length and dtype of the stored pivots: one position per value."""
        return self.view.shape[2], torch.int32

    def reduce(self, core: Tensor, scales: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Free entries, pivots, and what the parent absorbs: the largest entries, once scaled."""
        (U,) = self.view.matrix(core)
        p = (U.abs() * scales[0, :, None]).argmax(0)
        scale = U.gather(0, p[None])
        rest = torch.arange(U.shape[0], device=U.device)
        others = rest[None] != p[:, None]
        ratio = torch.where(scale == 0, U, U / torch.where(scale == 0, 1.0, scale))
        return ratio.T[others].view(self.free), p.int(), scale[0].diag()[None]

    def index(self, pivots: Tensor | None) -> Tensor:
        """The position of the one for every value (int64).

        Raises:
            ShapeError: no pivots, not one for each value, or one that lies outside.
        """
        _, rest, size = self.view.shape
        at = _present(pivots).long()
        if tuple(at.shape) != (size,) or bool(((at < 0) | (at >= rest)).any()):
            raise ShapeError(
                f"Positions {at.flatten()[:3].tolist()}.. of {tuple(at.shape)} ones came; write "
                f"{size}, each from 0 to {rest - 1}."
            )
        return at

    def stored(self, index: Tensor) -> Tensor:
        """The pivots, as they are stored, that an index came from."""
        return index.int()

    def expand(self, free: Tensor, index: Tensor | None) -> Tensor:
        """The core again: every position takes the one, or its free entry."""
        _, rest, size = self.view.shape
        at, pivot = torch.arange(rest, device=free.device)[None], _present(index)[:, None]
        source = torch.where(at == pivot, 0, 1 + at - (at > pivot).long())
        full = torch.cat([free.new_ones(size, 1), free], dim=1)
        return self.view.core(full.gather(1, source).T)


CoreForm = PlainForm | PinnedForm | NormalizedForm


def core_forms(net: Network, pinned: tuple[str | None, ...]) -> tuple[CoreForm, ...]:
    """The form of every core.

    Raises:
        ShapeError: the pins are not one per core, or name a bond that the core cannot be pinned on.
    """
    if len(pinned) != len(net.cores):
        raise ShapeError(
            f"A gauge form of {len(pinned)} pins came; write one for each core of '{net}', or None."
        )
    return tuple(_core_form(net, k, pin) for k, pin in enumerate(pinned))


def _core_form(net: Network, at: int, pin: str | None) -> CoreForm:
    if pin is None:
        return PlainForm(layouts(net)[at], net.core_shapes[at])
    bonds = tuple(pin.split())
    places = sorted({net.places[bond] for bond in bonds if bond in net.bonds})
    if not set(bonds) <= set(net.names[at]) or len(places) != 1 or len(places[0]) < 2:
        raise ShapeError(
            f"Core {at} of '{net}' came pinned on {pin!r}, which joins it to no other core."
        )
    parent = next(k for k in places[0] if k != at)
    view = unfolding(net, Branch(at, parent, bonds), at)
    if len(places[0]) > 2:
        return NormalizedForm(view)
    if view.shape[1] < view.shape[2]:
        raise ShapeError(
            f"Core {at} of '{net}' came pinned on {pin!r}, which is larger than its rest."
        )
    return PinnedForm(view)


def _present(pivots: Tensor | None) -> Tensor:
    if pivots is None:
        raise ShapeError("A pinned core came without its pivots; give one tensor per pinned core.")
    return pivots
