"""Kronecker: a sum of s Kronecker products."""

from bondwise.network.network import Network
from bondwise.network.shapes import balanced
from bondwise.topology.modes import Sizes, bonds, modes, network, sites
from bondwise.topology.registry import register


@register(modes=lambda out, inp: (balanced(out, 2), balanced(inp, 2)))
def kron(rows: Sizes, cols: Sizes, rank: Sizes = 1) -> Network:
    """``W = sum_s A_s (x) B_s``, written ``s o1 i1, s o2 i2`` (Van Loan and Pitsianis 1993).

    Args:
        rows: sizes of the row modes, the first slowest; an int is one mode.
        cols: of the column modes.
        rank: how many products are summed.

    >>> str(kron((2, 3), (4, 5), 2))
    's o1 i1, s o2 i2 -> (o1 o2) (i1 i2)'

    Raises:
        ShapeError: a mode or a rank below 1, or another number of ranks than bonds.
    """
    o, i = modes(rows, "o"), modes(cols, "i")
    (s,) = bonds(rank, "s")
    return network([(s, *site) for site in sites(o, i)], o, i)
