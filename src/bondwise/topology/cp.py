"""CP (canonical polyadic): one index shared by a factor for every mode."""

from bondwise.network.network import Network
from bondwise.network.shapes import balanced
from bondwise.topology.modes import Sizes, bonds, modes, network, sites
from bondwise.topology.registry import register


def _of_kernel(out: int, inp: int, kernel: tuple[int, ...], rank: int) -> Network:
    """A factor for the outputs, the inputs, and each axis of the kernel."""
    return cp((out,), (inp, *kernel), rank)


@register(
    modes=lambda out, inp: (balanced(out, 2), balanced(inp, 2)),
    convolution=_of_kernel,
)
def cp(rows: Sizes, cols: Sizes, rank: Sizes) -> Network:
    """A sum of r products of vectors (Hitchcock 1927; Carroll and Chang 1970).

    A factor for every mode, all on one index: ``o1 r, i1 r, o2 r, i2 r``.

    Args:
        rows: sizes of the row modes, the first slowest; an int is one mode.
        cols: of the column modes.
        rank: size of the index that all factors share.

    >>> str(cp((2, 3), 4, 5))
    'o1 r, i1 r, o2 r -> (o1 o2) (i1)'

    Raises:
        ShapeError: a mode or a rank below 1, or another number of ranks than bonds.
    """
    o, i = modes(rows, "o"), modes(cols, "i")
    (r,) = bonds(rank, "r")
    return network([(mode, r) for site in sites(o, i) for mode in site], o, i)
