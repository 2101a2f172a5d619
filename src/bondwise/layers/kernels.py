"""Networks of convolutions as terms: the matrices of the groups below each other."""

from dataclasses import dataclass

from torch import Tensor

from bondwise.compute.kernels.convolve import ConvPlan
from bondwise.compute.kernels.geometry import Geometry, Sizes
from bondwise.compute.kernels.stacks import conv_plan
from bondwise.compute.plan import Plan
from bondwise.compute.run import blocks
from bondwise.layers.entries import Dense
from bondwise.layers.networks import Cores, Numbers
from bondwise.layers.terms import Kind, Places, Term
from bondwise.network.groups import group_count


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
        out, inp = self.network.shape
        return out, inp // group_count(self.network)

    def dense(self, numbers: Numbers, places: Places) -> Tensor:
        """One einsum."""
        return blocks(self.network, self.cores(numbers, places))


def of_kernel(term: Term) -> Term:
    """A term as a convolution holds it: a network runs by convolutions, whatever it ran by."""
    kind, places = term.kind, term.places
    if not isinstance(kind, Cores) or isinstance(kind, Kernels):
        return term
    made = Kernels(kind.network, kind.pinned)
    return Term(made, term.numbers, None if places is None else made.places(kind.stored(places)))


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
