"""What a tensor network is: cores, bonds and two groups of open indices, as frozen data.

A weight ``W`` (out x in) is a network when its rows and columns are split into modes,
``out = o1*o2*..`` and ``in = i1*i2*..``, and small *cores* that share *bonds* stand for it:

    W[(o1 o2), (i1 i2)] = sum_a  core_0[o1, i1, a] * core_1[a, o2, i2]

No tensors live here. Every topology is a function that returns a `Network`; `parse` reads others.
"""

import re
from collections import Counter
from dataclasses import dataclass, replace
from functools import cached_property
from math import prod
from typing import Any, SupportsIndex

from bondwise.errors import NetworkError, as_whole

_NAME = re.compile(r"[A-Za-z_][A-Za-z_0-9]*")


@dataclass(frozen=True, slots=True, order=True)
class Index:
    """A named axis of a core, and its size.

    Args:
        name: a letter, then letters, digits or underscores.
        size: at least 1.

    >>> Index("a", 4)
    Index(name='a', size=4)

    Raises:
        NetworkError: another name or size.
    """

    name: str
    size: int

    def __post_init__(self) -> None:
        if not _NAME.fullmatch(self.name):
            raise NetworkError(
                f"{self.name!r} is no index name; write a letter, then letters or digits, as in o1."
            )
        size = as_whole(self.size)
        if size is None or size < 1:
            raise NetworkError(
                f"Index {self.name} has size {self.size!r}; a size is a whole number of at least 1."
            )
        object.__setattr__(self, "size", size)  # an int also where numpy's came


Core = tuple[Index, ...]


@dataclass(frozen=True)
class Network:
    """Cores over named indices, and which of those indices are the rows and columns of the weight.

    An index may sit on one core, on two (a bond), on more (CP), or be open on both sides (block
    diagonal). Rows and columns are row-major: the first mode is the slowest.

    Args:
        cores: the indices of each core.
        rows: the open indices that make up the rows of the weight.
        cols: those that make up its columns.

    >>> net = parse("o1 i1 a, a o2 i2 -> (o1 o2) (i1 i2)", o1=8, i1=8, a=16, o2=8, i2=8)
    >>> net.shape, net.parameters, net.bonds
    ((64, 64), 2048, {'a': 16})

    Raises:
        NetworkError: an index has two sizes, stands twice on one core, or is open but on no core.
    """

    cores: tuple[Core, ...]
    rows: tuple[Index, ...]
    cols: tuple[Index, ...]

    def __post_init__(self) -> None:
        if not self.cores:
            raise NetworkError(
                "A network came without cores; it needs at least one, as in 'o i -> (o) (i)'."
            )
        _one_size_each([*(index for core in self.cores for index in core), *self.rows, *self.cols])
        groups = {f"core {k}": core for k, core in enumerate(self.cores)} | {
            "rows": self.rows,
            "columns": self.cols,
        }
        for place, group in groups.items():
            for name, count in Counter(index.name for index in group).items():
                if count > 1:
                    raise NetworkError(
                        f"Index {name} stands {count} times in {place}; it may stand there once."
                    )
        on_cores = {index for core in self.cores for index in core}
        for index in (*self.rows, *self.cols):
            if index not in on_cores:
                raise NetworkError(f"Open index {index.name} sits on no core; write it on one.")

    @property
    def shape(self) -> tuple[int, int]:
        """(out, in) of the weight."""
        return prod(index.size for index in self.rows), prod(index.size for index in self.cols)

    @property
    def core_shapes(self) -> tuple[tuple[int, ...], ...]:
        """Sizes of each core, axes in the order of its indices."""
        return tuple(tuple(index.size for index in core) for core in self.cores)

    @property
    def parameters(self) -> int:
        """Numbers in all cores, before the gauge gives any back."""
        return sum(prod(shape) for shape in self.core_shapes)

    @cached_property
    def sizes(self) -> dict[str, int]:
        """Size of every index, by name, in order of first use."""
        return {index.name: index.size for core in self.cores for index in core}

    @cached_property
    def open(self) -> frozenset[str]:
        """Names of the open indices (rows and columns)."""
        return frozenset(index.name for index in (*self.rows, *self.cols))

    @cached_property
    def bonds(self) -> dict[str, int]:
        """Summed indices and their sizes (the ranks), in order of first use."""
        return {name: size for name, size in self.sizes.items() if name not in self.open}

    @cached_property
    def places(self) -> dict[str, tuple[int, ...]]:
        """Positions of the cores on which each index sits."""
        return {
            name: tuple(
                k for k, core in enumerate(self.cores) if any(index.name == name for index in core)
            )
            for name in self.sizes
        }

    @property
    def names(self) -> tuple[tuple[str, ...], ...]:
        """Index names of each core."""
        return tuple(tuple(index.name for index in core) for core in self.cores)

    def resize(self, **sizes: SupportsIndex) -> "Network":
        """The same network with other sizes for the named indices."""
        unknown = sorted(set(sizes) - set(self.sizes))
        if unknown:
            raise NetworkError(
                f"Index {unknown[0]} is not in '{self}'; its indices are {', '.join(self.sizes)}."
            )

        def again(indices: Core) -> Core:
            return tuple(replace(i, size=_size(sizes.get(i.name, i.size))) for i in indices)

        return Network(
            tuple(again(core) for core in self.cores), again(self.rows), again(self.cols)
        )

    def __str__(self) -> str:
        """The network as `parse` reads it (sizes apart)."""
        cores = ", ".join(" ".join(names) for names in self.names)
        rows, cols = (" ".join(index.name for index in side) for side in (self.rows, self.cols))
        return f"{cores} -> ({rows}) ({cols})"

    def __repr__(self) -> str:
        sizes = ", ".join(f"{name}={size}" for name, size in self.sizes.items())
        return f"parse({str(self)!r}, {sizes})"


