"""Seconds of one call: subjects take turns, each turn long enough to be measured."""

import gc
import time
from collections.abc import Callable, Mapping
from math import ceil

Run = Callable[[], object]
Clock = Callable[[], float]


def race(
    runs: Mapping[str, Run],
    repeats: int,
    least: float,
    patience: float,
    clock: Clock = time.perf_counter,
) -> dict[str, list[float]]:
    """Seconds per call of every subject, once for every repeat; all have run before.

    A turn lasts at least about ``least`` seconds. Who needs more than ``patience`` for one call,
    and more than three times the quickest, gets that one reading and no turns. On one thread
    ``time.thread_time`` leaves out what other programs take of a machine that is not quiet.
    """
    counts: dict[str, int] = {}
    alone: dict[str, float] = {}
    collects = gc.isenabled()
    gc.disable()
    try:
        for name, run in runs.items():
            counts[name], alone[name] = _calls(run, least, clock)
        limit = max(patience, 3 * min(alone.values()))
        times = {name: [alone[name]] if alone[name] > limit else [] for name in runs}
        racing = [name for name in runs if not times[name]]
        for turn in range(repeats):
            first = turn % len(racing)
            for name in (*racing[first:], *racing[:first]):  # nobody is always first
                times[name].append(_seconds(runs[name], counts[name], clock) / counts[name])
    finally:
        if collects:
            gc.enable()
    return times


def _calls(run: Run, least: float, clock: Clock) -> tuple[int, float]:
    """How many calls last so long, and the seconds of one."""
    count = 1
    while (took := _seconds(run, count, clock)) < least / 2:
        count = min(10 * count, ceil(1.1 * count * least / took))
    return max(1, ceil(count * least / took)), took / count


def _seconds(run: Run, count: int, clock: Clock) -> float:
    start = clock()
    for _ in range(count):
        run()
    return clock() - start
