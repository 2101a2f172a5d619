"""The rate of a step: it rises evenly, then falls as a cosine."""

from math import cos, pi


def scheduled(
    rate: float, step: int, steps: int, warm: int, *, floor: float = 0.0, start: int = 0
) -> float:
    """The rate of a step, the first one being 0.

    Args:
        rate: the largest.
        step: whose rate it is.
        steps: of the run.
        warm: steps over which the rate rises.
        floor: the rate at the end, as a share of the largest.
        start: the step at which the cosine begins.

    >>> [round(scheduled(1.0, step, 8, 2, start=2), 2) for step in range(8)]
    [0.5, 1.0, 1.0, 0.93, 0.75, 0.5, 0.25, 0.07]
    """
    risen = min(1, (step + 1) / warm)
    angle = pi * max(0, step - start) / max(1, steps - start)
    return rate * risen * (floor + (1 - floor) * (1 + cos(angle)) / 2)
