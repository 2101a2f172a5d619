"""Back to dense: every network multiplied out."""

from torch import nn

from bondwise.checkpoint.hub import detach
from bondwise.compress.swap import copied, swap
from bondwise.errors import SelectionError
from bondwise.layers.embedding import TensorEmbedding
from bondwise.layers.layers import TensorLinear
from bondwise.layers.storage import TensorLayer, check_model


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
    dense = {layer: _dense_layer(layer) for layer in set(found.values())}
    result = model if inplace else copied(model)
    swap(result, {name: dense[layer] for name, layer in found.items()})
    detach(result)
    return result


def _dense_layer(layer: TensorLayer) -> nn.Module:
    weight = layer.dense().detach()
    if isinstance(layer, TensorEmbedding):
        if layer.padding_idx is not None and layer.zero_padding:
            weight[layer.padding_idx] = 0
        return nn.Embedding.from_pretrained(weight, freeze=False, padding_idx=layer.padding_idx)
    assert isinstance(layer, TensorLinear)
    if layer.origin == "Conv1D":
        from transformers.pytorch_utils import Conv1D  # only where the model came from there

        dense: nn.Module = Conv1D(layer.out_features, layer.in_features)
        weight = weight.T
    else:
        dense = nn.Linear(
            layer.in_features, layer.out_features, layer.bias is not None, device="meta"
        )
    dense.weight = nn.Parameter(weight.contiguous())
    if layer.bias is not None:
        dense.bias = nn.Parameter(layer.bias.detach().clone())
    return dense
