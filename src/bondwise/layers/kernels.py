"""Networks of convolutions as terms: the matrices of the groups below each other."""

from dataclasses import dataclass
from math import prod
from typing import Any, cast

import opt_einsum
import torch
from torch import Tensor

from bondwise.compute.kernels.convolve import ConvPlan, conv_plan
from bondwise.compute.kernels.geometry import Geometry, Sizes
from bondwise.compute.plan import Plan
from bondwise.compute.run import exactly
from bondwise.layers.entries import Dense
from bondwise.layers.networks import Cores, Numbers, network
from bondwise.layers.terms import Kind, Places, Term
from bondwise.network.groups import group_indices
from bondwise.network.network import Network


@dataclass(frozen=True)
class Kernels(Cores):
    """The network of a convolution, whose groups are an index that is open on both sides.

    Its matrix is ``weight.reshape(out, in / groups * kernel)``: without the zeros between groups.
    How it runs depends on the geometry, which the layer has.
    """

    def _ways(self) -> tuple[bool, tuple[tuple[int, Plan], ...]]:
        return False, ()

    @property
    def shape(self) -> tuple[int, int]:  # pyright: ignore[reportIncompatibleVariableOverride]
        """(out, in / groups * kernel)."""
        own = group_indices(self.network)
        out, inp = self.network.shape
        return out, inp // prod(self.network.sizes[name] for name in own)

    def dense(self, numbers: Numbers, places: Places) -> Tensor:
        """One einsum."""
        return kernel_matrix(self.network, self.cores(numbers, places))


def kernel_matrix(net: Network, cores: tuple[Tensor, ...]) -> Tensor:
    """The matrices of the groups below each other, (out, in / groups * kernel).

    >>> from bondwise import parse
    >>> blocks = torch.tensor([[[1., 2.]], [[3., 4.]]])
    >>> kernel_matrix(parse("g o i -> (g o) (g i)", g=2, o=1, i=2), (blocks,))
    tensor([[1., 2.],
            [3., 4.]])
    """
    own = group_indices(net)
    operands: list[Any] = []
    for core, names in zip(cores, net.names, strict=True):
        operands += [core, list(names)]
    rows, cols = ([i.name for i in side] for side in (net.rows, net.cols))
    cols = [name for name in cols if name not in own]
    with exactly(cores[0]):
        made = cast(Tensor, opt_einsum.contract(*operands, [*rows, *cols]))
    return made.reshape(net.shape[0], -1)


def of_kernel(term: Term) -> Term:
    """A term as a convolution holds it: a network runs by convolutions, whatever it ran by."""
    kind, places = term.kind, term.places
    if not isinstance(kind, Cores) or isinstance(kind, Kernels):
        return term
    made = Kernels(kind.network, kind.pinned)
    return Term(made, term.numbers, None if places is None else made.places(kind.stored(places)))


def drawn_kernel(net: Network, device: Any = None, dtype: torch.dtype | None = None) -> Term:
    """Random cores whose product has entries of variance 1 / (3 in), as torch's convolutions."""
    fan = prod(i.size for i in net.cols if i.name not in group_indices(net))
    variance = 1 / (3 * fan * prod(net.bonds.values()))
    std = variance ** (1 / (2 * len(net.cores)))
    cores = [torch.randn(shape, device=device, dtype=dtype) * std for shape in net.core_shapes]
    return of_kernel(network(net, cores))


def kernel_plan(kind: Kind, geometry: Geometry, size: Sizes | None) -> ConvPlan | None:
    """How a term is convolved; None for one whose whole weight is made.

    Raises:
        ShapeError: a network of another kernel.
    """
    return conv_plan(kind.network, geometry, size) if isinstance(kind, Cores) else None


def convolved(
    kind: Kind,
    numbers: Numbers,
    places: Places,
    plan: ConvPlan | None,
    geometry: Geometry,
    x: Tensor,
    bias: Tensor | None = None,
) -> Tensor:
    """What a term adds to the output: (n, channels, *spatial)."""
    if plan is not None:
        assert isinstance(kind, Cores)
        return plan(kind.cores(numbers, places), x, bias)
    matrix = numbers[0] if isinstance(kind, Dense) else kind.dense(numbers, places)
    return geometry.convolve(x, geometry.weight(matrix), bias)
