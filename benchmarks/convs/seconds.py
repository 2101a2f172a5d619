"""Seconds of one call of every model that a run left in the cache, all in turns in one process."""

import time
from collections.abc import Mapping
from pathlib import Path
from statistics import median
from typing import Any

import torch
from speed.clock import Run, race

from convs.models import SUBJECTS


def turns(runs: Mapping[str, Run], repeats: int, least: float) -> dict[str, list[float]]:
    """Seconds of every one, in turns; on one thread those of the processor, not of the clock."""
    alone = torch.get_num_threads() == 1
    return race(runs, repeats, least, 60.0, time.thread_time if alone else time.perf_counter)


def timed(
    subject: str,
    names: list[str],
    cache: Path,
    threads: int,
    batch: int,
    repeats: int,
    least: float,
) -> list[dict[str, Any]]:
    """One row per model: the median and the least of its turns, and the ratio to dense's."""
    own = SUBJECTS[subject]
    own.dense()  # its class has to be there before what was pickled is read
    models = {name: torch.load(cache / f"{name}.pt", weights_only=False).eval() for name in names}
    models |= {label: make() for label, make in own.others}
    torch.set_num_threads(threads)
    x = own.batch(0, batch)
    with torch.inference_mode():
        runs = {name: (lambda model=model: model(x)) for name, model in models.items()}
        for call in runs.values():
            call()
        times = turns(runs, repeats, least)
    dense = times[f"{subject}-dense-1"]
    return [
        {
            "subject": subject,
            "model": name,
            "threads": threads,
            "batch": batch,
            "median": median(found),
            "least": min(found),
            "ratio": median(a / b for a, b in zip(found, dense, strict=False)),
        }
        for name, found in times.items()
    ]
