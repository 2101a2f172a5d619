"""New layers in the places of others; copies of models that share all else; dtype and size."""

from collections.abc import Mapping
from copy import deepcopy

from torch import nn

from bondwise.compress.recipe import dtype


def swap(model: nn.Module, layers: Mapping[str, nn.Module]) -> None:
    """Put layers, or whole blocks, in the places of others, by path; all stay in their mode."""
    for path, layer in layers.items():
        parent, _, name = path.rpartition(".")
        old = model.get_submodule(path)
        training = {inside: module.training for inside, module in old.named_modules()}
        for inside, module in layer.named_modules():
            module.training = training.get(inside, old.training)
        setattr(model.get_submodule(parent), name, layer)


def with_modules(model: nn.Module, modules: Mapping[str, nn.Module]) -> nn.Module:
    """A copy of a model with other modules at some paths; it shares all other parameters."""
    result = copied(model)
    swap(result, modules)
    return result


def copied(model: nn.Module) -> nn.Module:
    """A copy of the modules with the same parameters, so that only what is swapped takes memory."""
    return deepcopy(model, {id(parameter): parameter for parameter in model.parameters()})


def own(model: nn.Module) -> None:
    """Give a model parameters of its own, tied ones still tied, so that a cast changes no other."""
    old = dict(model.named_parameters(remove_duplicate=False))
    new = {id(p): nn.Parameter(p.detach(), p.requires_grad) for p in old.values()}
    for path, parameter in old.items():
        module, _, name = path.rpartition(".")
        setattr(model.get_submodule(module), name, new[id(parameter)])


def cast(model: nn.Module, name: str) -> None:
    """Give the parameters another dtype, and no buffer: rotary frequencies would be rounded."""
    kind = dtype(name)
    if kind is None:
        return
    for parameter in model.parameters():
        if parameter.is_floating_point():
            parameter.data = parameter.data.to(kind)


def footprint(model: nn.Module) -> dict[str, int]:
    """Parameters of a model, bytes of its parameters and buffers; what is shared counts once."""
    tensors = {id(t): t for t in (*model.parameters(), *model.buffers())}.values()
    numbers = sum(parameter.numel() for parameter in model.parameters())
    return {"numbers": numbers, "bytes": sum(t.numel() * t.element_size() for t in tensors)}
