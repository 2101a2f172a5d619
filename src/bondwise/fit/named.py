"""Tensors whose axes have names, and their contraction."""

from collections.abc import Callable, Iterable, Sequence
from functools import lru_cache
from math import exp, log, prod
from typing import Any, NamedTuple

import opt_einsum
import torch
from torch import Tensor


class Named(NamedTuple):
    """A tensor and the names of its axes."""

    tensor: Tensor
    names: tuple[str, ...]

    def to(self, *names: str) -> Tensor:
        """The tensor with its axes in the given order."""
        return self.tensor.permute([self.names.index(name) for name in names])

    def matrix(self, batch: Iterable[str], rows: Iterable[str], cols: Iterable[str]) -> Tensor:
        """The tensor as a batch of matrices: three groups of axes, each made one."""
        groups = [tuple(batch), tuple(rows), tuple(cols)]
        sizes = dict(zip(self.names, self.tensor.shape, strict=True))
        shape = [prod(sizes[name] for name in group) for group in groups]
        return self.to(*groups[0], *groups[1], *groups[2]).reshape(shape)


def contract(parts: Sequence[Named], names: Iterable[str]) -> Tensor:
    """Product of the parts, summed over every name that is not asked for."""
    return _expression(*_call(parts, names))(*(part.tensor for part in parts))


def largest_intermediate(parts: Sequence[Named], names: Iterable[str]) -> int:
    """Entries of the largest tensor on the way of `contract`."""
    return _largest(*_call(parts, names))


def prime(name: str) -> str:
    """A second name for an axis; no index can have it."""
    return f"{name}'"


def twin(part: Named, shared: frozenset[str]) -> Named:
    """The same part with its axes named apart, but for those that are shared."""
    return Named(part.tensor, tuple(n if n in shared else prime(n) for n in part.names))


def balance(parts: Sequence[Named], shared: frozenset[str]) -> list[Named]:
    """Equal norms: every component of a bond, then every core, is as large here as there.

    The product stays. ``shared`` names the open indices, which are not scaled along unless all
    cores of a bond have them (block indices: a bond of its own for every value).
    """
    parts = list(parts)
    for bond in sorted({name for part in parts for name in part.names} - shared):
        _balance_bond(parts, bond, shared)
    norms = [float(part.tensor.norm()) for part in parts]
    if min(norms) == 0:
        return parts
    mean = exp(sum(map(log, norms)) / len(norms))
    return [
        Named(part.tensor * (mean / norm), part.names)
        for part, norm in zip(parts, norms, strict=True)
    ]


def _balance_bond(parts: list[Named], bond: str, shared: frozenset[str]) -> None:
    holders = [k for k, part in enumerate(parts) if bond in part.names]
    common = set[str].intersection(*(set(parts[k].names) for k in holders)) & shared
    keep = (*sorted(common), bond)
    norms = [contract([_square(parts[k])], keep).sqrt() for k in holders]
    mean = torch.stack(norms).log().mean(0).exp()  # zero where one core is zero
    for k, norm in zip(holders, norms, strict=True):
        factor = torch.where(mean > 0, mean / norm, 1.0)
        names = parts[k].names
        aligned = Named(factor, keep).to(*(name for name in names if name in keep))
        shape = [
            size if name in keep else 1
            for name, size in zip(names, parts[k].tensor.shape, strict=True)
        ]
        parts[k] = Named(parts[k].tensor * aligned.reshape(shape), names)


def _square(part: Named) -> Named:
    return Named(part.tensor.square(), part.names)


def _call(
    parts: Sequence[Named], names: Iterable[str]
) -> tuple[tuple[tuple[str, ...], ...], tuple[str, ...], tuple[tuple[int, ...], ...]]:
    shapes = tuple(tuple(part.tensor.shape) for part in parts)
    return tuple(part.names for part in parts), tuple(names), shapes


@lru_cache(maxsize=2048)
def _expression(
    names: tuple[tuple[str, ...], ...], out: tuple[str, ...], shapes: tuple[tuple[int, ...], ...]
) -> Callable[..., Any]:
    return opt_einsum.contract_expression(_equation(names, out), *shapes)


@lru_cache(maxsize=1024)
def _largest(
    names: tuple[tuple[str, ...], ...], out: tuple[str, ...], shapes: tuple[tuple[int, ...], ...]
) -> int:
    _, info = opt_einsum.contract_path(_equation(names, out), *shapes, shapes=True)
    return int(info.largest_intermediate)


def _equation(names: tuple[tuple[str, ...], ...], out: tuple[str, ...]) -> str:
    symbols: dict[str, str] = {}
    for name in (*(name for part in names for name in part), *out):
        symbols.setdefault(name, opt_einsum.get_symbol(len(symbols)))
    terms = ["".join(symbols[name] for name in part) for part in (*names, out)]
    return f"{','.join(terms[:-1])}->{terms[-1]}"