def parse(text: str, **sizes: SupportsIndex) -> Network:
    """Read a network from its einsum: cores, comma apart, ``->``, rows and columns in brackets.

    The counts of row and column modes may differ, an index may sit on more than two cores, or be
    open on both sides (then the weight is block diagonal in it).

    Args:
        text: such as ``o a, a i -> (o) (i)``.
        sizes: of every index, by name.

    >>> parse("o r, r i -> (o) (i)", o=6, r=2, i=4).shape
    (6, 4)
    >>> parse("b o i -> (b o) (b i)", b=3, o=2, i=5).shape   # three blocks on the diagonal
    (6, 15)
    >>> str(parse("o1 r, i1 r, i2 r -> (o1) (i1 i2)", o1=8, i1=4, i2=4, r=3))
    'o1 r, i1 r, i2 r -> (o1) (i1 i2)'

    Raises:
        NetworkError: the text cannot be read, a size is missing, or a size has no index.
    """
    match = re.fullmatch(r"\s*([^()>]*?)\s*->\s*\(([^()]*)\)\s*\(([^()]*)\)\s*", text)
    if match is None:
        raise NetworkError(
            f"{text!r} is no network; write cores -> (rows) (columns), as in 'o a, a i -> (o) (i)'."
        )
    cores = [part.split() for part in match[1].split(",")]
    if not all(cores):
        raise NetworkError(
            f"{text!r} has an empty core; write at least one index between two commas."
        )
    rows, cols = match[2].split(), match[3].split()
    used = {name for group in (*cores, rows, cols) for name in group}
    for name in sorted(name for name in used if not name.isidentifier()):
        raise NetworkError(f"{name!r} in {text!r} is no index; write a name such as o1.")
    for name in sorted(used - set(sizes)):
        raise NetworkError(f"Index {name} of {text!r} has no size; add {name}=.. to the call.")
    for name in sorted(set(sizes) - used):
        raise NetworkError(
            f"Size {name}={sizes[name]} has no index in {text!r}; "
            f"drop it or write {name} on a core."
        )

    def read(names: list[str]) -> Core:
        return tuple(Index(name, _size(sizes[name])) for name in names)

    return Network(tuple(read(core) for core in cores), read(rows), read(cols))


def _size(given: Any) -> int:
    """A whole number of any library as int; what else came as it is, for `Index` to refuse."""
    size = as_whole(given)
    return given if size is None else size


def _one_size_each(indices: list[Index]) -> None:
    sizes: dict[str, int] = {}
    for index in indices:
        if sizes.setdefault(index.name, index.size) != index.size:
            raise NetworkError(
                f"Index {index.name} has sizes {sizes[index.name]} and {index.size}; give it one."
            )
