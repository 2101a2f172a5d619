"""A layer as its stack: one sparse linear layer for each core, whose bonds can be hooked."""

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from bondwise.compute.stack import checked_order, factor
from bondwise.compute.through import passage, through
from bondwise.errors import ShapeError
from bondwise.gauge.forms import CoreForm
from bondwise.layers.module import TensorLayer
from bondwise.layers.networks import Cores
from bondwise.layers.terms import Term
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
        index: what its identity blocks are filled by, where it has some.
        bias: what is added to its outputs.
        carried: values at the end of the data that only pass.
    """

    core: Tensor
    bias: nn.Parameter | None

    def __init__(
        self,
        level: Level,
        form: CoreForm,
        core: Tensor,
        index: Tensor | None = None,
        bias: nn.Parameter | None = None,
        carried: int = 0,
    ) -> None:
        super().__init__()
        self.level, self.carried = level, carried
        self.out_features, self.in_features = (size + carried for size in level.shape)
        self._form, self._passage = form, passage(level)
        if isinstance(core, nn.Parameter):
            self.register_parameter("core", core)
        else:  # without numbers, or made by what stands before it
            self.core = core
        self._index = index
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
        index = self._index
        return self._form.expand(self.core, None if index is None else index.to(self.core.device))


class Carry(nn.Module):
    """``x -> (x, x)``: the inputs that further terms need, beside those of the first core."""

    def __init__(self, in_features: int) -> None:
        super().__init__()
        self.in_features, self.out_features = in_features, 2 * in_features

    def forward(self, x: Tensor) -> Tensor:
        """The inputs twice."""
        _check_width(self, x)
        return torch.cat([x, x], dim=-1)

    def extra_repr(self) -> str:
        """The sizes."""
        return f"{self.in_features} -> {self.out_features}"


class AddTerms(nn.Module):
    """``(y, x) -> y + (W_1 + W_2 + ..) x``: further terms added to what the cores gave.

    Its parameters, ``term_0_0``, .., are the layer's own.
    """

    def __init__(self, terms: Sequence[Term], in_features: int, out_features: int) -> None:
        super().__init__()
        self.in_features, self.out_features = out_features + in_features, out_features
        self._terms = [(term.kind, term.places) for term in terms]
        for k, term in enumerate(terms):
            for n, own in enumerate(term.numbers):
                setattr(self, f"term_{k}_{n}", own)

    def forward(self, x: Tensor) -> Tensor:
        """The outputs with the further terms."""
        _check_width(self, x)
        y, inputs = x[..., : self.out_features], x[..., self.out_features :]
        for k, (kind, places) in enumerate(self._terms):
            numbers = tuple(getattr(self, f"term_{k}_{n}") for n in range(len(kind.names)))
            at = tuple(place.to(x.device) for place in places or ())
            y = y + kind.apply(numbers, at, inputs).to(y.dtype)
        return y

    def extra_repr(self) -> str:
        """The sizes and kinds."""
        kinds = ", ".join(kind.kind for kind, _ in self._terms)
        return f"{self.in_features} -> {self.out_features}, {kinds}"


def stacked(
    layer: TensorLayer, order: Iterable[Any] | None = None, bias: nn.Parameter | None = None
) -> nn.Sequential:
    """A layer as an ``nn.Sequential`` of sparse linear layers, with the same output.

    Its parameters are the layer's own, so that one trains with the other. Move the layer, or load
    it, before: a stack keeps the positions of identity blocks as they were.

    Args:
        layer: whose network; where it has further terms, a first module passes the inputs on
            beside the data, and a last one adds those terms.
        order: of the cores, as the input meets them; by default that with the fewest entries.
        bias: added by the last core's layer.

    Raises:
        PlanError: the order leaves out a core, repeats one, or names one that is not there.
        ShapeError: the layer has no network.
    """
    out, inp = layer.shape
    (term, *_), beside = [t for t in layer.terms if isinstance(t.kind, Cores)], layer.beside()
    kind, places = term.kind, iter(term.places or ())
    assert isinstance(kind, Cores)
    index = kind.indices(places)
    made = levels(kind.network, checked_order(kind.network, order))
    carried = inp if beside else 0
    chain = [
        SparseLinear(
            level,
            kind.forms[level.core],
            term.numbers[level.core],
            index[level.core],
            bias if level is made[-1] else None,
            carried,
        )
        for level in made
    ]
    if not beside:
        return nn.Sequential(*chain)
    return nn.Sequential(Carry(inp), *chain, AddTerms(beside, inp, out))


def _check_width(layer: SparseLinear | Carry | AddTerms, x: Tensor, side: str = "in") -> None:
    width = layer.in_features if side == "in" else layer.out_features
    if x.shape[-1:] != (width,):
        came = x.shape[-1] if x.ndim else "none"
        what, does = ("Inputs", "takes") if side == "in" else ("Outputs", "gives")
        raise ShapeError(
            f"{what} of width {came} came; this layer of the stack {does} {width}: "
            f"write them as (.., {width})."
        )
