"""A network pulled apart vertically: one level for each core, and what the data carries between."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

from bondwise.network.network import Core, Index, Network

State = tuple[Index, ...]
"""What the data carries at some height: indices, row-major, the first the slowest."""


@dataclass(frozen=True)
class Level:
    """One core as a sparse linear layer: what the data carries before it, and after it.

    The layer is the core, as a matrix, beside identities. ``cols`` and ``rows`` say which matrix:
    a core's index that is in both is a block index, one that is in neither is summed in the core.

    >>> from bondwise import mpo
    >>> first = levels(mpo((2, 3), (4, 5), 6), (1, 0))[0]
    >>> first.core, first.shape, first.nnz
    (1, (72, 20), 360)
    >>> [index.name for index in first.cols], [index.name for index in first.rows]
    (['i2'], ['a', 'o2'])
    """

    core: int
    indices: Core
    before: State
    after: State

    @property
    def rows(self) -> Core:
        """The core's indices that the data carries after it."""
        return tuple(index for index in self.indices if index in self.after)

    @property
    def cols(self) -> Core:
        """The core's indices that the data carries before it."""
        return tuple(index for index in self.indices if index in self.before)

    @property
    def shape(self) -> tuple[int, int]:
        """(out, in): the sizes of the two states."""
        return prod(i.size for i in self.after), prod(i.size for i in self.before)

    @property
    def nnz(self) -> int:
        """Entries of the layer: one for each value of all that the data carries before or after."""
        return prod(index.size for index in {*self.before, *self.after})


def levels(net: Network, order: Sequence[int]) -> tuple[Level, ...]:
    """The levels of an order, which names every core once; the first meets the input.

    Between two levels the data carries the column modes that a later core still has, the bonds that
    have been met and are not yet summed, and the row modes that have been met.
    """
    states = [state(net, frozenset(order[:k])) for k in range(len(order))]
    states.append(net.rows)
    return tuple(
        Level(core, net.cores[core], before, after)
        for core, before, after in zip(order, states, states[1:], strict=False)
    )


def state(net: Network, met: frozenset[int]) -> State:
    """What the data carries when a set of cores has been met; their order does not matter to it."""
    needed = {index for k, core in enumerate(net.cores) if k not in met for index in core}
    needed.update(net.rows)
    known = (*net.cols, *(index for k in sorted(met) for index in net.cores[k]))
    return tuple(dict.fromkeys(index for index in known if index in needed))
