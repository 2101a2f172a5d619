"""What a way to store a weight costs: numbers, bytes and multiplications."""

from dataclasses import dataclass
from functools import cache
from math import ceil, prod

from bondwise.compute.plan import plan
from bondwise.gauge.compact import pivot_bits, stored_numbers
from bondwise.layers.entries import Placed
from bondwise.layers.terms import stored_bits
from bondwise.network.network import Network
from bondwise.topology.lowrank import lowrank


@dataclass(frozen=True, slots=True)
class Cost:
    """What one weight takes.

    Attributes:
        numbers: stored numbers; pivots and positions as the numbers whose bits they take.
        bytes: on disk, exactly.
        macs: multiplications for one token.
        resident: bytes in memory.
    """

    numbers: int
    bytes: int
    macs: int
    resident: int

    def __add__(self, other: "Cost") -> "Cost":
        return Cost(
            self.numbers + other.numbers,
            self.bytes + other.bytes,
            self.macs + other.macs,
            self.resident + other.resident,
        )


def stored(numbers: int, positions: int, bits: int) -> tuple[int, int]:
    """Numbers and bytes of so many numbers of ``bits`` and so many bits of positions.

    >>> stored(100, 33, bits=16)
    (103, 205)
    """
    return numbers + ceil(positions / bits), ceil((numbers * bits + positions) / 8)


@cache
def dense(out: int, inp: int, bits: int) -> Cost:
    """A dense weight: one matmul.

    >>> dense(4, 6, 32).numbers, dense(4, 6, 32).bytes
    (24, 96)
    """
    numbers, size = stored(out * inp, 0, bits)
    return Cost(numbers, size, out * inp, size)


@cache
def low_rank(out: int, inp: int, rank: int, bits: int) -> Cost:
    """Low rank, stored and run without the gauge: ``r (out + in - r)`` numbers.

    The layer gathers its inputs, adds ``(in - r) r`` products to r of them, and multiplies by its
    ``r x out``.

    >>> low_rank(6, 4, 2, 32).macs, low_rank(6, 4, 2, 32).numbers
    (16, 17)
    """
    net = lowrank(out, inp, rank)
    numbers, size = stored(stored_numbers(net), pivot_bits(net), bits)
    order = 8 * inp  # the gathered positions of the inputs, int64
    return Cost(numbers, size, rank * (inp - rank + out), size + order)


@cache
def network(net: Network, bits: int) -> Cost:
    """Any network, run by its plans; its cores are expanded beside what is stored."""
    numbers, size = stored(stored_numbers(net), pivot_bits(net), bits)
    cores = ceil(net.parameters * bits / 8)
    return Cost(numbers, size, plan(net, 1).macs, size + cores)


@cache
def entries(kind: Placed, bits: int) -> Cost:
    """Entries beside a network: their numbers, and the bits of their positions.

    >>> from bondwise.layers.entries import Columns
    >>> entries(Columns(2, (4, 100)), 32).numbers, entries(Columns(2, (4, 100)), 32).macs
    (10, 8)
    """
    numbers, size = stored(sum(map(prod, kind.shapes)), stored_bits(kind), bits)
    return Cost(numbers, size, kind.macs(1), size)
