"""How fast models run, in turns, so that what slows the machine slows them all."""

import time
from collections.abc import Callable, Sequence
from statistics import median
from typing import Any

import torch

from bondwise.bench.run import BATCH, Load, Meter, Parts

Spread = dict[str, float]
"""`median`, `low` and `high` of what repeated runs gave."""


def clock(device: torch.device) -> Meter:
    """Seconds, read once the device has done all that it was given."""

    def now() -> float:
        if device.type != "cpu":
            torch.accelerator.synchronize(device)
        return time.perf_counter()

    return now


def interleaved(
    jobs: Sequence[Callable[[], Parts]], rounds: int, progress: Callable[[int, int], None]
) -> list[list[Parts]]:
    """Every job once in every round: A, B, A, B, ..; for each job what its rounds gave.

    >>> order = []
    >>> jobs = [lambda: order.append("A") or {}, lambda: order.append("B") or {}]
    >>> interleaved(jobs, 2, lambda done, total: None), "".join(order)
    ([[{}, {}], [{}, {}]], 'ABAB')
    """
    took: list[list[Parts]] = [[] for _ in jobs]
    progress(0, rounds)
    for done in range(1, rounds + 1):
        for job, own in zip(jobs, took, strict=True):
            own.append(job())
        progress(done, rounds)
    return took


def rates(seconds: Parts, load: Load) -> dict[str, float]:
    """Tokens per second of every part of a run, and the seconds to the first token written.

    >>> rates({"prefill": 2.0, "decode": 4.0}, Load(prompt=256, tokens=32))
    {'decode': 8.0, 'prefill': 128.0, 'time_to_first_token': 2.0}
    """
    if "decode" not in seconds:
        alone, together = seconds["forward"], seconds["batched"]
        return {"forward": load.prompt / alone, "batched": BATCH * load.prompt / together}
    return {
        "decode": load.tokens / seconds["decode"],
        "prefill": load.prompt / seconds["prefill"],
        "time_to_first_token": seconds["prefill"],
    }


def spreads(rounds: Sequence[dict[str, float]]) -> dict[str, Spread]:
    """Median, lowest and highest over the rounds, of every rate.

    >>> spreads([{"decode": 3.0}, {"decode": 1.0}, {"decode": 2.0}])
    {'decode': {'median': 2.0, 'low': 1.0, 'high': 3.0}}
    """
    return {name: _spread([found[name] for found in rounds]) for name in rounds[0]}


def ratios(ours: Sequence[dict[str, float]], other: Sequence[dict[str, float]]) -> dict[str, Any]:
    """Spreads of ours over the other's, round by round: what slowed both is not in them.

    >>> ratios([{"decode": 3.0}, {"decode": 2.0}], [{"decode": 2.0}, {"decode": 1.0}])
    {'decode': {'median': 1.75, 'low': 1.5, 'high': 2.0}}
    """
    both = zip(ours, other, strict=True)
    return spreads([{name: one[name] / two[name] for name in one} for one, two in both])


def _spread(values: Sequence[float]) -> Spread:
    return {"median": median(values), "low": min(values), "high": max(values)}
