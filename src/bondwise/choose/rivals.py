"""By how much a format won: the next best one of a weight at equal stored numbers."""

from collections.abc import Sequence

from bondwise.choose.candidates import Candidate


def runner_up(chosen: Candidate, name: str, site: Sequence[Candidate]) -> tuple[str, float] | None:
    """The next best format of a weight, and its error over the chosen one's at equal numbers.

    Weights that share are charged for the core in proportion to their size; between two ranks the
    error is interpolated. None where the chosen candidate has no error, or no other format has one
    at so few numbers.

    >>> from bondwise.choose.candidates import Site, candidates
    >>> import torch
    >>> site = candidates(Site({"q": torch.eye(16), "k": torch.eye(16).roll(1, 0)}))
    >>> shared = next(c for c in site if c.format == "shared lowrank" and c.errors[0] < 0.5)
    >>> form, ratio = runner_up(shared, "q", site)
    >>> form, ratio > 1                           # both have the same row space
    ('lowrank', True)
    """
    size = {c.weights[0]: c.numbers for c in site if c.format == "dense"}

    def point(candidate: Candidate) -> tuple[float, float]:
        share = size[name] / sum(size[other] for other in candidate.weights)
        return candidate.numbers * share, candidate.errors[candidate.weights.index(name)]

    numbers, error = point(chosen)
    rivals: dict[str, list[tuple[float, float]]] = {}
    for candidate in site:
        if name in candidate.weights and candidate.format not in ("dense", chosen.format):
            rivals.setdefault(candidate.format, []).append(point(candidate))
    found = [(_between(points, numbers), form) for form, points in rivals.items()]
    reached = [(value, form) for value, form in found if value is not None]
    if not reached or error <= 0:
        return None
    value, form = min(reached)
    return form, value / error


def _between(points: list[tuple[float, float]], numbers: float) -> float | None:
    """The error at so many numbers, on the line between the two nearest points."""
    below = max((p for p in points if p[0] <= numbers), default=None)
    above = min((p for p in points if p[0] > numbers), default=None)
    if below is None or above is None:
        return None if below is None else below[1]
    part = (numbers - below[0]) / (above[0] - below[0])
    return below[1] + part * (above[1] - below[1])
