"""What every tensorized layer stores: the cores of its network, alone or shared with others."""

from collections.abc import Iterable, Sequence
from itertools import chain
from math import ceil, prod
from typing import Any

import torch
from torch import Tensor, nn

from bondwise.compute.run import dense
from bondwise.draw.notebook import html
from bondwise.errors import SelectionError, ShapeError
from bondwise.gauge.compact import GaugeForm, fill, free_shapes
from bondwise.gauge.forms import CoreForm, PlainForm, core_forms
from bondwise.layers.once import Once
from bondwise.network.network import Network, parse
from bondwise.network.ranks import layouts

Spec = dict[str, Any]


def check_model(model: object) -> None:
    """Refuse what is no model: another thing, or a layer on its own, which nothing holds.

    Raises:
        SelectionError: saying what to give.
    """
    if not isinstance(model, nn.Module):
        also = ", such as the .model of what came" if hasattr(model, "model") else ""
        raise SelectionError(
            f"A {type(model).__name__} came as the model; give a torch.nn.Module{also}."
        )
    if isinstance(model, nn.Linear | nn.Embedding | TensorLayer):
        raise SelectionError(
            f"A {type(model).__name__} on its own came as the model; put it in one, such as "
            "nn.Sequential(layer)."
        )


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
        pinned = (None,) * len(net.cores) if form is None else form.pinned
        self._core_forms = core_forms(net, pinned)
        self.sharing: dict[int, list[TensorLayer]] = {}  # by core: all layers that `share` it
        self.once: Once | None = None  # what those with one input and one core compute once
        if cores is None:
            cores = _draw(net, form, device, dtype)
        elif form is None:
            cores = _as_matrices(net, cores)
        else:
            _check_free(net, self._core_forms, cores)
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
        return fill(self._core_forms, self.matrices(), self.pivots())

    def dense(self) -> Tensor:
        """The dense weight, out x in."""
        return dense(self.network, self.cores())

    def stored(self) -> tuple[list[Tensor], list[Tensor]]:
        """What stands for the weight: tensors of numbers, and tensors of their positions."""
        return list(self.matrices()), [pivot for pivot in self.pivots() if pivot is not None]

    @property
    def stored_numbers(self) -> int:
        """Numbers stored for this weight, positions counted as the bits they take."""
        return stored_numbers([self])

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
        stored = sum(numbers.numel() for numbers in self.stored()[0])
        form = "" if self.form is None else ", gauge-free"
        shared = "".join(f", core_{k} shared by {len(g)}" for k, g in self.sharing.items())
        return f"'{self.network}', ranks={self.network.bonds}, stored={stored}{form}{shared}"

    def _repr_html_(self) -> str:
        """The network as a notebook shows it, with what is stored of it."""
        out, inp = self.network.shape
        words = f"{type(self).__name__}, {out} x {inp}, {self.stored_numbers:,} numbers stored"
        return html(self.network, words)

    @property
    def _tied_weights_keys(self) -> dict[str, str]:
        """Names that ``save_pretrained`` leaves out, since another layer has the same tensors."""
        later = [k for k, group in self.sharing.items() if group[0] is not self]
        return {name: name for k in later for name in (f"core_{k}", f"pivots_{k}")}

    def _apply(self, *args: Any, **kwargs: Any) -> "TensorLayer":
        super()._apply(*args, **kwargs)
        self._hand_on()
        return self

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        super()._load_from_state_dict(*args, **kwargs)
        self._hand_on()

    def _hand_on(self) -> None:
        """Give new tensors of shared cores to the layers that share them: torch replaces some."""
        for k, group in self.sharing.items():
            for layer in group if self._parameters[f"core_{k}"] is not None else ():
                layer.take_core(k, self)

    def take_core(self, core: int, source: "TensorLayer") -> None:
        """Put the very tensors of another layer's core in the place of one's own."""
        self._parameters[f"core_{core}"] = source._parameters[f"core_{core}"]
        if f"pivots_{core}" in self._buffers:
            self._buffers[f"pivots_{core}"] = source._buffers[f"pivots_{core}"]

    def drop_core(self, core: int) -> None:
        """Have no tensors for a core for a while, as a layer that `share` will fill."""
        self._parameters[f"core_{core}"] = None
        if f"pivots_{core}" in self._buffers:
            self._buffers[f"pivots_{core}"] = None


