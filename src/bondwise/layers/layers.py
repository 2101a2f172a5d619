"""The linear layer: a network, its cores and the plans they run by."""

from collections.abc import Sequence
from dataclasses import replace
from math import prod
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bondwise.compute.path import run
from bondwise.compute.plan import Plan, check_batch
from bondwise.compute.product import prepare
from bondwise.compute.run import contracted
from bondwise.errors import ShapeError
from bondwise.fit.fit import fit
from bondwise.fit.metric import Metric
from bondwise.gauge.compact import Compact, GaugeForm, positions
from bondwise.layers import gathered
from bondwise.layers.embedding import TensorEmbedding
from bondwise.layers.plans import ALL_ROOM, NO_ROOM, KeptWeights, RowPlan, chosen, row_plans
from bondwise.layers.remainder import KINDS, Remainder
from bondwise.layers.stacked import stacked
from bondwise.layers.storage import Spec, TensorLayer, empty
from bondwise.network.network import Network


class TensorLinear(TensorLayer):
    """A linear layer whose weight is a network: ``(*batch, in) -> (*batch, out)``.

    ``y = (W + R) x + b``, with the network ``W`` and, where there is one, a remainder ``R``: the
    parameter ``remainder`` holds its values, the buffer ``remainder_at`` (int32) their positions.

    It runs by the plan that takes the fewest seconds for the number of rows that come, by the rates
    of this machine. Outside training, weights that such a plan needs, up to the whole dense weight,
    are made once and kept until a parameter changes, in at most ``cache_bytes`` bytes: by default
    those of the dense weight; 0 keeps none.

    Args:
        net: the network of the weight (out x in).
        cores: one tensor per core; None draws them for training.
        bias: (out,), True to draw one, None or False for none.
        origin: the class that it stands for, "Linear" or GPT-2's "Conv1D".
        remainder: columns or entries beside the network.
        form: how the gauge is stored away; None stores whole cores.
        pivots: with a form, where the identity blocks of each core sit.
        device: where the cores are.
        dtype: what they are in.

    Raises:
        ShapeError: cores or a bias of other shapes than the network's.

    >>> from bondwise import lowrank
    >>> layer = TensorLinear(lowrank(6, 4, 2), bias=True)
    >>> layer(torch.zeros(3, 4)).shape
    torch.Size([3, 6])
    """

    kind = "linear"
    bias: nn.Parameter | None
    remainder: nn.Parameter | None
    remainder_at: Tensor

    def __init__(
        self,
        net: Network,
        cores: Sequence[Tensor] | None = None,
        bias: Tensor | bool | None = None,
        *,
        origin: str = "Linear",
        remainder: Remainder | None = None,
        form: GaugeForm | None = None,
        pivots: Sequence[Tensor | None] = (),
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(net, cores, form=form, pivots=pivots, device=device, dtype=dtype)
        self.out_features, self.in_features = net.shape
        self.origin = origin
        self._remainder = None if remainder is None else type(remainder)
        self._keep(remainder)
        self.register_parameter("bias", self._bias(bias))
        # [I | F] P on the input side of a low-rank weight runs as it is stored
        self._runs_compact = form is not None and tuple(form.pinned) == _pinned_input(net)
        self._order: Tensor | None = None
        self._kept_weights = KeptWeights()
        self._frozen: Plan | None = None
        self._cache_bytes = prod(net.shape) * self.core_0.element_size()
        self.settle()

    def forward(self, x: Tensor) -> Tensor:
        """``x W^T + b``."""
        if self._frozen is not None:
            y = run(self._frozen, self._frozen_weights(), x, self.bias)
        else:
            y = self._forward_planned(x)
        rest = self.rest()
        return y if rest is None else y + rest.apply(x, self.out_features).to(y.dtype)

    def freeze(self, batch: int | None = 1) -> "TensorLinear":
        """Run by one plan only, with its weights made now: for export, or for serving.

        The weights are buffers that are not saved, and no longer follow the parameters. They may
        take more memory than the cores. ``freeze(None)``, and ``train()``, undo it.

        Args:
            batch: rows that the plan is sought for; it runs any number.

        Returns:
            The layer itself.

        Raises:
            PlanError: a batch that is not a whole number of at least 1.
        """
        if self._frozen is not None:
            for k in range(len(self._frozen.path)):
                delattr(self, f"frozen_{k}")
            self._frozen = None
        if batch is not None:
            check_batch(batch)
            found = row_plans(self.network, self.core_0.element_size(), ALL_ROOM, self.form is None)
            made = found[chosen(found, batch)].plan
            for k, weight in enumerate(self._exactly(made)):
                own = weight.detach().contiguous().clone()
                self.register_buffer(f"frozen_{k}", own, persistent=False)
            self._frozen = replace(made, chunk=None)
        return self

    def train(self, mode: bool = True) -> "TensorLinear":
        """Training mode or not; a layer that trains keeps no weights ready."""
        if mode:
            self.freeze(None)
            self._kept_weights.clear()
        return super().train(mode)

    def refresh(self) -> None:
        """Forget the weights kept ready: after writing into ``core_0.data`` in place."""
        self._kept_weights.clear()

    def resident_bytes(self) -> int:
        """Bytes in memory: parameters, buffers, and the weights that are kept ready."""
        own = [*self.parameters(recurse=False), *self.buffers(recurse=False)]
        order = [] if self._order is None else [self._order]
        kept = self._kept_weights.bytes(self.matrices())
        return kept + sum(t.numel() * t.element_size() for t in (*own, *order))

    def macs(self, rows: int) -> int:
        """Multiplications for so many rows, by the plan that runs them; the remainder's too."""
        rest = 0 if self.remainder is None else rows * self.remainder.numel()
        row_plan = self._with_room[chosen(self._with_room, rows)]
        if self._frozen is not None:
            row_plan = RowPlan(self._frozen, rows, kept=True)
        if row_plan.as_stored:
            rank, others = self.core_1.shape
            return rest + rows * rank * (others + self.out_features)
        path = row_plan.plan.program.resized(rows).path
        made_each_time = 0 if row_plan.kept else sum(step.macs for step in row_plan.plan.weights)
        return rest + made_each_time + sum(step.macs for step in path)

    def rest(self) -> Remainder | None:
        """The remainder, if there is one."""
        if self._remainder is None or self.remainder is None:
            return None
        return self._remainder(self.remainder_at, self.remainder)

    def dense(self) -> Tensor:
        """The dense weight, out x in, with its remainder."""
        W, rest = super().dense(), self.rest()
        return W if rest is None else rest.add_to(W)

    def as_stack(self, order: Sequence[int] | None = None) -> nn.Sequential:
        """The same as sparse linear layers, one for each core."""
        return stacked(self, order, self.bias, self.rest())

    def stored(self) -> tuple[list[Tensor], list[Tensor]]:
        """What stands for the weight: tensors of numbers, and tensors of their positions."""
        numbers, places = super().stored()
        if self.remainder is None:
            return numbers, places
        return [*numbers, self.remainder], [*places, self.remainder_at]

    @property
    def cache_bytes(self) -> int:
        """Bytes that weights kept ready may take, outside training."""
        return self._cache_bytes

    @cache_bytes.setter
    def cache_bytes(self, room: int) -> None:
        self._cache_bytes = room
        self.settle()

    def _row_plans(self, room: int) -> tuple[RowPlan, ...]:
        size, plain = self.core_0.element_size(), self.form is None
        return row_plans(
            self.network, size, room, plain, self._runs_compact and 1 not in self.sharing
        )

    def _forward_planned(self, x: Tensor) -> Tensor:
        own = self._parameters
        graded = torch.is_grad_enabled() and any(
            p is not None and p.requires_grad for p in own.values()
        )
        each_time = graded or self._adapted() or torch.compiler.is_compiling()
        if self._runs_compact and (each_time or 1 in self.sharing):
            return self._forward_compact(x)
        found = self._each_time if each_time else self._with_room
        at = chosen(found, x.numel() // self.in_features) if len(found) > 1 else 0
        row_plan = found[at]
        if row_plan.as_stored:
            return self._forward_compact(x)
        if not row_plan.kept:
            return contracted(row_plan.plan, self.cores(), x, own["bias"])
        weights = self._kept_weights.weights(at, own)
        if weights is None:
            weights = self._kept_weights.keep(at, own, self._exactly(row_plan.plan))
        return run(row_plan.plan, weights, x, own["bias"])

    def _adapted(self) -> bool:
        """Whether something stands before a core, as peft's LoRA does: no version tells of it."""
        return "parametrizations" in self._modules

    def _exactly(self, plan: Plan) -> list[Tensor]:
        """A plan's weights in their own dtype, whatever autocast says at this call."""
        with torch.no_grad(), torch.autocast(self.core_0.device.type, enabled=False):
            return prepare(plan, self.cores())

    def _frozen_weights(self) -> list[Tensor]:
        assert self._frozen is not None
        return [getattr(self, f"frozen_{k}") for k in range(len(self._frozen.path))]

    def _forward_compact(self, x: Tensor) -> Tensor:
        if x.shape[-1:] != (self.in_features,):
            raise ShapeError(
                f"x of shape {tuple(x.shape)} came, of width {x.shape[-1] if x.ndim else 'none'}; "
                f"this layer takes {self.in_features}, so write x as (.., {self.in_features})."
            )
        order, free = self._pivots_first(x.device), self.core_1
        once = self.once if 1 in self.sharing and not self._adapted() else None
        if once is None or torch.compiler.is_compiling() or torch.is_grad_enabled():
            return gathered.linear(x, order, free, self.core_0, self.bias)
        takers = len(self.sharing[1])
        inner = once.of(id(self), takers, x, free, lambda: gathered.inner(x, order, free))
        return F.linear(inner, self.core_0, self.bias)

    def _pivots_first(self, device: torch.device) -> Tensor:
        """Input columns, the identity block's first; not saved, since the pivots give them."""
        if self._order is None or self._order.device != device:
            pinned, free = positions(self.pivots_1, self.in_features)
            self._order = torch.cat([pinned, free]).to(device)
        return self._order

    def settle(self) -> None:
        """Plan now, and order the inputs where the pivots are known: `torch.compile` cannot."""
        self._order, self._with_room = None, self._row_plans(self.cache_bytes)
        if not self._runs_compact:
            self._each_time = self._row_plans(NO_ROOM)
        elif not self.pivots_1.is_meta and bool(self.pivots_1.any()):
            self._pivots_first(self.pivots_1.device)

    def take_core(self, core: int, source: TensorLayer) -> None:
        """Put the very tensors of another layer's core in the place of one's own."""
        super().take_core(core, source)
        self.settle()

    def _apply(self, *args: Any, **kwargs: Any) -> "TensorLinear":
        super()._apply(*args, **kwargs)
        if self._order is not None:
            gone = self.pivots_1.is_meta
            self._order = None if gone else self._order.to(self.pivots_1.device)
        return self

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        super()._load_from_state_dict(*args, **kwargs)
        self.settle()

    def _keep(self, remainder: Remainder | None) -> None:
        if remainder is None:
            self.register_parameter("remainder", None)
            return
        remainder.check(self.network.shape)
        like, own = self.core_0, remainder.values.detach()
        values = own.to(device=like.device, dtype=like.dtype).contiguous().clone()
        self.register_parameter("remainder", nn.Parameter(values))
        at = remainder.positions.to(device=like.device, dtype=torch.int32, copy=True)
        self.register_buffer("remainder_at", at.contiguous())

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
        rest = self.rest()
        kept = {"remainder": {"kind": rest.kind, "count": len(rest.positions)}} if rest else {}
        return super().spec() | {"bias": self.bias is not None, "origin": self.origin} | kept

    @classmethod
    def from_spec(
        cls, spec: Spec, device: Any = None, dtype: torch.dtype | None = None
    ) -> "TensorLinear":
        """An empty layer, to be filled from a checkpoint."""
        made = empty(spec, device, dtype)
        remainder = None
        if "remainder" in spec:
            kind, count = KINDS[spec["remainder"]["kind"]], spec["remainder"]["count"]
            remainder = kind.empty(count, made["net"].shape, device, dtype)
        return cls(**made, bias=spec["bias"], origin=spec["origin"], remainder=remainder)

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
    def from_compact(
        cls, stored: Compact, linear: nn.Module, remainder: Remainder | None = None
    ) -> "TensorLinear":
        """The layer that stores a linear layer's fitted weight without its gauge; bias copied.

        Args:
            stored: the network, without its gauge.
            linear: where the bias comes from.
            remainder: what is kept beside the network, to be added to it.

        Raises:
            ShapeError: a remainder that does not fit the weight.
        """
        return cls(
            stored.network,
            stored.free,
            linear.bias,  # pyright: ignore[reportArgumentType]
            origin=type(linear).__name__,
            remainder=remainder,
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


def _pinned_input(net: Network) -> tuple[str | None, ...]:
    bonds = list(net.bonds)
    chain = len(net.cores) == 2 and len(bonds) == 1
    is_matrix = chain and net.names[1] == (bonds[0], *(i.name for i in net.cols))
    is_matrix = is_matrix and net.names[0] == (*(i.name for i in net.rows), bonds[0])
    return (None, bonds[0]) if is_matrix else ("",)
