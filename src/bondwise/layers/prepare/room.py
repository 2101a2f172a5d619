"""Which ways to keep: the fastest that fit together into some bytes."""

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from itertools import product

from bondwise.layers.prepare.contest import Contest, Entrant

KEPT = 6  # ways of a call that are looked at: the fastest
Call = tuple[Hashable, int]
"""A kind of call and its rows."""


@dataclass(frozen=True, eq=False)
class Bundle:
    """One way for each call of a layer.

    Attributes:
        ways: by call.
        bytes: of all of them beside the parameters; a way that serves several calls counts once.
        score: seconds of each call over those of the whole model at so many rows, summed.
    """

    ways: Mapping[Call, Entrant]
    bytes: int
    score: float


def bundles(contests: Mapping[Call, Contest], whole: Mapping[int, float]) -> list[Bundle]:
    """The bundles of a layer that no other beats in both, from the smallest to the fastest.

    Args:
        contests: by call.
        whole: seconds of all layers, by rows.
    """
    options = [_options(own) for own in contests.values()]
    found = list[Bundle]()
    for some in product(*options):
        ways = dict(zip(contests, some, strict=True))
        sizes = {(kind, e.name): e.bytes for (kind, _), e in ways.items()}
        score = sum(e.took / whole[rows] for (_, rows), e in ways.items())
        found.append(Bundle(ways, sum(sizes.values()), score))
    best = list[Bundle]()
    for own in sorted(found, key=lambda b: (b.bytes, b.score)):
        if not best or own.score < best[-1].score:
            best.append(own)
    return best


def _options(own: Contest) -> list[Entrant]:
    """The fastest of those that take no bytes, and the fastest that take some."""
    timed = sorted((e for e in own.entrants.values() if e.seconds), key=lambda e: e.took)
    free = next(e for e in timed if not e.bytes)
    return [free, *(e for e in timed[:KEPT] if e.took < free.took)]


def fitting(
    layers: Sequence[list[Bundle]], dense: Sequence[int], counts: Sequence[int], room: int | None
) -> list[Bundle]:
    """One bundle for each layer.

    Args:
        layers: the bundles of each, as `bundles` gives them.
        dense: bytes of each dense weight, which each may take where no room is given.
        counts: how many layers each stands for.
        room: bytes for all layers together, spent where they save most; None: see ``dense``.
    """
    if room is None:
        pairs = zip(layers, dense, strict=True)
        return [[b for b in some if b.bytes <= most][-1] for some, most in pairs]
    hulls = [_hull(some) for some in layers]
    chosen, left = [0] * len(hulls), room
    steps = [(k, at) for k, some in enumerate(hulls) for at in range(1, len(some))]
    for k, at in sorted(steps, key=lambda s: -_gain(*hulls[s[0]][s[1] - 1 : s[1] + 1])):
        more = counts[k] * (hulls[k][at].bytes - hulls[k][at - 1].bytes)
        if chosen[k] == at - 1 and more <= left:
            chosen[k], left = at, left - more
    return [some[at] for some, at in zip(hulls, chosen, strict=True)]


def _hull(found: Sequence[Bundle]) -> list[Bundle]:
    """Those that save less for each byte more than the ones before."""
    hull = list[Bundle]()
    for own in found:
        while len(hull) > 1 and _gain(hull[-2], own) >= _gain(hull[-2], hull[-1]):
            hull.pop()
        hull.append(own)
    return hull


def _gain(one: Bundle, two: Bundle) -> float:
    return (one.score - two.score) / max(1, two.bytes - one.bytes)
