"""Tensor ring: a chain of sites whose ends are joined."""

from bondwise.network.network import Network
from bondwise.network.shapes import balanced
from bondwise.topology.modes import Sizes, bonds, letters, modes, network, sites
from bondwise.topology.registry import register


@register(modes=lambda out, inp: (balanced(out, 3), balanced(inp, 3)))
def ring(rows: Sizes, cols: Sizes, rank: Sizes) -> Network:
    """A closed chain of sites: ``z o1 i1 a, a o2 i2 z`` (Zhao et al. 2016).

    One site alone has no ring to close.

    Args:
        rows: sizes of the row modes, the first slowest; an int is one mode.
        cols: of the column modes.
        rank: of every bond, or one each: z, a, ..

    >>> str(ring((2, 3), (4, 5), 7)), ring((2, 3), (4, 5), (7, 6)).bonds
    ('z o1 i1 a, a o2 i2 z -> (o1 o2) (i1 i2)', {'z': 7, 'a': 6})

    Raises:
        ShapeError: a mode or a rank below 1, or another number of ranks than bonds.
    """
    o, i = modes(rows, "o"), modes(cols, "i")
    chain = sites(o, i)
    if len(chain) == 1:
        bonds(rank if isinstance(rank, int) else (), [])  # a bad rank is an error here too
        return network(chain, o, i)
    joints = bonds(rank, ["z", *letters(len(chain) - 1)])
    return network(
        [(joints[k], *site, joints[(k + 1) % len(chain)]) for k, site in enumerate(chain)], o, i
    )