def share(layers: Sequence[TensorLayer], core: int = 1) -> None:
    """Give all layers the first one's core: one parameter, and one tensor of pivots.

    With low rank whose identity block is on the input side, ``[W1; W2; ..] = [U1; U2; ..] V``: the
    layers share ``V``, and together store ``r (out1 + out2 + .. + in - r)`` numbers. It stays one
    tensor through ``to``, ``deepcopy`` of the model that has the layers, loading and saving.

    Args:
        layers: of one form; what the later ones have in that core is lost.
        core: its position in their networks.

    Raises:
        ShapeError: fewer than two layers, or cores that are not stored in the same way.

    >>> from bondwise import TensorLinear, lowrank
    >>> q, k = TensorLinear(lowrank(6, 4, 2)), TensorLinear(lowrank(3, 4, 2))
    >>> share([q, k])
    >>> k.core_1 is q.core_1, stored_numbers([q, k]) == 2 * (6 + 3 + 4)
    (True, True)
    """
    group = list(layers)
    if len(group) < 2:
        raise ShapeError(f"{len(group)} layers came to share a core; give two or more.")
    forms = [_stored_as(layer, core) for layer in group]
    if len(set(forms)) > 1:
        other = next(form for form in forms if form != forms[0])
        raise ShapeError(
            f"Core {core} is stored as {forms[0]} in the first layer and as {other} in another; "
            "share cores of one shape, index order and gauge form."
        )
    once = Once()
    for layer in group:
        layer.sharing[core] = group
        layer.take_core(core, group[0])
        layer.once = once


def stored_numbers(layers: Iterable[TensorLayer]) -> int:
    """Numbers that the weights of some layers store; what they share counts once.

    Positions count as the bits they take, in numbers of the layers' dtype, rounded up.

    >>> from bondwise import TensorLinear, lowrank
    >>> stored_numbers([TensorLinear(lowrank(6, 4, 2))])
    20
    """
    both = [layer.stored() for layer in layers]
    numbers = {id(t): t for t in chain.from_iterable(own for own, _ in both)}.values()
    positions = {id(t): t for t in chain.from_iterable(own for _, own in both)}.values()
    bits = sum(8 * t.element_size() * t.numel() for t in positions)
    width = max((8 * t.element_size() for t in numbers), default=1)
    return sum(t.numel() for t in numbers) + ceil(bits / width)


def empty(spec: Spec, device: Any, dtype: torch.dtype | None) -> dict[str, Any]:
    """The arguments of an empty layer of a spec."""
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


def _stored_as(layer: TensorLayer, core: int) -> tuple[Any, ...]:
    """How a core is stored, all but its numbers."""
    net = layer.network
    if not 0 <= core < len(net.cores):
        raise ShapeError(f"Core {core} came; '{net}' has cores 0 to {len(net.cores) - 1}.")
    pinned = None if layer.form is None else layer.form.pinned[core]
    return tuple(index.size for index in net.cores[core]), pinned


def _as_matrices(net: Network, cores: Sequence[Tensor]) -> list[Tensor]:
    shapes = [tuple(core.shape) for core in cores]
    if shapes != list(net.core_shapes):
        raise ShapeError(f"Cores of shapes {shapes} came; '{net}' takes {list(net.core_shapes)}.")
    parts = zip(layouts(net), net.core_shapes, cores, strict=True)
    return [PlainForm(layout, shape).reduce(core) for layout, shape, core in parts]


def _check_free(net: Network, forms: Sequence[CoreForm], free: Sequence[Tensor]) -> None:
    shapes, takes = [tuple(part.shape) for part in free], [form.free for form in forms]
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
