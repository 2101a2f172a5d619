"""A network as a stack of convolutions, step by step.

The input has channels and positions. A core that is applied to it sums the channels that it shares
with it, gives new ones, and convolves the axes whose kernel modes it has; so every step is one
convolution, of which a product (1 x 1), a separable and a depthwise one are special cases. Cores
may be multiplied with each other first: all of them, and the step is the dense convolution.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

from torch import Tensor

from bondwise.compute.kernels.geometry import Geometry, Sizes
from bondwise.compute.product import contract
from bondwise.compute.steps import Program

SIZE = 32  # of each axis, where no input was seen


@dataclass(frozen=True)
class Convolved:
    """One step: some cores as one convolution.

    Attributes:
        cores: positions of those that are multiplied with each other first.
        weight: how, and what it is then permuted to.
        shape: of the weight, as torch has it.
        axes: those that are convolved.
        groups: of the channels: what is kept of those shared with the input.
        channels: of the input that the cores meet.
        beside: those that they do not meet, which go with the samples.
        before: sizes of the input's channels as modes, and their order with those beside first;
            None where they lie that way.
        as_is: whether as many go with the samples as already do.
    """

    cores: tuple[int, ...]
    weight: Program
    shape: Sizes
    axes: Sizes
    groups: int
    channels: int
    beside: int
    before: tuple[Sizes, Sizes] | None
    as_is: bool


@dataclass(frozen=True)
class ConvPlan:
    """The stack of convolutions of fewest multiplications, for an input size.

    Attributes:
        geometry: of the convolution.
        size: of the input, one for each axis.
        steps: in the order in which the input meets them.
        last: sizes of the output's channels as modes and their order; None where they lie so.
        macs: multiplications for one sample.
    """

    geometry: Geometry
    size: Sizes
    steps: tuple[Convolved, ...]
    last: tuple[Sizes, Sizes] | None
    macs: int

    def __call__(self, cores: Sequence[Tensor], x: Tensor, bias: Tensor | None = None) -> Tensor:
        """``y = W * x + b``: (n, channels, *spatial) -> (n, channels, *spatial)."""
        count = x.shape[0]  # len is a constant where a graph is traced
        for k, step in enumerate(self.steps):
            weight = contract(step.weight, [cores[at] for at in step.cores]).reshape(step.shape)
            weight = weight.contiguous()  # torch lays out the output as it finds the weight
            own = bias if k == len(self.steps) - 1 and self.last is None else None
            x = self.geometry.convolve(ordered(x, count, step), weight, own, step.axes, step.groups)
        if self.last is None:
            return x
        x = permuted(x, count, *self.last)
        return x if bias is None else x + bias.to(x.dtype).reshape(-1, *(1,) * self.geometry.axes)


def convolution_macs(geometry: Geometry, out: int, inp: int, size: Sizes) -> int:
    """Multiplications of a dense convolution for one sample; channels of all groups.

    >>> convolution_macs(Geometry((3,), (1,), ((1, 1),), (1,)), 8, 4, (10,))
    960
    """
    where = size if geometry.transposed else geometry.extents(size)
    return out * inp // geometry.groups * geometry.taps * prod(where)


def ordered(x: Tensor, count: int, step: Convolved) -> Tensor:
    """The input with the channels that a step does not meet beside the samples."""
    if step.before is not None:
        x = permuted(x, count, *step.before)
    return x if step.as_is else x.reshape(count * step.beside, step.channels, *x.shape[2:])


def permuted(x: Tensor, count: int, sizes: Sizes, order: Sizes) -> Tensor:
    """The channels, and what lies with the samples, as modes in another order."""
    where = x.shape[2:]
    modes = x.reshape(count, *sizes, *where)
    axes = (*(k + 1 for k in order), *range(1 + len(sizes), modes.ndim))
    return modes.permute(0, *axes).reshape(count, prod(sizes), *where)
