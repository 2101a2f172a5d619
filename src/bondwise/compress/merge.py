"""Back to dense: every network multiplied out."""

from torch import nn

from bondwise.checkpoint.hub import detach
from bondwise.compress.swap import copied, swap
from bondwise.errors import SelectionError
from bondwise.layers.hosts.registry import hosts
from bondwise.layers.module import TensorLayer, check_model


def merge(model: nn.Module, inplace: bool = False) -> nn.Module:
    """The model with every network multiplied out: dense layers that load and run without bondwise.

    Raises:
        SelectionError: no model came, or it has no tensorized layer.

    >>> from bondwise import merge, tensorize
    >>> merge(tensorize(nn.Sequential(nn.Linear(8, 8)), keep=0.5).model)
    Sequential(
      (0): Linear(in_features=8, out_features=8, bias=True)
    )
    """
    check_model(model)
    found = {
        name: module
        for name, module in model.named_modules(remove_duplicate=False)
        if isinstance(module, TensorLayer)
    }
    if not found:
        raise SelectionError(
            f"{type(model).__name__} has no tensorized layer; give one that tensorize made, or "
            "a folder that compress wrote."
        )
    dense = {layer: hosts()[layer.host].dense(layer) for layer in set(found.values())}
    result = model if inplace else copied(model)
    swap(result, {name: dense[layer] for name, layer in found.items()})
    detach(result)
    return result
