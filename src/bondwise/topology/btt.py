"""Block tensor train: a grid of blocks, every block of the weight a matrix of rank a."""

from collections.abc import Sequence
from typing import SupportsIndex

from bondwise.errors import ShapeError
from bondwise.network.network import Network
from bondwise.network.shapes import divisors
from bondwise.topology.modes import Sizes, bonds, listed, modes, network
from bondwise.topology.registry import Split, register

BLOCKS = (2, 3, 4, 6)  # of the longer side


def _four_blocks_a_side(out: int, inp: int) -> Split:
    o2, i1 = (max(d for d in divisors(n) if d <= 4) for n in (out, inp))
    return (out // o2, o2), (i1, inp // i1)


def _shapes(out: int, inp: int, _heads: int) -> list[Split]:
    """The longer side in blocks; 1x2, 2x1 and 2x2 blocks of a square weight.

    Near-square blocks of full rank store least without their gauge.
    """
    grids = [(1, k) if inp > out else (k, 1) for k in BLOCKS]
    if out == inp:
        grids = [(1, 2), (2, 1), (2, 2)]
    return [((out // o, o), (i, inp // i)) for o, i in grids]


def _of_kernel(out: int, inp: int, kernel: tuple[int, ...], rank: int) -> Network:
    """The kernel's modes stand on the core that meets the input."""
    rows, cols = _four_blocks_a_side(out, inp)
    net, taps = btt(rows, cols, rank), modes(kernel, "k")
    first, second = net.cores
    return network([first, (*second, *taps)], net.rows, (*net.cols, *taps))


@register(modes=_four_blocks_a_side, scouted="fast", shapes=_shapes, convolution=_of_kernel)
def btt(rows: Sizes, cols: Sizes, rank: Sizes) -> Network:
    """``o2 i1 o1 a, i1 o2 a i2`` (Qiu et al. 2024): every block ``W[:, o2, i1, :]`` has rank a.

    Rows are (o1, o2), columns (i1, i2); one mode is taken as one block on its side.

    Args:
        rows: sizes of the row modes, the first slowest; an int is one mode.
        cols: of the column modes.
        rank: of every block.

    >>> str(btt((2, 3), (4, 5), 2))
    'o2 i1 o1 a, i1 o2 a i2 -> (o1 o2) (i1 i2)'

    Raises:
        ShapeError: more than two modes on a side.
    """
    o1, o2 = modes(_two(rows, "rows", last=True), "o")
    i1, i2 = modes(_two(cols, "columns", last=False), "i")
    (a,) = bonds(rank, "a")
    return network([(o2, i1, o1, a), (i1, o2, a, i2)], (o1, o2), (i1, i2))


def _two(sizes: Sizes, side: str, last: bool) -> Sequence[SupportsIndex]:
    sizes = listed(sizes)
    if len(sizes) == 1:
        return (*sizes, 1) if last else (1, *sizes)
    if len(sizes) != 2:
        raise ShapeError(
            f"btt got {len(sizes)} modes {sizes} for its {side}; write two, as in (24, 24)."
        )
    return sizes
