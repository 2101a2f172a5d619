"""A layer as its stack: one sparse linear layer for each core, whose bonds can be hooked."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from bondwise.compute.stack import checked_order, factor
from bondwise.compute.through import passage, through
from bondwise.errors import ShapeError
from bondwise.gauge.forms import CoreForm, core_forms
from bondwise.layers.remainder import Columns, Entries, Remainder
from bondwise.layers.storage import TensorLayer
from bondwise.network.stack import Level, levels


class SparseLinear(nn.Module):
    """One level of a stack, ``(*batch, in) -> (*batch, out)``: a core beside identities.

    The parameter ``core`` is the layer's own ``core_k``, so gradients and steps reach the layer.
    ``weight`` is the sparse matrix that ``forward`` multiplies by, through its core, without
    building it. ``level`` names what the data carries: ``level.before`` and ``level.after``.

    >>> from bondwise import TensorLinear, mpo
    >>> first = TensorLinear(mpo((2, 3), (4, 5), 6)).as_stack(order=(1, 0))[0]
    >>> first
    SparseLinear(core 1, i1 i2 -> i1 a o2, 20 -> 72, 360 entries)
    >>> first.named(first(torch.zeros(7, 20))).shape        # batch, i1, a, o2
    torch.Size([7, 4, 6, 3])
    >>> first.weight.shape, first.weight.layout
    (torch.Size([72, 20]), torch.sparse_coo)

    Args:
        level: which core it is, and what the data carries before and after it.
        form: how the core is stored.
        core: the stored core.
        pivots: positions of its identity blocks, where it has some.
        bias: what is added to its outputs.
        carried: values at the end of the data that only pass.
    """

    core: nn.Parameter
    pivots: Tensor | None
    bias: nn.Parameter | None

    def __init__(
        self,
        level: Level,
        form: CoreForm,
        core: nn.Parameter,
        pivots: Tensor | None = None,
        bias: nn.Parameter | None = None,
        carried: int = 0,
    ) -> None:
        super().__init__()
        self.level, self.carried = level, carried
        self.out_features, self.in_features = (size + carried for size in level.shape)
        self._form, self._passage = form, passage(level)
        self.register_parameter("core", core)
        self.register_buffer("pivots", pivots)
        self.register_parameter("bias", bias)

    def forward(self, x: Tensor) -> Tensor:
        """``x weight^T + bias``."""
        _check_width(self, x)
        own = self.level.shape[1]
        y = through(self._passage, self._core(), x[..., :own])
        y = y if self.bias is None else y + self.bias.to(y.dtype)
        return torch.cat([y, x[..., own:].to(y.dtype)], dim=-1) if self.carried else y

    @property
    def weight(self) -> Tensor:
        """The sparse matrix, out x in (COO, coalesced), without what is only carried."""
        return factor(self.level, self._core())

    def named(self, y: Tensor) -> Tensor:
        """The layer's outputs with an axis for each index: ``(*batch, *sizes of level.after)``."""
        _check_width(self, y, "out")
        sizes = [index.size for index in self.level.after]
        return y[..., : self.level.shape[0]].reshape(*y.shape[:-1], *sizes)

    def extra_repr(self) -> str:
        """The core, the indices before and after it, and the sizes."""
        states = (self.level.before, self.level.after)
        names = (" ".join(index.name for index in state) or "()" for state in states)
        carried = f", {self.carried} carried" if self.carried else ""
        return (
            f"core {self.level.core}, {' -> '.join(names)}, "
            f"{self.in_features} -> {self.out_features}, {self.level.nnz} entries{carried}"
        )

    def _core(self) -> Tensor:
        return self._form.expand(self.core, self.pivots)


class Carry(nn.Module):
    """``x -> (x, x[columns])``: inputs that a remainder needs, beside those of the first core."""

    columns: Tensor

    def __init__(self, columns: Tensor, in_features: int) -> None:
        super().__init__()
        self.in_features, self.out_features = in_features, in_features + len(columns)
        self.register_buffer("columns", columns)

    def forward(self, x: Tensor) -> Tensor:
        """The inputs, and after them those of the columns again."""
        _check_width(self, x)
        return torch.cat([x, x.index_select(-1, self.columns)], dim=-1)

    def extra_repr(self) -> str:
        """The sizes."""
        return f"{self.in_features} -> {self.out_features}"


