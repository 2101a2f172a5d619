"""New layers in the places of others: in a model, or in a copy that shares nothing with it."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from bondwise.compress.recipe import dtype
from bondwise.errors import SelectionError
from bondwise.flow.copies import copied, is_plain, twins, view
from bondwise.layers.module import TensorLayer

Modules = Mapping[str, nn.Module]
NORM = nn.modules.batchnorm._NormBase  # pyright: ignore[reportPrivateUsage]


def swap(model: nn.Module, modules: Modules) -> None:
    """Put new layers, alone or in blocks, in the places of others; all stay in their mode.

    What else the blocks trained is written into the parameters of the model, which stay the same
    objects; so do the blocks, and biases.
    """
    new = _New.of(model, modules)
    for old, value in new.tensors.items():
        old.data = value.data
    for old, layer in new.layers.items():
        for name, bias in _kept(old, layer):
            setattr(layer, name, bias)
    places = {
        path: new.layers[module]
        for path, module in model.named_modules(remove_duplicate=False)
        if module in new.layers
    }
    for path, layer in places.items():
        parent, _, name = path.rpartition(".")
        setattr(model.get_submodule(parent), name, layer)


def with_modules(model: nn.Module, modules: Modules) -> nn.Module:
    """A copy of a model with new layers in it that shares all other parameters."""
    return _copied(model, _New.of(model, modules), {id(p): p for p in model.parameters()})


def apart(
    model: nn.Module, modules: Modules | None = None, kind: torch.dtype | None = None
) -> nn.Module:
    """A copy of a model with new layers in it that shares nothing with the model.

    Only what is not replaced is copied. What is tied stays tied, within the copy; a parameter that
    is frozen stays frozen, and asks for gradients where it did.

    Args:
        model: it is only read.
        modules: new layers, alone or in blocks, by path; the copy takes them as they are.
        kind: dtype of the copied parameters; None for each its own.

    >>> model = nn.Sequential(nn.Linear(2, 2), nn.LayerNorm(2))
    >>> copy = apart(model, {"0": nn.Identity()})
    >>> copy[0], copy[1].weight is model[1].weight
    (Identity(), False)
    """
    new = _New.of(model, modules or {})
    gone = {t for old in new.layers for t in (*old.parameters(), *old.buffers())}
    modules_left = (module for module in model.modules() if module not in new.layers)
    held = {t for m in modules_left for t in (*m.parameters(False), *m.buffers(False))}
    return _copied(model, new, twins(model, (gone - held) | new.tensors.keys(), kind))


def check_copy(model: nn.Module) -> None:
    """Refuse a model of which no copy can be made, before it is worked on.

    Raises:
        SelectionError: with torch's reason.
    """
    stored = [*model.parameters(), *model.buffers()]
    _copied(model, _New(), {id(t): t for t in stored if is_plain(t)})


def cast(model: nn.Module, name: str) -> None:
    """Give the parameters another dtype, and statistics of norms, which compute in one with them.

    Other buffers keep theirs: rotary frequencies would be rounded.
    """
    kind = dtype(name)
    if kind is None:
        return
    made: dict[Any, Tensor] = {}
    norms = [m for m in model.modules() if isinstance(m, NORM)]
    for tensor in [*model.parameters(), *(buffer for norm in norms for buffer in norm.buffers())]:
        if tensor.is_floating_point() and tensor.dtype != kind:
            key = view(tensor)
            if key not in made:
                made[key] = tensor.data.to(kind)
            tensor.data = made[key]


def footprint(model: nn.Module) -> dict[str, int]:
    """Parameters of a model, bytes of its parameters and buffers; what is shared counts once."""
    tensors = {id(t): t for t in (*model.parameters(), *model.buffers())}.values()
    numbers = sum(parameter.numel() for parameter in model.parameters())
    return {"numbers": numbers, "bytes": sum(t.numel() * t.element_size() for t in tensors)}


@dataclass(frozen=True, eq=False)
class _New:
    """What takes the places of modules and of parameters, by what was there."""

    layers: dict[nn.Module, nn.Module] = field(default_factory=dict[nn.Module, nn.Module])
    tensors: dict[Tensor, Tensor] = field(default_factory=dict[Tensor, Tensor])

    @classmethod
    def of(cls, model: nn.Module, modules: Modules) -> "_New":
        """New layers in the mode of the old ones, and frozen where those were."""
        found = cls()
        for path, module in modules.items():
            found._look(model.get_submodule(path), module)
        for old, layer in found.layers.items():
            for inside in layer.modules():
                inside.training = old.training
            for name, bias in _kept(old, layer):
                setattr(layer, name, found.tensors.setdefault(bias, getattr(layer, name)))
        found._freeze()
        return found

    def _look(self, old: nn.Module, new: nn.Module) -> None:
        """A new layer where the kind is another one; otherwise new values of the parameters."""
        if type(old) is not type(new):
            self.layers[old] = new
            return
        values = dict(new.named_parameters(recurse=False, remove_duplicate=False))
        self.tensors.update({p: values[name] for name, p in old.named_parameters(recurse=False)})
        if isinstance(old, NORM):  # its statistics may be others, as its parameters are
            values = dict(new.named_buffers(recurse=False))
            self.tensors.update({b: values[name] for name, b in old.named_buffers(recurse=False)})
        inside = dict(new.named_children())
        for name, child in old.named_children():
            self._look(child, inside[name])

    def _freeze(self) -> None:
        """A term trains where a weight that it stands for did."""
        trains: dict[Tensor, bool] = {}
        for old, layer in self.layers.items():
            if isinstance(layer, TensorLayer):
                stay = {name: p.requires_grad for name, p in _kept(old, layer)}
                own = dict(old.named_parameters(recurse=False))
                weight = any(p.requires_grad for name, p in own.items() if name not in stay)
                for name, p in layer.named_parameters():
                    trains[p] = trains.get(p, False) or stay.get(name, weight)
        for p, yes in trains.items():
            p.requires_grad_(yes)


def _kept(old: nn.Module, layer: nn.Module) -> list[tuple[str, nn.Parameter]]:
    """What a new layer has of the old one, by name: a bias."""
    if not isinstance(layer, TensorLayer):
        return []
    own = dict(layer.named_parameters(recurse=False))
    pairs = old.named_parameters(recurse=False)
    return [(name, p) for name, p in pairs if name in own and own[name].shape == p.shape]


def _copied(model: nn.Module, new: _New, rest: Mapping[int, Tensor]) -> nn.Module:
    """A copy with what is new, and the rest as given; other references follow where they point."""
    memo: dict[int, Any] = dict(rest)
    memo |= {id(old): layer for old, layer in new.layers.items()}
    memo |= {id(old): value for old, value in new.tensors.items()}
    try:
        return copied(model, memo)
    except (RuntimeError, TypeError, NotImplementedError) as error:
        reason = " ".join(str(error).split())[:160]
        raise SelectionError(
            f"{type(model).__name__} cannot be copied as copy.deepcopy does it ({reason}); "
            "take what that names out of the model."
        ) from error
