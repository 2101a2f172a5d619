"""How a size splits into modes: 768 is 24 x 32 or 8 x 8 x 12; primes stay whole."""

from functools import cache
from math import prod

from bondwise.errors import ShapeError


@cache
def balanced(n: int, parts: int) -> tuple[int, ...]:
    """The split of n into ``parts`` factors whose sum is smallest, small factors first.

    The sum counts what a core of the usual kind stores; a prime gives ones and itself.

    >>> balanced(576, 2), balanced(768, 3), balanced(127, 2)
    ((24, 24), (8, 8, 12), (1, 127))

    Raises:
        ShapeError: n or parts is below 1.
    """
    if n < 1 or parts < 1:
        raise ShapeError(f"{n} into {parts} modes came; both are whole numbers of at least 1.")
    if parts == 1:
        return (n,)
    splits = (tuple(sorted((d, *balanced(n // d, parts - 1)))) for d in divisors(n))
    return min(splits, key=lambda split: (sum(split), split[::-1]))


@cache
def divisors(n: int) -> tuple[int, ...]:
    """All divisors of n, ascending.

    >>> divisors(12)
    (1, 2, 3, 4, 6, 12)
    """
    low = [d for d in range(1, int(n**0.5) + 1) if n % d == 0]
    return tuple(sorted({*low, *(n // d for d in low)}))


def check_split(size: int, modes: tuple[int, ...], what: str) -> None:
    """Refuse modes that do not multiply to the size.

    Raises:
        ShapeError: with a split that would do.
    """
    if prod(modes) != size:
        raise ShapeError(
            f"{what}: {size} does not split as {modes}; try {balanced(size, len(modes))}."
        )
