"""Multiplications and stored numbers of a model, counted without a line of what is measured.

What runs is watched from below: every operator that torch dispatches is seen, whoever called it, so
a layer of a peer that convolves inside its own functions is counted as well as a module.
"""

from math import prod

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

_aten = torch.ops.aten


class _Counter(TorchDispatchMode):
    """Adds up the multiplications of convolutions and of products of matrices."""

    def __init__(self) -> None:
        super().__init__()
        self.total = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func is not _aten.convolution.default:
            with self:  # where gradients are off, conv2d or linear come whole: take them apart
                taken = func.decompose(*args, **kwargs)
            if taken is not NotImplemented:
                return taken
        result = func(*args, **kwargs)
        self.total += _macs(func.overloadpacket, args, result)
        return result


def _macs(op: object, args: tuple, result: object) -> int:
    if op in (_aten.convolution, _aten._convolution, _aten.mkldnn_convolution):
        x, weight = args[0], args[1]
        transposed = op is not _aten.mkldnn_convolution and args[6]
        # each number of a weight meets every position once: of the output, or of a transposed input
        positions = prod((x if transposed else result).shape[2:])
        return x.shape[0] * positions * weight.numel()
    if op is _aten.mm:
        return args[0].shape[0] * prod(args[1].shape)
    if op is _aten.addmm:
        return args[1].shape[0] * prod(args[2].shape)
    if op is _aten.bmm:
        return args[0].shape[1] * prod(args[1].shape)
    if op is _aten.baddbmm:
        return args[1].shape[1] * prod(args[2].shape)
    return 0


@torch.no_grad()
def multiplications(model: nn.Module, x: Tensor) -> int:
    """Of one call of the model; additions and what goes number by number are not counted."""
    with _Counter() as counter:
        model(x)
    return counter.total


def numbers(model: nn.Module) -> int:
    """Parameters, each once, and the positions that a layer stores: two bytes are a number.

    What a batch norm has counted is no parameter.
    """
    state = model.state_dict()
    positions = sum(v.numel() for k, v in state.items() if k.endswith("_extra_state"))
    return sum(p.numel() for p in model.parameters()) + positions // 2
