"""Seconds of one call of every model that a run left in the cache, all in turns in one process."""

from pathlib import Path
from statistics import median
from typing import Any

import torch
from speed.clock import race

from convs.models import SUBJECTS


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
        times = race(runs, repeats, least, 60.0)
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
