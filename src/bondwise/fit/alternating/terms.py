"""Sums of terms that share one index, as CP: how large the terms are, so that none cancel.

The best sum of r terms need not exist: terms grow without bound and cancel (de Silva and Lim 2008),
which costs digits once the cores are stored, and hinders healing. A bound on the norms of the terms
brings a best fit back (Lim and Comon 2010; as error-preserving correction, Phan et al. 2020).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from bondwise.fit.moment import Moment
from bondwise.fit.named import Named, contract, twin
from bondwise.network.network import Network

LIMIT = 10.0  # of the norm of the weight, the largest norm of a term


@dataclass(frozen=True)
class Penalty:
    """``weight`` times the squared norms of all terms, added to a squared error.

    In a half-step it is the diagonal blocks of the Gram matrix, those of one term, once more.
    """

    bonds: tuple[str, ...]
    weight: float

    def on(self, gram: Tensor, names: Sequence[str], sizes: Sequence[int]) -> Tensor:
        """The Gram matrix over axes of the given names, their sizes leading, with the penalty."""
        if not self.weight:
            return gram
        mask = torch.ones(1, 1, dtype=gram.dtype, device=gram.device)
        for name, size in zip(names, sizes, strict=False):
            one = torch.ones(size, size, dtype=gram.dtype, device=gram.device)
            mask = torch.kron(mask, torch.eye(size).to(one) if name in self.bonds else one)
        return gram * (1 + self.weight * mask)

    def of(self, parts: Sequence[Named], shared: frozenset[str]) -> float:
        """Its value; ``shared`` names the open indices."""
        if not self.weight:
            return 0.0
        return self.weight * float(squared_norms(parts, self.bonds, shared).sum())


NONE = Penalty((), 0.0)


def term_bonds(net: Network) -> tuple[str, ...]:
    """The bonds on every core, of which each value is a term; of two cores an SVD bounds them.

    >>> from bondwise import cp, mpo
    >>> term_bonds(cp(4, (2, 3), 5)), term_bonds(mpo((2, 2), (2, 2), 2))
    (('r',), ())
    """
    every = len(net.cores)
    return tuple(bond for bond in net.bonds if len(net.places[bond]) == every > 2)


def squared_norms(
    parts: Sequence[Named],
    bonds: Sequence[str],
    shared: frozenset[str],
    metric: Sequence[Named] = (),
) -> Tensor:
    """``||term||^2`` for each value of the bonds, and of the shared indices that all parts have."""
    blocks = set[str].intersection(*(set(part.names) for part in parts)) & shared
    twins = [twin(part, shared | set(bonds)) for part in parts]
    return contract([*parts, *twins, *metric], (*sorted(blocks), *bonds)).clamp(min=0)


def largest_term(net: Network, cores: Sequence[Tensor], moment: Moment | None) -> float | None:
    """The largest ``||term L||``, in float64; None where the network is no sum of terms."""
    bonds = term_bonds(net)
    if not bonds:
        return None
    parts = [Named(core.double(), names) for core, names in zip(cores, net.names, strict=True)]
    shared, metric = (net.open, []) if moment is None else moment.operands(net)
    return float(squared_norms(parts, bonds, shared, metric).max().sqrt())
