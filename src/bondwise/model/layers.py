"""Linear and embedding layers: a network, its cores and the plans they run by."""

from collections.abc import Sequence
from functools import cache
from math import prod
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bondwise.compute.lookup import lookup
from bondwise.compute.plan import Plan, plan
from bondwise.compute.run import apply, dense
from bondwise.errors import ShapeError
from bondwise.network.network import Network, parse
from bondwise.network.ranks import layouts
from bondwise.weight.fit import fit
from bondwise.weight.gauge import Compact, GaugeForm, fill, free_shapes, positions
from bondwise.weight.metric import Metric
from bondwise.weight.slots import Plain, Slot, slots

Spec = dict[str, Any]


class TensorLayer(nn.Module):
    """A dense weight (out x in) stored as the cores of a network.

    Parameters are ``core_0, core_1, ..``: 2-D, in the layout that the network fixes (see
    `bondwise.network.ranks.layouts`), or with a gauge form only the free entries, whose pivots are
    the buffers ``pivots_0, ..``. The one-element buffer ``weight`` is a guard: it has the name of
    the dense weight, so a reader that does not know this layer meets a size that cannot be right.

    Args:
        net: the network; its rows are the outputs.
        cores: one tensor per core, in core-axis order; without them the cores are drawn so that
            the dense weight has the variance that ``nn.Linear`` starts with.
        form: which cores carry identity blocks; ``cores`` then holds the free entries.
        pivots: positions of the identity blocks, one tensor or None per core; with a form only.

    Raises:
        ShapeError: cores of another number or shape than the network's.
    """

    kind = "layer"
    core_0: Tensor
    core_1: Tensor
    pivots_1: Tensor
    weight: Tensor

    def __init__(
        self,
        net: Network,
        cores: Sequence[Tensor] | None = None,
        *,
        form: GaugeForm | None = None,
        pivots: Sequence[Tensor | None] = (),
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.network, self.form = net, form
        self._slots = slots(net, (None,) * len(net.cores) if form is None else form.pinned)
        if cores is None:
            cores = _draw(net, form, device, dtype)
        elif form is None:
            cores = _as_matrices(net, cores)
        else:
            _check_free(net, self._slots, cores)
        for k, core in enumerate(cores):
            value = core.detach().to(device=device, dtype=dtype).contiguous().clone()
            self.register_parameter(f"core_{k}", nn.Parameter(value))
        for k, pivot in enumerate(pivots):
            if pivot is not None:
                self.register_buffer(f"pivots_{k}", pivot.detach().to(device=device).clone())
        guard = torch.zeros(1, device=self.core_0.device, dtype=self.core_0.dtype)
        self.register_buffer("weight", guard)

    def matrices(self) -> tuple[Tensor, ...]:
        """The stored parameters, one 2-D tensor per core."""
        return tuple(getattr(self, f"core_{k}") for k in range(len(self.network.cores)))

    def pivots(self) -> tuple[Tensor | None, ...]:
        """Positions of the identity blocks, one tensor or None per core."""
        return tuple(getattr(self, f"pivots_{k}", None) for k in range(len(self.network.cores)))

    def cores(self) -> tuple[Tensor, ...]:
        """The cores, in core-axis order: views of the parameters, or filled from the gauge form."""
        return fill(self._slots, self.matrices(), self.pivots())

    def dense(self) -> Tensor:
        """The dense weight, out x in."""
        return dense(self.network, self.cores())

    def spec(self) -> Spec:
        """All that an empty layer of this kind is built from, as plain JSON."""
        return {
            "kind": self.kind,
            "network": str(self.network),
            "sizes": dict(self.network.sizes),
            "pinned": None if self.form is None else list(self.form.pinned),
        }

    def extra_repr(self) -> str:
        """The network, its bonds and the stored numbers, as printed in a model."""
        stored = sum(matrix.numel() for matrix in self.matrices())
        form = "" if self.form is None else ", gauge-free"
        return f"'{self.network}', ranks={self.network.bonds}, stored={stored}{form}"


class TensorLinear(TensorLayer):
    """A linear layer whose weight is a network: ``(*batch, in) -> (*batch, out)``.

    >>> from bondwise import lowrank
    >>> layer = TensorLinear(lowrank(6, 4, 2), bias=True)
    >>> layer(torch.zeros(3, 4)).shape
    torch.Size([3, 6])
    """

    kind = "linear"
    bias: nn.Parameter | None

    def __init__(
        self,
        net: Network,
        cores: Sequence[Tensor] | None = None,
        bias: Tensor | bool | None = None,
        *,
        origin: str = "Linear",
        form: GaugeForm | None = None,
        pivots: Sequence[Tensor | None] = (),
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(net, cores, form=form, pivots=pivots, device=device, dtype=dtype)
        self.out_features, self.in_features = net.shape
        self.origin = origin
        self.register_parameter("bias", self._bias(bias))
        self.plans = _plans(net)
        # [I | F] P on the input side of a low-rank weight runs as it is stored
        self._runs_compact = form is not None and tuple(form.pinned) == _pinned_input(net)
        self._order: Tensor | None = None
        self.settle()

    def forward(self, x: Tensor) -> Tensor:
        """``x W^T + b``."""
        if self._runs_compact:
            return self._forward_compact(x)
        y = apply(self.plan_for(x), self.cores(), x)
        return y if self.bias is None else y + self.bias

    def plan_for(self, x: Tensor) -> Plan:
        """The plan for a batch of this size."""
        rows = prod(x.shape[:-1])
        return next((p for p in self.plans if rows <= p.batch), self.plans[-1])

    def _forward_compact(self, x: Tensor) -> Tensor:
        if x.shape[-1] != self.in_features:
            raise ShapeError(
                f"Inputs of width {x.shape[-1]} came; this layer takes {self.in_features}."
            )
        rank = self.core_1.shape[0]
        x = x.index_select(-1, self._pivots_first(x.device))
        return F.linear(
            x[..., :rank] + F.linear(x[..., rank:], self.core_1), self.core_0, self.bias
        )

    def _pivots_first(self, device: torch.device) -> Tensor:
        """Input columns, the identity block's first; not saved, since the pivots give them."""
        if self._order is None or self._order.device != device:
            pinned, free = positions(self.pivots_1, self.in_features)
            self._order = torch.cat([pinned, free]).to(device)
        return self._order

    def settle(self) -> None:
        """Order the inputs now, where the pivots are known, since `torch.compile` cannot."""
        self._order = None
        if self._runs_compact and not self.pivots_1.is_meta and bool(self.pivots_1.any()):
            self._pivots_first(self.pivots_1.device)

    def _apply(self, *args: Any, **kwargs: Any) -> "TensorLinear":
        super()._apply(*args, **kwargs)
        if self._order is not None:
            gone = self.pivots_1.is_meta
            self._order = None if gone else self._order.to(self.pivots_1.device)
        return self

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        super()._load_from_state_dict(*args, **kwargs)
        self.settle()

    def _bias(self, bias: Tensor | bool | None) -> nn.Parameter | None:
        if bias is None or bias is False:
            return None
        like = self.core_0
        if bias is True:
            bound = self.in_features**-0.5
            return nn.Parameter(
                torch.empty(self.out_features, device=like.device, dtype=like.dtype).uniform_(
                    -bound, bound
                )
            )
        if tuple(bias.shape) != (self.out_features,):
            raise ShapeError(
                f"A bias of shape {tuple(bias.shape)} came; write one of ({self.out_features},)."
            )
        return nn.Parameter(bias.detach().to(device=like.device, dtype=like.dtype).clone())

    def spec(self) -> Spec:
        """All that an empty layer of this kind is built from, as plain JSON."""
        return super().spec() | {"bias": self.bias is not None, "origin": self.origin}

    @classmethod
    def from_spec(
        cls, spec: Spec, device: Any = None, dtype: torch.dtype | None = None
    ) -> "TensorLinear":
        """An empty layer, to be filled from a checkpoint."""
        return cls(**_empty(spec, device, dtype), bias=spec["bias"], origin=spec["origin"])

    @classmethod
    def from_linear(
        cls, linear: nn.Module, net: Network, metric: Tensor | Metric | None = None
    ) -> "TensorLinear":
        """The network fitted to a linear layer (``nn.Linear`` or GPT-2's ``Conv1D``); bias copied.

        Raises:
            FitError: the weight or the metric cannot be fitted.
        """
        weight = dense_weight(linear)
        fitted = fit(weight, net, metric)
        return cls(
            fitted.network,
            fitted.cores,
            linear.bias,  # pyright: ignore[reportArgumentType]
            origin=type(linear).__name__,
            device=weight.device,
            dtype=weight.dtype,
        )

    @classmethod
    def from_compact(cls, stored: Compact, linear: nn.Module) -> "TensorLinear":
        """The layer that stores a linear layer's fitted weight without its gauge; bias copied."""
        return cls(
            stored.network,
            stored.free,
            linear.bias,  # pyright: ignore[reportArgumentType]
            origin=type(linear).__name__,
            form=stored.form,
            pivots=stored.pivots,
        )


class TensorEmbedding(TensorLayer):
    """An embedding whose table (entries x width) is a network: ``ids -> (*ids.shape, width)``.

    Rows are looked up from the cores; the table is never built. ``padding_idx`` gets no gradient,
    and its row stays zero where it was zero in the source.

    >>> from bondwise import lowrank
    >>> TensorEmbedding(lowrank(10, 4, 2))(torch.tensor([[1, 2, 3]])).shape
    torch.Size([1, 3, 4])
    """

    kind = "embedding"

    def __init__(
        self,
        net: Network,
        cores: Sequence[Tensor] | None = None,
        padding_idx: int | None = None,
        *,
        zero_padding: bool = False,
        form: GaugeForm | None = None,
        pivots: Sequence[Tensor | None] = (),
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(net, cores, form=form, pivots=pivots, device=device, dtype=dtype)
        self.num_embeddings, self.embedding_dim = net.shape
        self.padding_idx, self.zero_padding = padding_idx, zero_padding

    def forward(self, ids: Tensor) -> Tensor:
        """Rows ``W[ids]``."""
        rows = lookup(self.network, self.cores(), ids)
        if self.padding_idx is None:
            return rows
        padding = torch.zeros_like(rows) if self.zero_padding else rows.detach()
        return torch.where((ids == self.padding_idx).unsqueeze(-1), padding, rows)

    def spec(self) -> Spec:
        """All that an empty layer of this kind is built from, as plain JSON."""
        return super().spec() | {"padding_idx": self.padding_idx, "zero_padding": self.zero_padding}

    @classmethod
    def from_spec(
        cls, spec: Spec, device: Any = None, dtype: torch.dtype | None = None
    ) -> "TensorEmbedding":
        """An empty layer, to be filled from a checkpoint."""
        padding = {key: spec[key] for key in ("padding_idx", "zero_padding")}
        return cls(**_empty(spec, device, dtype), **padding)

    @classmethod
    def from_compact(cls, stored: Compact, embedding: nn.Embedding) -> "TensorEmbedding":
        """The layer that stores an embedding's table without its gauge."""
        at = embedding.padding_idx
        zero = at is not None and not bool(embedding.weight[at].any())
        return cls(
            stored.network,
            stored.free,
            at,
            zero_padding=zero,
            form=stored.form,
            pivots=stored.pivots,
        )


def from_spec(spec: Spec, device: Any = None, dtype: torch.dtype | None = None) -> TensorLayer:
    """An empty layer of the kind that the spec names.

    Raises:
        ShapeError: no such kind.
    """
    kinds = {"linear": TensorLinear, "embedding": TensorEmbedding}
    if spec.get("kind") not in kinds:
        raise ShapeError(
            f"Layer kind {spec.get('kind')!r} came; this version knows {', '.join(kinds)}."
        )
    return kinds[spec["kind"]].from_spec(spec, device, dtype)


def dense_weight(module: nn.Module) -> Tensor:
    """The weight of a dense layer as out x in (GPT-2's ``Conv1D`` keeps it as in x out)."""
    weight = cast(Tensor, module.weight).detach()
    return weight.T if type(module).__name__ == "Conv1D" else weight


def _empty(spec: Spec, device: Any, dtype: torch.dtype | None) -> dict[str, Any]:
    net = parse(spec["network"], **spec["sizes"])
    where: dict[str, Any] = {"device": device, "dtype": dtype}
    if spec["pinned"] is None:
        cores = [torch.empty(shape, **where) for shape in net.core_shapes]
        return {"net": net, "cores": cores, **where}
    form = GaugeForm(tuple(spec["pinned"]))
    free, pivots = free_shapes(net, form)
    return {
        "net": net,
        "cores": [torch.empty(shape, **where) for shape in free],
        "form": form,
        "pivots": [
            None if p is None else torch.zeros(p[0], dtype=p[1], device=device) for p in pivots
        ],
        **where,
    }


def _as_matrices(net: Network, cores: Sequence[Tensor]) -> list[Tensor]:
    shapes = [tuple(core.shape) for core in cores]
    if shapes != list(net.core_shapes):
        raise ShapeError(f"Cores of shapes {shapes} came; '{net}' takes {list(net.core_shapes)}.")
    parts = zip(layouts(net), net.core_shapes, cores, strict=True)
    return [Plain(layout, shape).reduce(core) for layout, shape, core in parts]


def _check_free(net: Network, filled: Sequence[Slot], free: Sequence[Tensor]) -> None:
    shapes, takes = [tuple(part.shape) for part in free], [slot.free for slot in filled]
    if shapes != takes:
        raise ShapeError(
            f"Free entries of shapes {shapes} came; the gauge form of '{net}' takes {takes}."
        )


def _draw(net: Network, form: GaugeForm | None, device: Any, dtype: Any) -> list[Tensor]:
    """Cores whose product has entries of variance 1 / (3 in), as ``nn.Linear`` starts with."""
    if form is not None:
        raise ShapeError(
            "A gauge form came without its free entries; give cores and pivots with it."
        )
    variance = 1 / (3 * net.shape[1] * prod(net.bonds.values()))
    std = variance ** (1 / (2 * len(net.cores)))
    cores = [torch.randn(shape, device=device, dtype=dtype) * std for shape in net.core_shapes]
    return _as_matrices(net, cores)


@cache
def _plans(net: Network) -> tuple[Plan, ...]:
    """Distinct plans from a single row to thousands, each with the largest batch that it is for."""
    made = [plan(net, batch, "time") for batch in (1, 32, 1024, 32768)]
    return tuple(
        p
        for p, after in zip(made, [*made[1:], None], strict=True)
        if after is None or p.steps != after.steps
    )


def _pinned_input(net: Network) -> tuple[str | None, ...]:
    bonds = list(net.bonds)
    chain = len(net.cores) == 2 and len(bonds) == 1
    is_matrix = chain and net.names[1] == (bonds[0], *(i.name for i in net.cols))
    is_matrix = is_matrix and net.names[0] == (*(i.name for i in net.rows), bonds[0])
    return (None, bonds[0]) if is_matrix else ("",)
