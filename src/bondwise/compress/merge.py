"""Back to dense: every network multiplied out."""

import torch
from torch import nn

from bondwise.checkpoint.hub import detach
from bondwise.compress.swap import apart, check_copy, swap
from bondwise.errors import SelectionError
from bondwise.flow.doors import check_switch, check_whole
from bondwise.layers.hosts.registry import densified
from bondwise.layers.module import TensorLayer


@torch.inference_mode(False)
def merge(model: nn.Module, inplace: bool = False) -> nn.Module:
    """The model with every network multiplied out: dense layers that load and run without bondwise.

    The result shares nothing with the given model, unless ``inplace=True``. A weight trains where
    one of its terms did.

    Raises:
        SelectionError: no model came, it has no tensorized layer, or its numbers are not all here.
        BudgetError: inplace is neither True nor False.

    >>> from bondwise import merge, tensorize
    >>> merge(tensorize(nn.Sequential(nn.Linear(8, 8)), keep=0.5).model)
    Sequential(
      (0): Linear(in_features=8, out_features=8, bias=True)
    )
    """
    check_whole(model)
    check_switch("inplace", inplace)
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
    if not inplace:
        check_copy(model)
    dense = {layer: densified(layer, name) for name, layer in found.items()}
    made = {name: dense[layer] for name, layer in found.items()}
    if inplace:
        swap(model, made)
    result = model if inplace else apart(model, made)
    detach(result)
    return result
