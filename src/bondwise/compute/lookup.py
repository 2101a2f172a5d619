"""Rows of the weight by their numbers, as an embedding needs them, without building the weight."""

from collections.abc import Sequence
from functools import cache
from math import prod

import torch
from jaxtyping import Float, Int
from torch import Tensor

from bondwise.compute.lower import BATCH, Recipe, recipe
from bondwise.compute.run import check_cores, contract
from bondwise.network.network import Core, Network

NOMINAL = 256  # ids that the order is sought for; it is right for any number


def lookup(
    net: Network, cores: Sequence[Tensor], ids: Int[Tensor, "*batch"]
) -> Float[Tensor, "*batch inp"]:
    """``W[ids]``, of shape ``(*ids.shape, in)``, where W is the dense weight (out x in).

    An id is unravelled into its row modes, each core gives its slice for them, and the slices are
    contracted with the id as an index that all of them share.

    >>> from bondwise import lowrank
    >>> cores = [torch.tensor([[1.], [2.], [3.]]), torch.tensor([[1., 10.]])]
    >>> lookup(lowrank(3, 2, 1), cores, torch.tensor([[2, 0]]))
    tensor([[[ 3., 30.],
             [ 1., 10.]]])

    Raises:
        IndexError: an id is below 0 or not below the number of rows.
        ShapeError: the cores are not the network's.
    """
    check_cores(net, cores)
    out, inp = net.shape
    try:
        slices = _slices(net, cores, ids.reshape(-1))
    except IndexError:
        raise IndexError(
            f"ids from {int(ids.min())} to {int(ids.max())} came; write ids from 0 to {out - 1}, "
            f"the weight has {out} rows."
        ) from None
    return contract(_recipe(net), slices).reshape(*ids.shape, inp)


def _slices(net: Network, cores: Sequence[Tensor], ids: Tensor) -> list[Tensor]:
    """Each core at the row values of each id; one-hot rows for indices open on both sides."""
    digits = _digits(net.rows, ids)
    slices: list[Tensor] = []
    for core, names in zip(cores, net.names, strict=True):
        modes = [index for index in net.rows if index.name in names]
        if not modes:
            slices.append(core)
            continue
        axes = [names.index(index.name) for index in modes]
        rest = [axis for axis in range(core.ndim) if axis not in axes]
        at = _joined([(index.size, digits[index.name]) for index in modes])
        table = core.permute(*axes, *rest).flatten(0, len(axes) - 1)
        slices.append(table.index_select(0, at))
    for index in _diagonal(net):
        values = torch.arange(index.size, device=ids.device)
        slices.append((digits[index.name][:, None] == values).to(cores[0].dtype))
    if not net.rows:
        slices.append(cores[0].new_ones(1).index_select(0, ids))
    return slices


def _digits(rows: Core, ids: Tensor) -> dict[str, Tensor]:
    """The value of each row mode; the first is not wrapped, so that an id out of range stays so."""
    digits: dict[str, Tensor] = {}
    for k, index in enumerate(rows):
        slow = ids.div(prod(later.size for later in rows[k + 1 :]), rounding_mode="floor")
        digits[index.name] = slow.remainder(index.size) if k else slow
    return digits


def _joined(modes: Sequence[tuple[int, Tensor]]) -> Tensor:
    (_, at), *others = modes
    for size, digit in others:
        at = at * size + digit
    return at


def _diagonal(net: Network) -> Core:
    """Indices open on both sides: in row ids, W is zero at every other value of them."""
    return tuple(index for index in net.rows if index in net.cols)


@cache
def _recipe(net: Network) -> Recipe:
    rows = {index.name for index in net.rows}
    inputs = [
        (BATCH, *(name for name in names if name not in rows)) if rows & {*names} else names
        for names in net.names
    ]
    inputs += [(BATCH, index.name) for index in _diagonal(net)]
    if not net.rows:
        inputs.append((BATCH,))
    cols = tuple(index.name for index in net.cols)
    return recipe(inputs, (BATCH, *cols), net.sizes | {BATCH: NOMINAL})
