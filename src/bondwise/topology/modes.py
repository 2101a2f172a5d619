"""What the topology functions share: reading modes and ranks, and naming indices."""

from collections.abc import Sequence
from itertools import count, islice
from math import prod

from bondwise.errors import ShapeError
from bondwise.network.network import Core, Index, Network

Sizes = int | Sequence[int]


def modes(sizes: Sizes, name: str) -> Core:
    """Open indices ``name1, name2, ..`` of the given sizes; an int is one mode.

    Raises:
        ShapeError: no modes, or a mode that is not a whole number of at least 1.
    """
    sizes = (sizes,) if isinstance(sizes, int) else tuple(sizes)
    if not sizes or any(isinstance(n, bool) or not isinstance(n, int) or n < 1 for n in sizes):
        raise ShapeError(
            f"Modes {sizes} came for {name}; write whole numbers of at least 1, as in (24, 24)."
        )
    return tuple(Index(f"{name}{k}", n) for k, n in enumerate(sizes, start=1))


def bonds(rank: Sizes, names: Sequence[str]) -> list[Index]:
    """One bond per name: an int is the rank of all of them, a tuple gives one each.

    Raises:
        ShapeError: the tuple has another length, or a rank is not a whole number of at least 1.
    """
    one = not isinstance(rank, Sequence)
    ranks = (rank,) * len(names) if one else tuple(rank)
    if len(ranks) != len(names):
        raise ShapeError(
            f"{len(ranks)} ranks {ranks} came for {len(names)} bonds; "
            "write an int, or one per bond."
        )
    if any(
        isinstance(r, bool) or not isinstance(r, int) or r < 1 for r in (*ranks, rank if one else 1)
    ):
        raise ShapeError(f"Rank {rank} came; a rank is a whole number of at least 1.")
    return [Index(name, r) for name, r in zip(names, ranks, strict=True)]


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
