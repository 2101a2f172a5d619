"""Rows of the weight by their numbers, as an embedding needs them, without building the weight."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from math import prod
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from bondwise.compute.lower import program
from bondwise.compute.product import contract
from bondwise.compute.run import check_shapes
from bondwise.compute.steps import BATCH, Program
from bondwise.network.network import Network

NOMINAL = 256  # ids that the order is sought for; it is right for any number


def lookup(
    net: Network, cores: Sequence[Tensor], ids: Int[Tensor, "*batch"]
) -> Float[Tensor, "*batch inp"]:
    """``W[ids]``, of shape ``(*ids.shape, in)``, where W is the dense weight (out x in).

    An id is unravelled into its row modes, each core gives its slice for them, and the slices are
    contracted with the id as an index that all of them share. The order is sought once per network.

    >>> from bondwise import lowrank
    >>> cores = [torch.tensor([[1.], [2.], [3.]]), torch.tensor([[1., 10.]])]
    >>> lookup(lowrank(3, 2, 1), cores, torch.tensor([[2, 0]]))
    tensor([[[ 3., 30.],
             [ 1., 10.]]])

    Raises:
        IndexError: an id is below 0 or not below the number of rows.
        ShapeError: the cores are not the network's.
    """
    plan = planned(net)
    check_shapes(net, plan.core_shapes, cores)
    return looked(plan, tables(plan, cores), ids)


def looked(plan: "Lookup", held: Sequence[Tensor], ids: Tensor) -> Tensor:
    """Rows from what `tables` gave.

    Raises:
        IndexError: an id is below 0 or not below the number of rows.
    """
    try:
        operands = _operands(plan, held, ids.reshape(-1))
    except IndexError:
        raise beyond(ids, plan.shape[0]) from None
    return contract(plan.program, operands).reshape(*ids.shape, plan.shape[1])


def beyond(ids: Tensor, rows: int) -> IndexError:
    """What to say of ids that are no rows."""
    return IndexError(
        f"ids from {int(ids.min())} to {int(ids.max())} came; write ids from 0 to {rows - 1}, "
        f"the weight has {rows} rows."
    )


class _Digit(NamedTuple):
    """A row mode's value in an id: ``id // stride % size``."""

    stride: int
    size: int
    wraps: bool  # the first row mode does not, so that an id out of range stays out of range


class _Slice(NamedTuple):
    """How a core is cut at the rows asked for."""

    order: tuple[int, ...]  # its axes, row modes first
    shape: tuple[int, ...]  # one axis for all row modes, then the others
    digits: tuple[_Digit, ...]


@dataclass(frozen=True, slots=True)
class Lookup:
    """What is known before the first id comes: plain data."""

    program: Program
    shape: tuple[int, int]
    core_shapes: tuple[tuple[int, ...], ...]
    slices: tuple[_Slice | None, ...]  # None: a core without row modes enters whole
    diagonal: tuple[_Digit, ...]  # indices open on both sides


@torch.compiler.assume_constant_result  # torch.compile must not trace the search
def planned(net: Network) -> "Lookup":
    """What is known of a network before the first id comes."""
    return _made(net)


@cache
def _made(net: Network) -> Lookup:
    rows = {index.name for index in net.rows}
    diagonal = [index.name for index in net.rows if index in net.cols]
    inputs = [
        (BATCH, *(name for name in names if name not in rows)) if rows & {*names} else names
        for names in net.names
    ]
    inputs += [(BATCH, name) for name in diagonal] or [(BATCH,)] * (not net.rows)
    found = program(
        inputs, (BATCH, *(index.name for index in net.cols)), net.sizes | {BATCH: NOMINAL}
    )
    digits = {
        index.name: _Digit(prod(later.size for later in net.rows[k + 1 :]), index.size, k > 0)
        for k, index in enumerate(net.rows)
    }
    return Lookup(
        found,
        net.shape,
        net.core_shapes,
        tuple(_slice(names, digits, net.sizes) for names in net.names),
        tuple(digits[name] for name in diagonal),
    )


def _slice(
    names: tuple[str, ...], digits: dict[str, _Digit], sizes: dict[str, int]
) -> _Slice | None:
    modes = [name for name in digits if name in names]
    rest = [name for name in names if name not in digits]
    if not modes:
        return None
    return _Slice(
        tuple(names.index(name) for name in (*modes, *rest)),
        (prod(sizes[name] for name in modes), *(sizes[name] for name in rest)),
        tuple(digits[name] for name in modes),
    )


def tables(plan: Lookup, cores: Sequence[Tensor]) -> list[Tensor]:
    """Each core with its row modes as one axis, the first; one without row modes as it is."""
    return [
        core if cut is None else core.permute(cut.order).reshape(cut.shape)
        for core, cut in zip(cores, plan.slices, strict=True)
    ]


def _operands(plan: Lookup, held: Sequence[Tensor], ids: Tensor) -> list[Tensor]:
    """Each table at the rows asked for, and one-hot values of the indices open on both sides."""
    like = held[0]
    operands = [
        own if cut is None else own.index_select(0, _at(cut, ids))
        for own, cut in zip(held, plan.slices, strict=True)
    ]
    for digit in plan.diagonal:
        values = torch.arange(digit.size, device=ids.device)
        operands.append((_value(digit, ids)[:, None] == values).to(like.dtype))
    if all(cut is None for cut in plan.slices):  # no row modes: the only row is 0
        operands.append(like.new_ones(1).index_select(0, ids))
    return operands


def _at(cut: _Slice, ids: Tensor) -> Tensor:
    at = _value(cut.digits[0], ids)
    for digit in cut.digits[1:]:
        at = at * digit.size + _value(digit, ids)
    return at


def _value(digit: _Digit, ids: Tensor) -> Tensor:
    value = ids.div(digit.stride, rounding_mode="floor")
    return value.remainder(digit.size) if digit.wraps else value
