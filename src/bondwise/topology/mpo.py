"""Matrix product operator (tensor train): sites in a chain, one bond between neighbours."""

from bondwise.network.network import Network
from bondwise.network.shapes import balanced
from bondwise.topology.modes import Sizes, bonds, letters, modes, network, sites
from bondwise.topology.registry import Split, register


def _shapes(out: int, inp: int, _heads: int) -> list[Split]:
    """Two sites, split evenly; the inputs alone folded in two; the outputs alone; three sites.

    Folded inputs let both halves of the columns share their row space.
    """
    even = [(balanced(out, n), balanced(inp, n)) for n in (2, 3)]
    return [even[0], ((out, 1), (2, inp // 2)), ((out // 2, 2), (1, inp)), even[1]]


@register(
    modes=lambda out, inp: (balanced(out, 2), balanced(inp, 2)), scouted="best", shapes=_shapes
)
def mpo(rows: Sizes, cols: Sizes, rank: Sizes) -> Network:
    """A chain of sites (o_k i_k): ``o1 i1 a, a o2 i2 b, b o3 i3``.

    The tensor train of Oseledets (2011), for layers Novikov et al. (2015).
    With every bond of size 1 it is a Kronecker product of the sites.
    Where one side has fewer modes than the other, the last sites carry one mode.

    Args:
        rows: sizes of the row modes, the first slowest; an int is one mode.
        cols: of the column modes.
        rank: of every bond, or one each: a, b, ..

    >>> str(mpo((2, 3), (4, 5), 7))
    'o1 i1 a, a o2 i2 -> (o1 o2) (i1 i2)'

    Raises:
        ShapeError: a mode or a rank below 1, or another number of ranks than bonds.
    """
    o, i = modes(rows, "o"), modes(cols, "i")
    chain = sites(o, i)
    joints = [(), *((bond,) for bond in bonds(rank, letters(len(chain) - 1))), ()]
    return network([joints[k] + site + joints[k + 1] for k, site in enumerate(chain)], o, i)
