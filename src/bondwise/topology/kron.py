"""Kronecker: a sum of s Kronecker products."""

from bondwise.network.network import Network
from bondwise.network.shapes import balanced
from bondwise.topology.modes import Sizes, bonds, modes, network, sites
from bondwise.topology.registry import register


@register(modes=lambda out, inp: (balanced(out, 2), balanced(inp, 2)))
def kron(rows: Sizes, cols: Sizes, rank: Sizes = 1) -> Network:
    """``W = sum_s A_s (x) B_s``, written ``s o1 i1, s o2 i2`` (Van Loan and Pitsianis 1993).

    >>> str(kron((2, 3), (4, 5), 2))
    's o1 i1, s o2 i2 -> (o1 o2) (i1 i2)'
    """
    o, i = modes(rows, "o"), modes(cols, "i")
    (s,) = bonds(rank, "s")
    return network([(s, *site) for site in sites(o, i)], o, i)
