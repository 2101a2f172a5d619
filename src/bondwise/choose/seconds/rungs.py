"""Which terms of a weight are measured: a few sizes of every format that may be chosen for it."""

from collections.abc import Iterable, Iterator
from math import prod

from bondwise.choose.by_rank import STEP
from bondwise.choose.candidates import Terms, grid, network_of
from bondwise.choose.fitted import series
from bondwise.choose.kinds.columns import SHARE
from bondwise.choose.kinds.kernels import LONG
from bondwise.choose.seconds.clock import multiplications
from bondwise.choose.seconds.place import Place
from bondwise.compute.kernels.convolve import convolution_macs
from bondwise.layers.entries import Columns, Dense
from bondwise.network.groups import grouped_network
from bondwise.network.ranks import capped
from bondwise.topology import registry
from bondwise.topology.cp import cp
from bondwise.topology.lowrank import lowrank
from bondwise.topology.tucker2 import tucker2

EIGHTHS = (1 / 16, *(k / 8 for k in range(1, 8)))  # of the largest rank that stores less than dense
SIZES = (0.3, 0.6, 0.9)  # of dense's numbers, for other formats
BESIDE = (1 / 4, 1 / 2)  # as `EIGHTHS`, with columns beside
CP_SIZES = (0.03, 0.15)  # of the numbers of a long kernel


def rungs(place: Place, bits: int, heads: int = 0) -> Iterator[Terms]:
    """What a weight in a place is measured as; dense first.

    What needs as many multiplications as dense is left out: prepared, it is the dense weight.

    Args:
        place: of the weight.
        bits: of a stored number.
        heads: that its rows are; 0 for none.

    >>> found = list(rungs(Place("linear", (64, 64), "float32"), 32))
    >>> [str(terms[0]) for terms in found][:2]
    ['Dense(shape=(64, 64))', 'o a, a i -> (o) (i)']
    """
    yield (Dense(place.shape),)
    found = _kernels(place) if place.moves is not None else _matrices(place, bits, heads)
    limit = _dense_macs(place)
    for terms in dict.fromkeys(found):
        net = network_of(terms)
        if net is not None and multiplications(net, place.moves) < limit:
            yield terms


def _dense_macs(place: Place) -> int:
    if place.moves is None:
        return prod(place.shape)
    geometry, (out, inp) = place.moves.geometry, place.shape
    channels = inp // geometry.taps * geometry.groups
    return convolution_macs(geometry, out, channels, place.moves.size)


def _matrices(place: Place, bits: int, heads: int) -> Iterator[Terms]:
    out, inp = place.shape
    ranks = grid(out, inp, bits)
    for rank in _parts(ranks[-1] if ranks else 0, EIGHTHS):
        yield (lowrank(out, inp, rank),)
    if place.host == "embedding":
        return
    for form in registry.scouted("best"):
        for nets in series("", out, inp, form, bits, heads=heads or None):
            sizes = (nets.best(part * out * inp) for part in SIZES)
            yield from ((nets.at(rank),) for rank in dict.fromkeys(sizes) if rank)
    if ranks and inp >= SHARE:
        for rank in _parts(ranks[-1], BESIDE):
            yield lowrank(out, inp, rank), Columns(inp // SHARE, (out, inp))


def _kernels(place: Place) -> Iterator[Terms]:
    assert place.moves is not None
    geometry = place.moves.geometry
    out, inp = place.shape[0] // geometry.groups, place.shape[1] // geometry.taps
    for rank in _parts(min(out, inp * geometry.taps), EIGHTHS):
        yield (grouped_network(lowrank((out,), (inp, *geometry.kernel), rank), geometry.groups),)
    if geometry.taps == 1:
        return
    pairs = zip(_each(out), _each(inp), strict=True)
    for pair in dict.fromkeys(pairs):
        net = capped(tucker2(out, inp, geometry.kernel, pair))
        yield (grouped_network(net, geometry.groups),)
    if geometry.groups == 1 and geometry.taps >= LONG:
        numbers = out * inp * geometry.taps
        each = out + inp + geometry.taps
        for rank in dict.fromkeys(max(1, int(part * numbers / each)) for part in CP_SIZES):
            yield (cp((out,), (inp, geometry.taps), rank),)


def _parts(most: int, parts: Iterable[float]) -> list[int]:
    """Ranks at parts of the largest, multiples of 8 as the ranks that are chosen."""
    ranks = (_even(most * part) for part in parts if most)
    return list(dict.fromkeys(ranks))


def _each(channels: int) -> list[int]:
    return [_even(channels * part) for part in EIGHTHS]


def _even(rank: float) -> int:
    return max(1, round(rank)) if rank < 2 * STEP else STEP * round(rank / STEP)
