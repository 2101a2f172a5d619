"""How large a bond can usefully be, and the matrix that a core is stored as."""

from dataclasses import dataclass
from math import prod

from bondwise.network.network import Network


def useful_ranks(net: Network) -> dict[str, int]:
    """The largest size that each bond can use: beyond it, numbers are stored that change no weight.

    A bond between two cores cannot carry more than the rest of either core (for each value of the
    block indices that both share); an index on three or more cores (CP) no more than the product of
    all modes but the largest; a summed index on one core no more than 1.

    >>> from bondwise import parse
    >>> useful_ranks(parse("o a, a i -> (o) (i)", o=4, a=100, i=6))
    {'a': 4}
    """
    ranks, before = dict(net.bonds), None
    while ranks != before:
        before = dict(ranks)
        for bond in ranks:
            ranks[bond] = min(ranks[bond], _bound(net, bond, net.sizes | ranks))
    return ranks


def capped(net: Network) -> Network:
    """The network with every bond at most its useful size."""
    return net.resize(**useful_ranks(net))


def _bound(net: Network, bond: str, sizes: dict[str, int]) -> int:
    places = net.places[bond]
    if len(places) == 1:
        return 1
    if len(places) > 2:
        modes = [sizes[name] for name in net.sizes if name in net.open]
        return max(1, prod(modes) // max(modes, default=1))
    one, two = (set(net.names[k]) - {bond} for k in places)
    shared = {
        name for name in one & two if name in net.open
    }  # block indices: a bond of its own per value
    return min(prod(sizes[name] for name in side - shared) for side in (one, two))


@dataclass(frozen=True, slots=True)
class Layout:
    """A core as a matrix: which axes are its rows and which its columns, in the core's own order.

    Rows: bonds that an earlier core has, and row modes. Columns: column modes, and bonds that are
    new here. The network alone decides the layout, so checkpoints depend on no machine or plan.
    """

    rows: tuple[int, ...]
    cols: tuple[int, ...]

    @property
    def order(self) -> tuple[int, ...]:
        """Axes of the core in the order in which the matrix holds them."""
        return (*self.rows, *self.cols)

    def shape(self, sizes: tuple[int, ...]) -> tuple[int, int]:
        """Shape of the matrix, from the sizes of the core."""
        return prod(sizes[a] for a in self.rows), prod(sizes[a] for a in self.cols)


def layouts(net: Network) -> tuple[Layout, ...]:
    """The matrix layout of each core of a network.

    >>> from bondwise import parse
    >>> net = parse("o1 i1 a, a o2 i2 -> (o1 o2) (i1 i2)", o1=2, i1=3, a=4, o2=5, i2=6)
    >>> layouts(net)[1].shape((4, 5, 6))
    (20, 6)
    """
    row_modes = {index.name for index in net.rows}
    seen: set[str] = set()
    result = []
    for names in net.names:
        left = tuple(
            a
            for a, name in enumerate(names)
            if name in row_modes or (name in seen and name not in net.open)
        )
        result.append(Layout(left, tuple(a for a in range(len(names)) if a not in left)))
        seen.update(names)
    return tuple(result)
