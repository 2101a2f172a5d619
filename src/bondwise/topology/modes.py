"""What the topology functions share: reading modes and ranks, and naming indices."""

from collections.abc import Iterable, Sequence
from itertools import count, islice
from math import prod
from typing import Any, SupportsIndex, cast

from bondwise.errors import ShapeError, as_whole
from bondwise.network.network import Core, Index, Network

Sizes = SupportsIndex | Sequence[SupportsIndex]  # numpy's integers and arrays of them, too


def modes(sizes: object, name: str) -> Core:
    """Open indices ``name1, name2, ..`` of the given sizes; an int is one mode.

    Raises:
        ShapeError: no modes, or a mode that is not a whole number of at least 1.
    """
    given = as_whole(sizes)
    found = [as_whole(n) for n in listed(sizes)] if given is None else [given]
    whole = [n for n in found if n is not None and n > 0]
    if not found or len(whole) < len(found):
        raise ShapeError(
            f"Modes {sizes} came for {name}; write whole numbers of at least 1, as in (24, 24)."
        )
    return tuple(Index(f"{name}{k}", n) for k, n in enumerate(whole, start=1))


def bonds(rank: object, names: Sequence[str]) -> list[Index]:
    """One bond per name: an int is the rank of all of them, a tuple gives one each.

    Raises:
        ShapeError: the tuple has another length, or a rank is not a whole number of at least 1.
    """
    several = isinstance(rank, Iterable) and as_whole(rank) is None
    ranks = listed(rank) if several else (rank,) * len(names)
    if len(ranks) != len(names):
        raise ShapeError(
            f"{len(ranks)} ranks {ranks} came for {len(names)} bonds; "
            "write an int, or one per bond."
        )
    found = [as_whole(r) for r in (*ranks, *(() if several else (rank,)))]
    whole = [r for r in found if r is not None and r > 0]
    if len(whole) < len(found):
        raise ShapeError(f"Rank {rank} came; a rank is a whole number of at least 1.")
    return [Index(name, r) for name, r in zip(names, whole, strict=False)]


def listed(sizes: object) -> tuple[Any, ...]:
    """Sizes as a tuple; what is neither a whole number nor several things stays one thing.

    >>> listed((2, 3)), listed(2.5)
    ((2, 3), (2.5,))
    """
    several = isinstance(sizes, Iterable) and not isinstance(sizes, str)
    return tuple(cast("Iterable[Any]", sizes)) if several else (sizes,)


def letters(n: int) -> list[str]:
    """Bond names: a, b, c, .. (no i, o, z), then a1, b1, ..

    >>> letters(3)
    ['a', 'b', 'c']
    """
    alphabet = "abcdefghjklmnpqrstuvwxy"
    return list(islice((f"{c}{k or ''}" for k in count() for c in alphabet), n))


def sites(rows: Core, cols: Core) -> list[Core]:
    """Modes in pairs (o_k i_k); where one side has run out, a site has one mode."""
    return [rows[k : k + 1] + cols[k : k + 1] for k in range(max(len(rows), len(cols)))]


def size(core: Core) -> int:
    """Product of the sizes."""
    return prod(index.size for index in core)


def network(cores: Sequence[Core], rows: Core, cols: Core) -> Network:
    """A `Network` from any sequence of cores."""
    return Network(tuple(tuple(core) for core in cores), rows, cols)