class AddRemainder(nn.Module):
    """``(y, x[columns]) -> y + R x``: a remainder added to what the cores gave.

    The parameter ``remainder`` is the layer's own.
    """

    remainder: nn.Parameter
    positions: Tensor

    def __init__(self, rest: Remainder, width: int, out_features: int) -> None:
        super().__init__()
        self.in_features, self.out_features = out_features + width, out_features
        self._kind = type(rest)
        self.register_parameter("remainder", rest.values)  # pyright: ignore[reportArgumentType]
        self.register_buffer("positions", rest.positions)

    def forward(self, x: Tensor) -> Tensor:
        """The outputs with the remainder."""
        _check_width(self, x)
        y, carried = x[..., : self.out_features], x[..., self.out_features :]
        rest = self._kind(self.positions, self.remainder)
        return y + rest.apply(carried, self.out_features).to(y.dtype)

    def extra_repr(self) -> str:
        """The sizes, and how many entries or columns are kept."""
        kept = f"{len(self.positions)} {self._kind.kind}"
        return f"{self.in_features} -> {self.out_features}, {kept}"


def stacked(
    layer: TensorLayer,
    order: Iterable[Any] | None = None,
    bias: nn.Parameter | None = None,
    rest: Remainder | None = None,
) -> nn.Sequential:
    """A layer as an ``nn.Sequential`` of sparse linear layers, with the same output.

    Its parameters are the layer's own, so that one trains with the other. Move the layer, or load
    it, before: a stack keeps the positions of identity blocks as they were.

    Args:
        layer: whose cores.
        order: of the cores, as the input meets them; by default that with the fewest entries.
        bias: added by the last core's layer.
        rest: what is kept beside the network. A first module then copies the inputs that it needs
            to the end of the data, where the cores let them pass, and a last one adds it.

    Raises:
        PlanError: the order leaves out a core, repeats one, or names one that is not there.
    """
    net = layer.network
    pinned = (None,) * len(net.cores) if layer.form is None else layer.form.pinned
    forms, cores, pivots = core_forms(net, pinned), layer.matrices(), layer.pivots()
    made = levels(net, checked_order(net, order))
    columns, narrow = (None, None) if rest is None else _narrowed(rest, net.shape[1])
    width = 0 if columns is None else len(columns)
    chain = [
        SparseLinear(
            level,
            forms[level.core],
            cores[level.core],  # pyright: ignore[reportArgumentType]
            pivots[level.core],
            bias if level is made[-1] else None,
            width,
        )
        for level in made
    ]
    if columns is None or narrow is None:
        return nn.Sequential(*chain)
    first, last = Carry(columns, net.shape[1]), AddRemainder(narrow, width, net.shape[0])
    return nn.Sequential(first, *chain, last)


def _narrowed(rest: Remainder, width: int) -> tuple[Tensor, Remainder]:
    """The columns of a remainder, and the same as one of a weight that has no others."""
    at = rest.positions.long()
    if isinstance(rest, Columns):
        return at, Columns(torch.arange(len(at), device=at.device), rest.values)
    columns, own = torch.unique(at % width, return_inverse=True)
    return columns, Entries(at // width * len(columns) + own, rest.values)


def _check_width(layer: SparseLinear | Carry | AddRemainder, x: Tensor, side: str = "in") -> None:
    width = layer.in_features if side == "in" else layer.out_features
    if x.shape[-1:] != (width,):
        came = x.shape[-1] if x.ndim else "none"
        what, does = ("Inputs", "takes") if side == "in" else ("Outputs", "gives")
        raise ShapeError(
            f"{what} of width {came} came; this layer of the stack {does} {width}: "
            f"write them as (.., {width})."
        )
