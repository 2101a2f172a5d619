"""Low rank: two cores and one bond, the matrix of rank a."""

from bondwise.network.network import Index, Network
from bondwise.topology.modes import Sizes, bonds, modes, network
from bondwise.topology.registry import register


@register(modes=lambda out, inp: ((out,), (inp,)))
def lowrank(rows: Sizes, cols: Sizes, rank: Sizes) -> Network:
    """``W = A B``: the core that meets the output first, ``o a, a i``.

    Its best fit is the truncated SVD (Eckart and Young 1936), in the metric of the inputs too.

    Args:
        rows: sizes of the row modes, the first slowest; an int is one mode.
        cols: of the column modes.
        rank: of the matrix.

    >>> str(lowrank(6, 4, 2)), lowrank(6, 4, 2).parameters
    ('o a, a i -> (o) (i)', 20)

    Raises:
        ShapeError: a mode or a rank below 1, or another number of ranks than bonds.
    """
    o, i = modes(rows, "o"), modes(cols, "i")
    o = (Index("o", o[0].size),) if len(o) == 1 else o
    i = (Index("i", i[0].size),) if len(i) == 1 else i
    (a,) = bonds(rank, "a")
    return network([(*o, a), (a, *i)], o, i)
