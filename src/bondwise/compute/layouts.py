"""What a layout of a product costs, in multiplications of a large matmul: the same everywhere.

The orders in which a value can lie in memory need the same multiplications; they differ in what is
copied, and in how well matmuls of their shape fill a processor. Weighed here is what held on every
processor that was looked at (a side of ten numbers halves the speed, a number copied is some eighty
multiplications); which program is fastest on a machine is measured there, by `bw.prepare`.
"""

from math import prod

COPY = 85.0  # for each number copied into another order
CALL = 180_000.0  # for each copy, however small
HALF = (0.7, 12.0, 2.4)  # sides (m, n, k) at which a matmul reaches half of its speed
BATCHED_HALF = (29.0, 0.45, 1.2)  # those of a batch of matmuls
BATCHED = 1.45  # speed of a large batch of matmuls over that of one


def product(extents: tuple[int, int, int, int]) -> float:
    """Of g products (m x k)(k x n), for extents (g, m, n, k).

    >>> product((1, 512, 512, 64)) < product((1, 512, 8, 4096))    # as many multiplications
    True
    """
    g, *sides = extents
    peak, half = (1.0, HALF) if g == 1 else (BATCHED, BATCHED_HALF)
    lost = prod(1 + h / side for side, h in zip(sides, half, strict=True))
    return prod(extents) * lost / peak


def copied(numbers: int) -> float:
    """Of a copy into another order.

    >>> copied(1000) > product((1, 10, 10, 10))
    True
    """
    return CALL + COPY * numbers
