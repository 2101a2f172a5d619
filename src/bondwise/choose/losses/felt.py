"""How much a model loses by the error of one weight, from a few cuts that were measured.

A convolution's error is not felt in proportion: what is between the layers (a threshold, a
maximum) hides a small one and passes a large one on.
"""

from bisect import bisect_right
from collections.abc import Iterable
from dataclasses import dataclass
from math import log

LEAST = 1e-9  # sensitivity of a weight whose cut changes nothing that can be measured


@dataclass(frozen=True)
class Felt:
    """Loss by error: straight between points in logarithms, in proportion beyond them.

    One point is a constant sensitivity.

    Attributes:
        points: pairs of a relative squared error and the loss that was measured, both above 0;
            errors rise, and losses do not fall.

    >>> felt = Felt.of([(0.1, 1.0), (0.001, 0.0001)])
    >>> [round(felt(error), 9) for error in (0.0, 0.0001, 0.01, 0.2)]
    [0.0, 1e-05, 0.01, 2.0]
    """

    points: tuple[tuple[float, float], ...]

    @classmethod
    def of(cls, measured: Iterable[tuple[float, float]]) -> "Felt":
        """Measured pairs in any order; a larger error is never felt less than a smaller one."""
        rising, most = list[tuple[float, float]](), 0.0
        for error, loss in sorted(dict(measured).items()):
            most = max(most, loss, LEAST * error)
            rising.append((error, most))
        return cls(tuple(rising))

    def __call__(self, error: float) -> float:
        """The loss at an error."""
        if not error > 0:
            return 0.0
        at = bisect_right(self.points, error, key=lambda point: point[0])
        if at in (0, len(self.points)):
            known, loss = self.points[max(0, at - 1)]
            return loss * (error / known)
        (before, less), (after, more) = self.points[at - 1 : at + 1]
        share = log(error / before) / log(after / before)
        return less * (more / less) ** share

    def __pow__(self, alpha: float) -> "Felt":
        """The power of the sensitivity, which is loss over error, at every point."""
        return Felt.of((error, error * (loss / error) ** alpha) for error, loss in self.points)


def lost(felt: float | Felt, error: float) -> float:
    """The loss at an error; a number is a constant sensitivity.

    >>> lost(3.0, 0.5), lost(Felt(((0.1, 0.3),)), 0.5)
    (1.5, 1.5)
    """
    return felt(error) if isinstance(felt, Felt) else felt * error
