"""A second moment as an operator: a Kronecker product over consecutive groups of columns.

A full metric is one group. The patches of a convolution have two, channels and kernel, and the
product of the two, which would be (in * k) x (in * k), is never formed.

A factor whose modes sit on one core alone is a change of coordinates of that core. It is taken in
before a fit and out again after it, exactly; only the rest of the metric stays.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from math import prod

import torch
from jaxtyping import Float
from torch import Tensor

from bondwise.errors import FitError
from bondwise.fit.named import Named, prime
from bondwise.fit.target import diagonal
from bondwise.network.network import Network

_FLOOR = 1e-16  # of the largest eigenvalue, below which float64 knows none


@dataclass(frozen=True, eq=False)
class Moment:
    """``C = C_1 x C_2 x ..`` over columns of ``sizes``, row-major; None is the identity.

    >>> pair = Moment((2, 3), (torch.ones(2, 2), None))
    >>> torch.equal(pair.push(torch.eye(6)), torch.kron(torch.ones(2, 2), torch.eye(3)))
    True
    """

    sizes: tuple[int, ...]
    factors: tuple[Tensor | None, ...]

    @classmethod
    def of(cls, *factors: Tensor) -> "Moment":
        """The product of factors; those that are the identity are not multiplied with."""
        return cls(tuple(len(factor) for factor in factors), tuple(map(_unless_identity, factors)))

    @property
    def identity(self) -> bool:
        """Whether it weighs nothing differently from anything else."""
        return all(factor is None for factor in self.factors)

    @property
    def work(self) -> int:
        """Multiplications of `push` for every entry of the matrix."""
        return sum(len(factor) for factor in self.factors if factor is not None)

    def to(self, like: Tensor | torch.dtype | torch.device) -> "Moment":
        """The same on another device or in another dtype."""
        return Moment(self.sizes, tuple(None if f is None else f.to(like) for f in self.factors))

    def push(self, matrix: Float[Tensor, "out inp"]) -> Float[Tensor, "out inp"]:
        """``A C`` in the dtype of ``A``."""
        here = self if matrix.dtype == torch.float64 else self._single
        for group, factor in enumerate(here.factors):
            if factor is not None:
                matrix = self._along(matrix, group, factor.to(matrix.dtype))
        return matrix

    def root(self) -> "Moment":
        """The symmetric ``L`` with ``C = L L``, factor by factor."""
        return Moment(self.sizes, tuple(None if f is None else root(f) for f in self.factors))

    def dense(self, like: Tensor) -> Float[Tensor, "inp inp"]:
        """The product itself, in the dtype and on the device of a tensor."""
        return self.push(torch.eye(prod(self.sizes), dtype=like.dtype, device=like.device))

    def groups(self, net: Network) -> list[list[str]]:
        """The column modes under each factor.

        Raises:
            FitError: they do not split where the factors do.
        """
        left = [(index.name, index.size) for index in net.cols]
        found: list[list[str]] = []
        for size in self.sizes[:-1]:
            group: list[str] = []
            while left and prod(net.sizes[name] for name in group) < size:
                group.append(left.pop(0)[0])
            if prod(net.sizes[name] for name in group) != size:
                modes = " x ".join(str(index.size) for index in net.cols)
                raise FitError(
                    f"A metric of {' x '.join(map(str, self.sizes))} columns came for a network "
                    f"with column modes {modes}; give it modes that split at {size}."
                )
            found.append(group)
        return [*found, [name for name, _ in left]]

    def operands(self, net: Network) -> tuple[frozenset[str], list[Named]]:
        """Open indices in which it is diagonal, and its factors over the others and their twins."""
        groups = self.groups(net)
        shared = {index.name for index in net.rows}
        shared.update(*(g for g, f in zip(groups, self.factors, strict=True) if f is None))
        parts: list[Named] = []
        for names, factor in zip(groups, self.factors, strict=True):
            if factor is not None:
                sizes = [net.sizes[name] for name in names]
                twins = (name if name in shared else prime(name) for name in names)
                parts.append(diagonal(Named(factor.reshape(*sizes, *sizes), (*names, *twins))))
        return frozenset(shared), parts

    @cached_property
    def _single(self) -> "Moment":
        return self.to(torch.float32)

    def _along(self, matrix: Tensor, group: int, factor: Tensor) -> Tensor:
        after = prod(self.sizes[group + 1 :])
        if after == 1:
            return (matrix.reshape(-1, len(factor)) @ factor).reshape(matrix.shape)
        columns = matrix.reshape(-1, len(factor), after)
        return torch.bmm(factor.expand(len(columns), -1, -1), columns).reshape(matrix.shape)


@dataclass(frozen=True, eq=False)
class Coordinates:
    """Coordinates in which a part of a metric is the identity.

    Attributes:
        roots: of the factors that are taken in, over all columns.
        rest: what is left of the metric.
        inverses: of the roots: the core, its modes under the factor, and the matrix.
    """

    roots: Moment
    rest: Moment
    inverses: tuple[tuple[int, tuple[str, ...], Tensor], ...]

    @classmethod
    def of(cls, net: Network, moment: Moment) -> "Coordinates | None":
        """Those that take in every factor that one core has to itself; None where there is none.

        Eigenvalues below 1e-16 of the largest, those of inputs that never come, are raised to it:
        what the cores do with such inputs is then what the weight does, to eight digits.
        """
        roots: list[Tensor | None] = []
        rest: list[Tensor | None] = []
        inverses: list[tuple[int, tuple[str, ...], Tensor]] = []
        for names, factor in zip(moment.groups(net), moment.factors, strict=True):
            wide = tuple(name for name in names if net.sizes[name] > 1)
            core = _alone(net, wide)
            if factor is None or core is None:
                roots.append(None)
                rest.append(factor)
                continue
            values, vectors = torch.linalg.eigh(factor.to(torch.float64))
            values = values.clamp(min=_FLOOR * float(values[-1])).sqrt()
            roots.append((vectors * values) @ vectors.mT)
            rest.append(None)
            inverses.append((core, wide, (vectors / values) @ vectors.mT))
        if not inverses:
            return None
        sizes = moment.sizes
        return cls(Moment(sizes, tuple(roots)), Moment(sizes, tuple(rest)), tuple(inverses))

    def back(self, net: Network, cores: Sequence[Tensor]) -> list[Tensor]:
        """Cores that were fitted in these coordinates, as cores for the weight itself."""
        cores = list(cores)
        for core, modes, inverse in self.inverses:
            names = net.names[core]
            rest = [name for name in names if name not in modes]
            tensor = Named(cores[core], names).to(*modes, *rest)
            moved = (inverse @ tensor.reshape(len(inverse), -1)).reshape(tensor.shape)
            cores[core] = Named(moved, (*modes, *rest)).to(*names).contiguous()
        return cores


def root(moment: Float[Tensor, "inp inp"]) -> Float[Tensor, "inp inp"]:
    """The symmetric ``L`` with ``C = L L``; negative eigenvalues are rounding and count as zero."""
    values, vectors = torch.linalg.eigh(moment)
    return (vectors * values.clamp(min=0).sqrt()) @ vectors.mT


def _alone(net: Network, modes: Sequence[str]) -> int | None:
    """The core that has all of some column modes to itself."""
    places = {net.places[name] for name in modes}
    both = {index.name for index in net.rows} & set(modes)
    if len(places) != 1 or both:
        return None
    (cores,) = places
    return cores[0] if len(cores) == 1 else None


def _unless_identity(factor: Tensor) -> Tensor | None:
    eye = torch.eye(len(factor), dtype=factor.dtype, device=factor.device)
    return None if torch.equal(factor, eye) else factor
