"""Networks as they are kept: without their gauge, rounded in the metric of their inputs."""

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from bondwise.fit.metric import Metric
from bondwise.gauge.compact import Compact, compact
from bondwise.layers.convolution import TensorConv
from bondwise.layers.hosts.registry import built, hosts
from bondwise.layers.module import TensorLayer
from bondwise.layers.networks import compacted

ROUGH = 4  # bytes of a number from which on its rounding is nothing

Weighing = Any


def store(
    plain: TensorLayer,
    source: nn.Module,
    own: torch.dtype,
    asked: torch.dtype | None,
    metric: Weighing,
) -> TensorLayer:
    """A layer without its gauge.

    It holds numbers of the dtype that the weight had. Where the model will be cast to a coarser
    one, they are rounded to that here, as the metric wants it, so that the cast loses nothing.

    Args:
        plain: the fitted layer, in plain form.
        source: where the bias and the like come from.
        own: the dtype of the dense weight.
        asked: that of the model in the end; None for the same.
        metric: how a rounding error is weighed.
    """
    cores = [core.detach() for core in plain.cores()]
    dtype = _coarser(own, asked)
    metric = metric if isinstance(metric, Metric | Tensor) else None  # kernels round as they are
    scale = metric if dtype.itemsize < ROUGH else None  # it costs time, and rounding is no loss
    form = compact(plain.network, cores, dtype, scale)
    form = replace(form, free=tuple(free.to(own) for free in form.free))
    return _layer(form, source, plain)


def restore(block: nn.Module, dense: nn.Module) -> None:
    """Give all but the networks the dtype that it had."""
    old = dict(dense.named_parameters()) | dict(dense.named_buffers())
    for path, tensor in [*block.named_parameters(), *block.named_buffers()]:
        if path in old and tuple(old[path].shape) == tuple(tensor.shape):
            tensor.data = tensor.data.to(old[path].dtype)


def _coarser(own: torch.dtype, asked: torch.dtype | None) -> torch.dtype:
    if asked is None or torch.finfo(asked).eps <= torch.finfo(own).eps:
        return own
    return asked


def _layer(form: Compact, source: nn.Module, plain: TensorLayer) -> TensorLayer:
    made = built(source, [compacted(form), *plain.beside()], hosts()[plain.host])
    if isinstance(plain, TensorConv):
        made.size = plain.size
    return made
