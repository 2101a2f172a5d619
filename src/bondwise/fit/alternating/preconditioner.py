"""What conjugate gradients are preconditioned by: the half-step in a Kronecker-factored metric."""

from collections.abc import Callable, Mapping, Sequence
from math import prod

import torch
from torch import Tensor

from bondwise.fit.alternating.solvers import ENTRIES, SMALL, Operator
from bondwise.fit.named import Named, contract, prime, twin
from bondwise.network.network import Network

_RIDGE = 1e-2  # of the mean, on every factor


def preconditioner(
    net: Network, factors: Mapping[str, Named], parts: list[Named], k: int, dtype: torch.dtype
) -> Operator:
    """The inverse of the half-step's matrix for the Kronecker factors in the place of the metric.

    It is a product too: one factor for each mode of the core's own, one for each part of the
    network that hangs on the core.
    """
    own = parts[k].names
    inverses = [
        _inverse(factor, [n for n in factor.names if n not in (mode, prime(mode))], [mode], dtype)
        for mode, factor in factors.items()
        if mode in own
    ]
    for group in _hanging(parts, k, net.open):
        gram = _bond_gram(net, factors, group, own)
        if gram is not None:
            inverses.append(_inverse(*gram, dtype))
    return _chain(inverses, own)


def _chain(inverses: list[Callable[[Named], Named]], names: tuple[str, ...]) -> Operator:
    def precondition(residual: Tensor) -> Tensor:
        result = Named(residual, names)
        for inverse in inverses:
            result = inverse(result)
        return result.to(*names)

    return precondition


def _hanging(parts: list[Named], k: int, shared: frozenset[str]) -> list[list[Named]]:
    """The other parts, in groups joined by bonds."""
    groups: list[list[Named]] = []
    for part in (*parts[:k], *parts[k + 1 :]):
        apart: list[list[Named]] = []
        joined = [part]
        for group in groups:
            if any(set(part.names) & set(other.names) - shared for other in group):
                joined += group
            else:
                apart.append(group)
        groups = [*apart, joined]
    return groups


def _bond_gram(
    net: Network, factors: Mapping[str, Named], group: list[Named], own: tuple[str, ...]
) -> tuple[Named, list[str], list[str]] | None:
    """Gram matrix of a group over the bonds to the core, for each value of shared open indices."""
    inside = {name for part in group for name in part.names}
    bonds = [name for name in own if name in inside and name not in net.open]
    batch = [name for name in own if name in inside and name in net.open]
    size, count = (prod(net.sizes[n] for n in names) for names in (bonds, batch))
    if not bonds or size > SMALL or count * size * size > ENTRIES:
        return None
    metric = {mode: f for mode, f in factors.items() if mode in inside and mode not in own}
    loose = frozenset(net.open) - set(metric)
    operands = [*group, *(twin(part, loose) for part in group)]
    operands += [f for f in metric.values() if set(f.names[:-2]) <= inside]
    names = (*batch, *bonds, *(prime(bond) for bond in bonds))
    return Named(contract(operands, names), names), batch, bonds


def _inverse(
    matrix: Named, batch: Sequence[str], rows: Sequence[str], dtype: torch.dtype
) -> Callable[[Named], Named]:
    """The product with the inverse of a matrix over ``rows``, a ridge of 1e-2 of its mean added."""
    values = matrix.matrix(batch, rows, [prime(name) for name in rows])
    mean = values.diagonal(dim1=-2, dim2=-1).mean(-1).clamp(min=torch.finfo(values.dtype).tiny)
    eye = torch.eye(values.shape[-1], dtype=values.dtype, device=values.device)
    factor = torch.linalg.cholesky(values + (_RIDGE * mean)[:, None, None] * eye)
    inverse = torch.cholesky_inverse(factor).to(dtype)  # batches of LU can hang on two threads
    around = (*batch, *rows)

    def apply(residual: Named) -> Named:
        rest = [name for name in residual.names if name not in around]
        solved = inverse @ residual.matrix(batch, rows, rest)
        names = (*around, *rest)
        sizes = dict(zip(residual.names, residual.tensor.shape, strict=True))
        return Named(solved.reshape([sizes[name] for name in names]), names)

    return apply
