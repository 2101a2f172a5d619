"""Tucker-2: a convolution between two 1 x 1 convolutions; the kernel is not cut."""

from bondwise.errors import ShapeError
from bondwise.network.network import Core, Index, Network
from bondwise.topology.modes import Sizes, bonds, modes, network
from bondwise.topology.registry import register


def _of_kernel(out: int, inp: int, kernel: tuple[int, ...], rank: int) -> Network:
    return tucker2(out, inp, kernel, rank)


@register(modes=lambda out, inp: ((out,), (inp,)), convolution=_of_kernel, kernel_only=True)
def tucker2(out: Sizes, inp: Sizes, kernel: Sizes, rank: Sizes) -> Network:
    """``o p, p q y x, q i -> (o) (i y x)`` (Kim et al. 2016): the channels are cut on both sides.

    Args:
        out: channels that leave.
        inp: channels that enter, of one group.
        kernel: its sizes, one for each axis; an int is one axis, () a weight without a kernel.
        rank: (of the outputs, of the inputs), or one int for both.

    >>> str(tucker2(8, 4, (3, 3), (6, 2))), str(tucker2(8, 4, 64, 2))
    ('o p, p q y x, q i -> (o) (i y x)', 'o p, p q x, q i -> (o) (i x)')

    Raises:
        ShapeError: a size or a rank below 1, more than one size of channels, more than three
            of a kernel, or another number of ranks than two.
    """
    (o,), (i,) = _one(out, "o"), _one(inp, "i")
    p, q = bonds(rank, "pq")
    taps = () if kernel == () else modes(kernel, "k")
    if len(taps) > 3:
        raise ShapeError(f"A kernel {kernel} came; it has one, two or three sizes, as in (3, 3).")
    names = ("z", "y", "x")[3 - len(taps) :]
    taps = tuple(Index(name, tap.size) for name, tap in zip(names, taps, strict=True))
    return network([(o, p), (p, q, *taps), (q, i)], (o,), (i, *taps))


def _one(sizes: Sizes, name: str) -> Core:
    found = modes(sizes, name)
    if len(found) != 1:
        raise ShapeError(f"Channels {sizes} came for {name}; write one size, as in 64.")
    return (Index(name, found[0].size),)
