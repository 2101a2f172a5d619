"""Schmidt values of a bond: how a weight is folded, how it unfolds at a bond, and what is there."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import prod

import opt_einsum
import torch
from torch import Tensor, nn

from bondwise.choose.select import matches
from bondwise.errors import SelectionError, ShapeError
from bondwise.layers.hosts.registry import matrix_of
from bondwise.network.network import Network
from bondwise.network.shapes import balanced, check_split
from bondwise.read.bonds import Bond, matrices, sides
from bondwise.topology.mpo import mpo

Modes = tuple[tuple[int, ...], tuple[int, ...]]
"""Row modes and column modes."""

Fold = str | Mapping[str, Modes] | Callable[[str, nn.Module], Modes]
""" "auto", modes by pattern (the others as "auto"), or a function of a layer's path and module."""

QUERY = ("q_proj", "query", "q_lin")
KEY_OR_VALUE = ("k_proj", "v_proj", "key", "value", "k_lin", "v_lin")
OUTPUT = ("o_proj", "out_proj", "out_lin")


def schmidt_values(bond: Bond) -> Tensor:
    """Schmidt values at a bond that cuts, (blocks, count) in float64, descending.

    The singular values of the weight unfolded into the two sides of the bond, for each block. With
    the sides ``Q1 R1`` and ``Q2 R2`` they are those of ``R1 R2^T``: the weight is never formed
    (Oseledets 2011). There are as many as the bond and the smaller side allow.

    >>> from bondwise import lowrank
    >>> cores = (torch.eye(3)[:, :2], torch.diag(torch.tensor([3.0, 4.0])))
    >>> schmidt_values(Bond("", lowrank(3, 2, 2), cores, "a"))
    tensor([[4., 3.]], dtype=torch.float64)

    Raises:
        NetworkError: the bond does not cut the network.
    """
    first, second = (torch.linalg.qr(side.cpu(), mode="r").R for side in matrices(bond))
    return torch.linalg.svdvals(first @ second.mT)


def entropy(values: Tensor) -> Tensor:
    """Entropy in nats of ``p = values^2 / sum values^2`` along the last dimension; 0 for zeros.

    >>> entropy(torch.ones(4)).item()       # log 4
    1.386...
    """
    squares = values.double().square()
    shares = squares / squares.sum(-1, keepdim=True).clamp(min=torch.finfo(torch.float64).tiny)
    return torch.special.xlogy(shares, shares).sum(-1).abs()


def profile(values: Tensor) -> Tensor:
    """Descending values of some blocks, (blocks, count), as one: root mean square at each place."""
    return values.double().square().mean(-2).sqrt()


def term_norms(net: Network, cores: Sequence[Tensor], name: str) -> Tensor:
    """Norms of the terms ``W_b`` of a bond: root of the diagonal of their Gram matrix, float64.

    The network is contracted with itself, its bond held fixed; no term is ever formed.
    """
    operands: list[Tensor | list[str]] = []
    for copy in ("", "'"):
        for core, names in zip(cores, net.names, strict=True):
            own = [n if n in net.open or n == name else n + copy for n in names]
            operands += [core.double(), own]
    squares: Tensor = opt_einsum.contract(*operands, [name])
    return squares.clamp(min=0).sqrt()


def fast_values(matrices: Tensor, count: int) -> Tensor:
    """The largest singular values of a batch, (blocks, count), from the smaller Gram matrix.

    In the dtype of the matrices; with matrices of norm 1, values are off by at most the root of
    that dtype's rounding (3e-4 or 1e-8), where they are far below the largest, and much less above.
    """
    wide = matrices.shape[-2] <= matrices.shape[-1]
    gram = matrices @ matrices.mT if wide else matrices.mT @ matrices
    return torch.linalg.eigvalsh(gram).double().clamp(min=0).sqrt().flip(-1)[..., :count]


@dataclass(frozen=True)
class Cut:
    """How a weight (out x in) unfolds at a bond that cuts its network.

    Attributes:
        modes: of the rows, then of the columns.
        order: the modes that are blocks, then those of the first side, then of the second.
        shape: sizes of the blocks, the first and the second side.
        divides: the sides are the rows and the columns, so the unfolding is the weight itself.
    """

    modes: tuple[int, ...]
    order: tuple[int, ...]
    shape: tuple[int, int, int]
    divides: bool

    def matrix(self, weight: Tensor) -> Tensor:
        """The weight unfolded: ``(blocks, first, second)``."""
        return weight.reshape(self.modes).permute(self.order).reshape(self.shape)


