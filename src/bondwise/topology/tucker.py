"""Tucker: one central core, and one factor for every mode."""

from bondwise.network.network import Network
from bondwise.network.shapes import balanced
from bondwise.topology.modes import Sizes, bonds, modes, network, sites
from bondwise.topology.registry import Split, register


def _shapes(out: int, inp: int, heads: int) -> list[Split]:
    """A row mode of heads, where there are some."""
    return [((heads, out // heads), (inp,))] if heads else []


def _of_kernel(out: int, inp: int, kernel: tuple[int, ...], rank: int) -> Network:
    """A factor for the outputs, the inputs, and each axis of the kernel."""
    return tucker((out,), (inp, *kernel), rank)


@register(
    modes=lambda out, inp: (balanced(out, 2), balanced(inp, 2)),
    scouted="best",
    shapes=_shapes,
    convolution=_of_kernel,
)
def tucker(rows: Sizes, cols: Sizes, rank: Sizes) -> Network:
    """``p1 p2 q1 q2, o1 p1, i1 q1, o2 p2, i2 q2`` (Tucker 1966): the core comes first.

    A tuple of ranks follows the core's axes: rows, then columns.

    Args:
        rows: sizes of the row modes, the first slowest; an int is one mode.
        cols: of the column modes.
        rank: of every bond, or one each.

    >>> str(tucker(6, 4, (3, 2)))
    'p1 q1, o1 p1, i1 q1 -> (o1) (i1)'

    Raises:
        ShapeError: a mode or a rank below 1, or another number of ranks than bonds.
    """
    o, i = modes(rows, "o"), modes(cols, "i")
    joints = bonds(
        rank, [f"p{k + 1}" for k in range(len(o))] + [f"q{k + 1}" for k in range(len(i))]
    )
    joint = dict(zip((*o, *i), joints, strict=True))
    return network(
        [tuple(joints), *((mode, joint[mode]) for site in sites(o, i) for mode in site)], o, i
    )
