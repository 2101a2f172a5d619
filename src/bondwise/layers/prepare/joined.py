"""Layers that meet one input: run as one product by the first that is called."""

from collections.abc import Callable, Sequence
from typing import Any
from weakref import ref

import torch
from torch import Tensor

from bondwise.compute.fast.ready import Ready, Run
from bondwise.layers.serve.served import version


class Joined:
    """Outputs of several layers for one input: made for all of them when the first asks.

    An input is the same while it is the same tensor, and nothing was written into it that torch
    noticed. Nothing is kept beyond the input's life, or beyond the last layer's call.

    Args:
        ready: gives the outputs of all, as a tuple.
        count: how many they are.
    """

    def __init__(self, ready: Ready, count: int) -> None:
        self.run: Any = ready.run
        self.count = count
        self.made: tuple[Any, int | None, tuple[Tensor, ...]] | None = None

    def take(self, x: Tensor, member: int) -> Tensor:
        """The output of one of them."""
        if torch.compiler.is_compiling():  # a compiler sees what equal products share
            return self.run(x, None)[member]
        now, made = version(x), self.made
        if made is None or made[0]() is not x or made[1] != now:
            made = (ref(x, self._forget), now, self.run(x, None))
            self.made = made
        y = made[2][member]
        if member == self.count - 1:
            self.made = None
        return y

    def _forget(self, _: object) -> None:
        self.made = None


def split(run: Run, bias: Tensor | None, sizes: Sequence[int]) -> Any:
    """One product for all outputs, cut into those of each layer; each lies as its own would."""
    sizes = list(sizes)

    def outputs(x: Tensor, _: Tensor | None) -> tuple[Tensor, ...]:
        return tuple(part.contiguous() for part in run(x, bias).split(sizes, -1))

    return outputs


def together(
    inner: Run, sizes: Sequence[int], outer: Sequence[Callable[[Tensor], Tensor]], kind: torch.dtype
) -> Any:
    """The first products as one, each of the second with its part of what comes out.

    They are computed in a dtype, in which the outer ones take their inputs.
    """
    sizes = list(sizes)

    def outputs(x: Tensor, _: Tensor | None) -> tuple[Tensor, ...]:
        parts = inner(x.to(kind), None).split(sizes, -1)
        return tuple(last(part) for last, part in zip(outer, parts, strict=True))

    return outputs


def biases(layers: Sequence[Any]) -> Tensor | None:
    """The biases of some layers as one; None where none has one."""
    own = [layer.bias for layer in layers]
    if all(bias is None for bias in own):
        return None
    like, sizes = layers[0].like, [layer.out_features for layer in layers]
    parts = [
        like.new_zeros(size) if bias is None else bias.detach()
        for bias, size in zip(own, sizes, strict=True)
    ]
    return torch.cat(parts)