def cut(net: Network, name: str) -> Cut | None:
    """How the weight of a network unfolds at a bond; None where the bond does not cut it.

    >>> cut(mpo((2, 3), (4, 5), 6), "a").shape
    (1, 8, 15)
    """
    found = sides(net, name)
    if found is None:
        return None
    blocks = {index.name for index in found.blocks}
    first = {index.name for k in found.first for index in net.cores[k]}
    modes = [*net.rows, *net.cols]
    groups: tuple[list[int], list[int], list[int]] = ([], [], [])
    for axis, index in enumerate(modes):
        side = 0 if index.name in blocks else 1 if index.name in first else 2
        groups[side].append(axis)
    kinds = [{axis < len(net.rows) for axis in axes if modes[axis].size > 1} for axes in groups]
    return Cut(
        tuple(index.size for index in modes),
        tuple(axis for axes in groups for axis in axes),
        (_size(net, groups[0]), _size(net, groups[1]), _size(net, groups[2])),
        not kinds[0] and len(kinds[1]) <= 1 and len(kinds[2]) <= 1 and kinds[1] != kinds[2],
    )


def _size(net: Network, axes: list[int]) -> int:
    modes = [*net.rows, *net.cols]
    return prod(modes[axis].size for axis in axes)


def folded(path: str, module: nn.Module, fold: Fold = "auto", config: object = None) -> Network:
    """The MPO (Oseledets 2011) as which a dense weight is looked at, with full bonds.

    By default two sites, with modes as equal as they can be. The rows of a query, key or value
    projection are ``(heads, size of a head)`` where the model's config tells the number of heads,
    and so are the columns of an output projection: the bond then lies between the heads and what
    is in them.

    >>> net = folded("q_proj", nn.Linear(6, 8))
    >>> str(net), net.bonds
    ('o1 i1 a, a o2 i2 -> (o1 o2) (i1 i2)', {'a': 4})

    Args:
        path: of the layer in its model.
        module: a dense linear layer or an embedding.
        fold: see `Fold`.
        config: the model's, as transformers writes it; None where there is none.

    Raises:
        SelectionError: a fold that is not known.
        ShapeError: modes that do not multiply to the size of the weight, or a single site.
    """
    out, inp = matrix_of(module).shape
    rows, cols = _modes(path, module, fold, config)
    check_split(out, rows, f"Rows of {path or 'the layer'}")
    check_split(inp, cols, f"Columns of {path or 'the layer'}")
    sites = max(len(rows), len(cols))
    if sites < 2:
        raise ShapeError(
            f"Modes {rows} and {cols} came for {path or 'the layer'}, a single site without a "
            f"bond; write two or more, such as {balanced(out, 2)} and {balanced(inp, 2)}."
        )
    heads = [prod(rows[:k]) * prod(cols[:k]) for k in range(1, sites)]
    return mpo(rows, cols, tuple(min(n, out * inp // n) for n in heads))


def _modes(path: str, module: nn.Module, fold: Fold, config: object) -> Modes:
    if callable(fold):
        return fold(path, module)
    if isinstance(fold, Mapping):
        given = next((fold[name] for name in fold if matches(name, path, module)), None)
        return _auto(path, module, config) if given is None else given
    if fold != "auto":
        raise SelectionError(
            f"Fold {fold!r} came; write 'auto', {{pattern: (rows, cols)}} or a function."
        )
    return _auto(path, module, config)


def _auto(path: str, module: nn.Module, config: object) -> Modes:
    out, inp = (int(n) for n in matrix_of(module).shape)
    heads, fewer, size = _heads(config)
    last = path.rpartition(".")[2]
    rows = heads if last in QUERY else fewer if last in KEY_OR_VALUE else 0
    is_output = last in OUTPUT or path.endswith(("attention.output.dense", "attn.c_proj"))
    return (
        (rows, size) if rows and rows * size == out else balanced(out, 2),
        (heads, size) if is_output and heads and heads * size == inp else balanced(inp, 2),
    )


def _heads(config: object) -> tuple[int, int, int]:
    """Heads of the queries, of keys and values, and the size of one; zeros where not known."""
    own = getattr(config, "get_text_config", lambda: config)()
    heads = getattr(own, "num_attention_heads", None)
    width = getattr(own, "hidden_size", None)
    if not isinstance(heads, int) or not isinstance(width, int) or heads < 1:
        return 0, 0, 0
    fewer = getattr(own, "num_key_value_heads", None)
    return heads, fewer or heads, getattr(own, "head_dim", None) or width // heads
