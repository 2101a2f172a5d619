"""The nearest Kronecker product of a second moment over its modes, and the start that it gives.

With ``C ~ K_1 x K_2 x ..``, one factor per column mode, the metric becomes a change of coordinates
within each mode. It moves into the cores and out again, so a fit without a metric serves: the
weight times the roots of the factors is fitted, and each core is multiplied by the inverse roots.
Block indices of the columns keep factors of their own for each value, those of the diagonal block.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

import torch
from torch import Tensor

from bondwise.fit.moment import Moment
from bondwise.fit.named import Named, contract, prime
from bondwise.fit.target import diagonal
from bondwise.network.network import Network

_ROUNDS = 4  # of alternation; the factors stand still after two or three
_FLOOR = 1e-6  # of the mean variance of a mode, under its eigenvalues: an input that is never seen


@dataclass(frozen=True, eq=False)
class Whitening:
    """Roots of the factors of a metric, and their inverses, by mode; each has axes (.., m, m')."""

    roots: dict[str, Named]
    inverses: dict[str, Named]

    def whiten(self, entries: Named) -> Named:
        """The entries times the roots, each over its own mode."""
        return _along(entries, self.roots)

    def unwhiten(self, net: Network, cores: Sequence[Tensor]) -> list[Tensor]:
        """The cores of a fit of whitened entries, as cores for the entries themselves."""
        return [
            _along(Named(core, names), self.inverses).tensor
            for core, names in zip(cores, net.names, strict=True)
        ]


def whitening(factors: dict[str, Named]) -> Whitening:
    """Roots and inverse roots of factors; eigenvalues below 1e-6 of the mean are raised to it."""
    roots: dict[str, Named] = {}
    inverses: dict[str, Named] = {}
    for mode, (factor, names) in factors.items():
        values, vectors = torch.linalg.eigh(factor)
        mean = values.mean(-1, keepdim=True).clamp(min=torch.finfo(values.dtype).tiny)
        values = torch.maximum(values, _FLOOR * mean).sqrt().unsqueeze(-2)
        roots[mode] = Named((vectors * values) @ vectors.mT, names)
        inverses[mode] = Named((vectors / values) @ vectors.mT, names)
    return Whitening(roots, inverses)


def factors_of(net: Network, moment: Moment) -> dict[str, Named]:
    """One factor per column mode that is on one core alone: axes block indices, m, m'.

    The factors minimise ``||C - K_1 x K_2 x ..||`` by alternation (Van Loan and Pitsianis 1993);
    each is positive semidefinite because the others are. A mode that is open on both sides, or on
    some cores but not all, is summed over. A mode in which the metric is the identity has none.
    """
    found: dict[str, Named] = {}
    scales: list[Named] = []
    for names, factor in zip(moment.groups(net), moment.factors, strict=True):
        if factor is not None:
            factors, scale = _in_group(net, names, factor)
            found |= factors
            scales += [] if scale is None else [scale]
    for name in list(found)[:1]:  # what is known of the blocks alone weighs with any of them
        factor, names = found[name]
        every = tuple(n for n in net.sizes if any(n in scale.names for scale in scales))
        batch = (*every, *(n for n in names if n not in every))
        found[name] = Named(contract([Named(factor, names), *scales], batch), batch)
    return found


def _in_group(
    net: Network, names: Sequence[str], moment: Tensor
) -> tuple[dict[str, Named], Named | None]:
    """The factors of modes under one factor of the metric, or their scale where all are blocks."""
    both = {index.name for index in net.rows} & {index.name for index in net.cols}
    own = [name for name in names if len(net.places[name]) == 1 and name not in both]
    batch = [name for name in names if len(net.places[name]) == len(net.cores) > 1]
    paired = (*names, *(prime(name) if name in own else name for name in names))
    sizes = [net.sizes[name] for name in names]
    whole = diagonal(Named(moment.reshape(*sizes, *sizes), paired))
    primed = [prime(name) for name in own]
    values = contract([whole], [*batch, *own, *primed]).reshape(
        prod(net.sizes[name] for name in batch), *(net.sizes[name] for name in [*own, *own])
    )
    found = _nearest(Named(values, ("", *own, *primed)), own)
    shape = [net.sizes[name] for name in batch]
    if batch and not own:
        return {}, Named(values.reshape(shape), tuple(batch))
    return {
        name: Named(factor.reshape(*shape, *factor.shape[1:]), (*batch, name, prime(name)))
        for name, factor in found.items()
    }, None


def _nearest(moment: Named, own: Sequence[str]) -> dict[str, Tensor]:
    blocks = moment.tensor.shape[0]
    like = moment.tensor
    factors = {
        name: torch.eye(size, dtype=like.dtype, device=like.device).expand(blocks, size, size)
        for name, size in zip(own, moment.tensor.shape[1:], strict=False)
    }
    for _ in range(_ROUNDS if len(own) > 1 else 1):
        for name in own:
            others = [Named(factors[o], ("", o, prime(o))) for o in own if o != name]
            factor = contract([moment, *others], ["", name, prime(name)])
            for other in others:
                norm = other.tensor.square().sum((-1, -2), keepdim=True)
                factor = factor / norm.clamp(min=torch.finfo(norm.dtype).tiny)
            factors[name] = factor
    return factors


def _along(entries: Named, factors: dict[str, Named]) -> Named:
    tensor, names = entries
    for mode, factor in factors.items():
        if mode in names:
            primed = tuple(prime(mode) if name == mode else name for name in names)
            tensor = contract([Named(tensor, primed), factor], names)
    return Named(tensor, names)
