"""GPT-2's ``Conv1D``: a linear layer whose weight lies as in x out."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from bondwise.layers.hosts.registry import Host, Modes, first
from bondwise.layers.linear import TensorLinear
from bondwise.layers.terms import Term


def matrix(module: Any) -> Tensor:
    """The weight, out x in: transposed."""
    return module.weight.detach().T


def modes(module: Any) -> tuple[Modes, Modes]:
    """One mode on each side."""
    inp, out = module.weight.shape
    return (out,), (inp,)


def build(module: Any, terms: Sequence[Term]) -> TensorLinear:
    """A layer of terms; the bias is copied. A layer of terms may stand for the module."""
    return TensorLinear.of(terms, module.bias, host="conv1d")


def dense(layer: TensorLinear) -> nn.Module:
    """The weight multiplied out, as in x out."""
    from transformers.pytorch_utils import Conv1D  # only where the model came from there

    made = Conv1D(layer.out_features, layer.in_features)
    made.weight = nn.Parameter(layer.dense().detach().T.contiguous(), layer.trains)
    assert layer.bias is not None
    made.bias = nn.Parameter(layer.bias.detach().clone(), layer.bias.requires_grad)
    return made.train(layer.training)


HOST = Host(
    "conv1d",
    "linear",
    "transformers.pytorch_utils.Conv1D",
    TensorLinear,
    matrix,
    modes,
    first,
    build,
    dense,
    lambda _, matrix: matrix.T,
)
