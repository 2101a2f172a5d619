"""Ladders: at rising multiplications the seconds over dense's, of one format in one place.

Between two rungs the line is taken, beyond the ladder the nearest rung. More multiplications are
never taken to need less time, so that the noise of a clock makes no choice.
"""

from bisect import bisect_right
from collections.abc import Iterable, Sequence
from functools import cache
from statistics import mean

from bondwise.choose.candidates import Terms
from bondwise.choose.kinds.kernels import Moves
from bondwise.compute.kernels.stacks import conv_plan
from bondwise.compute.plan import plan
from bondwise.errors import BondwiseError, DataError
from bondwise.layers.prepare.measurement import Measurement
from bondwise.layers.terms import Kind
from bondwise.network.network import Network, parse
from bondwise.topology.lowrank import lowrank

WRITE = "write `bondwise bench MODEL --measurements FILE` for the model"
LOWRANK = str(lowrank(1, 1, 1))

Family = tuple[str, tuple[tuple[str, int], ...], tuple[str, ...]]
"""What one ladder is of: an einsum, the sizes of its open indices, the kinds of terms beside it."""
Rung = tuple[int, float]
"""Multiplications of a row, and seconds over dense's."""


@cache
def multiplications(net: Network, moves: Moves | None) -> int:
    """Of a row (of a sample of a convolution), as built."""
    if moves is not None:
        return conv_plan(net, moves.geometry, moves.size).macs
    if str(net) == LOWRANK:  # gathered; a plan is sought for others, which takes its time
        (rank,) = net.bonds.values()
        return net.parameters - rank * rank
    return plan(net, 1).macs


def ladders(
    entries: Iterable[Measurement], moves: Moves | None, file: str
) -> dict[Family, list[Rung]]:
    """The ladders of what was measured in a place for one number of rows: rising in both.

    Raises:
        DataError: an entry of the file has no network that can be read.
    """
    points: dict[Family, dict[int, list[float]]] = {}
    for entry in entries:
        if entry.network is not None:
            net = _parsed(file, entry.network, tuple(entry.sizes.items()))
            macs = multiplications(net, moves)
            own = points.setdefault(_key(net, entry.beside), {})
            own.setdefault(macs, []).append(entry.seconds / entry.dense_seconds)
    found: dict[Family, list[Rung]] = {}
    for kind, some in points.items():
        least, rungs = 0.0, list[Rung]()
        for macs in sorted(some):
            least = max(least, mean(some[macs]))
            rungs.append((macs, least))
        found[kind] = rungs
    return found


def _parsed(file: str, text: str, sizes: tuple[tuple[str, int], ...]) -> Network:
    try:
        return parse(text, **dict(sizes))
    except BondwiseError as error:
        said = str(error).rstrip(".")
        raise DataError(f"Measurements {file} hold no network ({said}); {WRITE}.") from error


def at(ladder: Sequence[Rung], macs: int) -> float:
    """Seconds over dense's, on the line between the two nearest rungs.

    >>> at([(10, 0.2), (20, 0.6)], 15), at([(10, 0.2), (20, 0.6)], 99)
    (0.4, 0.6)
    """
    k = bisect_right(ladder, macs, key=lambda rung: rung[0])
    if k in (0, len(ladder)):
        return ladder[max(0, k - 1)][1]
    (before, low), (after, high) = ladder[k - 1], ladder[k]
    return low + (high - low) * (macs - before) / (after - before)


def family(net: Network, terms: Terms) -> Family:
    """Which ladder a sum of terms with this network is on."""
    return _key(net, tuple(term.kind for term in terms if isinstance(term, Kind)))


def _key(net: Network, beside: tuple[str, ...]) -> Family:
    names = dict.fromkeys(index.name for index in (*net.rows, *net.cols))
    return str(net), tuple((name, net.sizes[name]) for name in names), beside
