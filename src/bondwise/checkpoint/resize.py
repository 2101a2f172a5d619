"""`resize_token_embeddings` on networks: an embedding or head that changes its size becomes dense.

The methods of transformers read and write ``weight`` and ask for `nn.Embedding` and `nn.Linear`:
they are handed the dense module that a network stands for.
"""

from functools import wraps
from typing import Any

from torch import nn

from bondwise.errors import SelectionError
from bondwise.layers.hosts.registry import hosts
from bondwise.layers.module import TensorLayer


def resize_networks() -> None:
    """Let the models of transformers resize their networks; done once, others are as before."""
    from transformers import PreTrainedModel

    base: Any = PreTrainedModel
    if hasattr(base.resize_token_embeddings, "resizes_networks"):
        return
    for name in ("_get_resized_embeddings", "_get_resized_lm_head"):
        setattr(base, name, _of_dense(getattr(base, name)))
    base.resize_token_embeddings = _resized(base.resize_token_embeddings)


def _of_dense(resize: Any) -> Any:
    @wraps(resize)
    def resize_dense(self: Any, old: Any, *args: Any, **kwargs: Any) -> Any:
        if not isinstance(old, TensorLayer):
            return resize(self, old, *args, **kwargs)
        _check_here(self, old)
        dense = _dense(old)
        shape = dense.get_parameter("weight").shape
        new = resize(self, dense, *args, **kwargs)
        return old if new.weight.shape == shape else new

    return resize_dense


def _resized(resize: Any) -> Any:
    @wraps(resize)
    def resize_token_embeddings(self: Any, *args: Any, **kwargs: Any) -> Any:
        for end in (self.get_input_embeddings(), self.get_output_embeddings()):
            _check_here(self, end)
        return resize(self, *args, **kwargs)

    resize_token_embeddings.resizes_networks = True  # pyright: ignore[reportAttributeAccessIssue]
    return resize_token_embeddings


def _check_here(model: nn.Module, layer: Any) -> None:
    if isinstance(layer, TensorLayer) and any(p.is_meta for p in layer.parameters()):
        raise SelectionError(
            f"{type(model).__name__} has an embedding or head that is a network and not in memory "
            "(offloaded, or on meta), so that it cannot be resized; load the model without "
            "device_map first."
        )


def _dense(layer: TensorLayer) -> nn.Module:
    dense = hosts()[layer.host].dense(layer)
    graded = layer.like.requires_grad
    dense.get_parameter("weight").requires_grad_(graded)
    return dense
