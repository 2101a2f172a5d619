"""Lower convex hulls of cost against loss: the choices that some price per number would make.

Every point of a hull is the best choice at some multiplier ``lambda`` of ``loss + lambda cost``
(Everett 1963; for bits of images Shoham and Gersho 1988). Hulls add by merging their segments in
order of slope, so a sum over hundreds of weights is as cheap as a sort.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from heapq import merge
from itertools import pairwise
from typing import Generic, TypeVar

Pick = TypeVar("Pick")


@dataclass(frozen=True, slots=True)
class Point(Generic[Pick]):
    """A choice, what it costs and what it loses."""

    cost: float
    loss: float
    pick: Pick


def front(points: Iterable[Point[Pick]]) -> list[Point[Pick]]:
    """Points that no other beats in both, the cheapest first; each next one loses less.

    >>> [p.cost for p in front([Point(c, e, "") for c, e in ((0.0, 9.0), (1.0, 9.0), (2.0, 5.0))])]
    [0.0, 2.0]
    """
    best: list[Point[Pick]] = []
    for point in sorted(points, key=lambda p: (p.cost, p.loss)):
        if not best or point.loss < best[-1].loss:
            best.append(point)
    return best


def lower_hull(points: Iterable[Point[Pick]]) -> list[Point[Pick]]:
    """The lower left convex hull, the cheapest point first; each next one costs more, loses less.

    >>> points = [Point(c, e, "") for c, e in ((0.0, 9.0), (1.0, 7.0), (2.0, 6.0), (3.0, 0.0))]
    >>> [p.cost for p in lower_hull(points)]
    [0.0, 3.0]
    """
    hull: list[Point[Pick]] = []
    for point in front(points):
        while len(hull) > 1 and gain(hull[-2], hull[-1]) <= gain(hull[-2], point):
            hull.pop()
        hull.append(point)
    return hull


def gain(before: Point[Pick], after: Point[Pick]) -> float:
    """Loss that is saved for each unit that it costs more."""
    return (before.loss - after.loss) / (after.cost - before.cost)


def segments(hulls: Sequence[Sequence[Point[Pick]]]) -> Iterable[tuple[float, int, Point[Pick]]]:
    """Steps along all hulls, steepest first: minus the gain, which hull, and the point reached."""
    return merge(
        *(
            [(-gain(before, after), k, after) for before, after in pairwise(hull)]
            for k, hull in enumerate(hulls)
        ),
        key=lambda step: step[:2],
    )
