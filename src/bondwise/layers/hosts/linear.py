"""``nn.Linear``: its weight is the matrix, and its inputs are the rows."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from bondwise.layers.hosts.registry import Host, Modes, first
from bondwise.layers.linear import TensorLinear
from bondwise.layers.terms import Term


def matrix(module: nn.Linear) -> Tensor:
    """The weight, out x in."""
    return module.weight.detach()


def modes(module: nn.Linear) -> tuple[Modes, Modes]:
    """One mode on each side."""
    return (module.out_features,), (module.in_features,)


def build(module: Any, terms: Sequence[Term]) -> TensorLinear:
    """A layer of terms; the bias is copied. A layer of terms may stand for the module."""
    return TensorLinear.of(terms, module.bias)


def dense(layer: TensorLinear) -> nn.Linear:
    """The weight multiplied out."""
    biased = layer.bias is not None
    made = nn.Linear(layer.in_features, layer.out_features, biased, device="meta")
    made.weight = nn.Parameter(layer.dense().detach().contiguous(), layer.trains)
    if layer.bias is not None:
        made.bias = nn.Parameter(layer.bias.detach().clone(), layer.bias.requires_grad)
    return made.train(layer.training)


HOST = Host(
    "linear",
    "linear",
    "torch.nn.modules.linear.Linear",
    TensorLinear,
    matrix,
    modes,
    first,
    build,
    dense,
)
