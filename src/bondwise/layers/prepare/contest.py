"""Ways to run layers, timed against each other as they run in a model: one layer after the other.

A layer called again and again finds its weight in the cache; in a large model all other weights
have been read since. So the layers of a model take turns: each way of all of them is laid out, and
they are called one after the other, all of them once before the clock runs, as in a model that is
called again and again.
"""

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from math import ceil
from typing import Any, TypeVar, cast

import torch
from torch import Tensor

from bondwise.compute.fast.ready import Ready, Way, bytes_beside

Some = TypeVar("Some")
WINDOW = 2**28  # bytes of dense weights whose layers are measured in turns
PART = 16  # of the rows, for a first look
HOPELESS = 4.0  # times the fastest, after that look
SURELY = 20.0  # times the fastest, by a first call, which also makes what it needs
CLOSE = 1.3  # times the fastest, among which it is decided
FINALISTS = 4
DENSE = "dense"  # the way that all are compared with
LOOKS = 2  # calls of a first round
SLOW = 0.001  # seconds of a call from which one look will do
LEAST, FEWEST, MOST = 0.004, 2, 40  # seconds and calls of a last round
IN_A_ROW = 2  # of these calls, after one that is not timed
OFF = {8: 1e-8, 4: 1e-3, 2: 5e-2, 1: 0.3}  # relative, by bytes of a number: orders round otherwise


@dataclass(eq=False)
class Entrant:
    """A way of one layer, by its name, and what it took."""

    name: str
    seconds: list[float] = field(default_factory=list)
    bytes: int = 0

    @property
    def took(self) -> float:
        """Seconds of a call: of a quarter of the calls no more; the rest met other work."""
        return sorted(self.seconds)[(len(self.seconds) - 1) // 4]


@dataclass(eq=False)
class Contest:
    """One layer (or several that are equal), called with so many rows.

    Attributes:
        offers: the ways that there are; the first is the one that is known to be right.
        x: what it is called with.
        bias: that it adds.
        parameters: whose memory is not counted.
        entrants: those that ran and were right.
        right: the output of the first.
        ways: of the entrants, by name, while it is decided: they may hold whole weights.
    """

    offers: Callable[[], Iterable[Way]]
    x: Tensor
    bias: Tensor | None
    parameters: Sequence[Tensor]
    entrants: dict[str, Entrant] = field(default_factory=dict)
    right: Any = None
    ways: dict[str, Way] = field(default_factory=dict)

    @property
    def best(self) -> float:
        """Seconds of the fastest so far."""
        return min((e.took for e in self.entrants.values() if e.seconds), default=float("inf"))

    @property
    def close(self) -> list[Entrant]:
        """The fastest, and those not far behind."""
        found = sorted((e for e in self.entrants.values() if e.seconds), key=lambda e: e.took)
        return [e for e in found[:FINALISTS] if e.took <= CLOSE * self.best]

    @property
    def finalists(self) -> list[Entrant]:
        """The closest, and the dense weight, which all are compared with; none without a rival."""
        found, dense = self.close, self.entrants.get(DENSE)
        if len(found) < 2:
            return []
        return found if dense is None or dense in found else [*found, dense]


def windows(some: Sequence[Some], size: Callable[[Some], int]) -> list[list[Some]]:
    """So many in a row as keep a cache busy, by the bytes of their dense weights.

    >>> windows([1, 2, 3], lambda _: WINDOW // 2)
    [[1, 2], [3]]
    """
    found, held = list[list[Some]](), WINDOW
    for own in some:
        if held >= WINDOW:
            found.append([])
            held = 0
        found[-1].append(own)
        held += size(own)
    return found


@torch.no_grad()
def decide(contests: Sequence[Contest]) -> None:
    """Time the ways of all contests, the closest most carefully."""
    _round(contests, [list(own.offers()) for own in contests])
    _round(contests, [_finer(own) for own in contests], late=True)
    _last(contests, [[(e, own.ways[e.name].make()) for e in own.finalists] for own in contests])


def _last(contests: Sequence[Contest], finals: Sequence[Sequence[tuple[Entrant, Ready]]]) -> None:
    """The finalists in turns, all layers by one of theirs and then all by the next."""
    turns = [_turns(own) if final else 0 for own, final in zip(contests, finals, strict=True)]
    for own in contests:
        own.ways.clear()
    for turn in range(max(turns, default=0)):
        for place in range(FINALISTS + 1):
            runs = [
                (own, *final[(place + turn) % len(final)])
                for own, final, most in zip(contests, finals, turns, strict=True)
                if place < len(final) and turn < most
            ]
            for own, _, ready in runs:
                ready.run(own.x, own.bias)
            for call in range(IN_A_ROW):
                for own, entrant, ready in runs:
                    _again(own, entrant, ready, turn + call)


def _again(own: Contest, entrant: Entrant, ready: Ready, earlier: int) -> None:
    """One call more; the first takes the place of what was seen before."""
    if earlier == 0:
        entrant.seconds.clear()
    entrant.seconds.append(_timed(own, ready, own.x)[1])


def _turns(own: Contest) -> int:
    calls = max(FEWEST, min(MOST, int(LEAST / max(own.best, 1e-7))))
    return ceil(calls / IN_A_ROW)


def _finer(own: Contest) -> list[Way]:
    return [way for e in own.close[:2] for way in own.ways[e.name].finer()]


def _round(contests: Sequence[Contest], ways: Sequence[Sequence[Way]], late: bool = False) -> None:
    """Each way of all contests in turn, those without a chance only once, on few rows.

    The first of all is known to be right; what comes late is never that one.
    """
    for at in range(max(map(len, ways), default=0)):
        here = [(own, some[at]) for own, some in zip(contests, ways, strict=True) if at < len(some)]
        found = [(own, _entered(own, way, known=not late and at == 0)) for own, way in here]
        runs = [(own, *entered) for own, entered in found if entered is not None]
        for look in range(LOOKS):
            for own, entrant, ready in runs:
                if look == 0 or entrant.took < SLOW:
                    entrant.seconds.append(_timed(own, ready, own.x)[1])


def _entered(own: Contest, way: Way, known: bool) -> tuple[Entrant, Ready] | None:
    """What is laid out for a way, where it runs, is right, and has a chance."""
    rows = own.x.shape[0]
    part = own.x[: max(1, rows // PART)] if rows > PART else own.x
    try:
        ready = way.make()
        y, took = _timed(own, ready, part)
    except (RuntimeError, NotImplementedError, TypeError):
        return None  # no kernel for it here
    if known:
        own.right = y
    elif own.right is None or not equal(y, own.right):
        return None
    share = part.shape[0] / rows
    if took < SURELY * own.best * share:
        took = _timed(own, ready, part)[1]
    entrant = Entrant(way.name, bytes=bytes_beside(ready.kept, own.parameters))
    own.entrants[way.name], own.ways[way.name] = entrant, way
    if took > HOPELESS * own.best * share:
        entrant.seconds.append(took / share)
        return None
    return entrant, ready


@torch.no_grad()
def made_again(ways: Iterable[Way], name: str) -> Ready:
    """The way of such a name, laid out."""
    for way in ways:
        for own in (way, *way.finer()):
            if own.name == name:
                return own.make()
    raise AssertionError(name)


def equal(y: Any, right: Any) -> bool:
    """Whether an output is right, but for how other orders round."""
    if isinstance(y, tuple):  # of several layers
        y, right = torch.cat(cast("tuple[Tensor, ...]", y), -1), torch.cat(right, -1)
    if y.shape != right.shape or y.dtype != right.dtype:
        return False
    off = torch.linalg.vector_norm(y.double() - right.double())
    return bool(off <= OFF[right.dtype.itemsize] * torch.linalg.vector_norm(right.double()))


def _timed(own: Contest, ready: Ready, x: Tensor) -> tuple[Any, float]:
    """The output, and seconds."""
    wait = x.device.type != "cpu"
    clock = time.perf_counter if wait else clock_of_work()
    if wait:
        torch.accelerator.synchronize(x.device)
    start = clock()
    y = ready.run(x, own.bias)
    if wait:
        torch.accelerator.synchronize(x.device)
    return y, clock() - start


def clock_of_work() -> Callable[[], float]:
    """What tells seconds: on one thread the processor's, in which other processes do not count."""
    return time.thread_time if torch.get_num_threads() == 1 else time.perf_counter
