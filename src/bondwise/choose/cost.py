"""What a way to store a weight costs: numbers, bytes, multiplications and seconds."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from math import ceil, prod

from bondwise.compute.plan import plan
from bondwise.compute.steps import Step
from bondwise.gauge.compact import pivot_bits, stored_numbers
from bondwise.layers.entries import Placed
from bondwise.layers.terms import stored_bits
from bondwise.network.network import Network
from bondwise.topology.lowrank import lowrank

BATCHES = (1, 256)  # tokens at a time: writing a text, and reading one

# Of an AMD EPYC, float32: a matmul of 256 x 576 x 1536, a 4096 x 4096 weight at batch 1, a call of
# F.linear. Choices depend on their ratios alone.
MACS_PER_SECOND, BYTES_PER_SECOND, SECONDS_PER_STEP = 68e9, 55e9, 1.4e-6


@dataclass(frozen=True, slots=True)
class Cost:
    """What one weight takes.

    Attributes:
        numbers: stored numbers; pivots and positions as the numbers whose bits they take.
        bytes: on disk, exactly.
        macs: multiplications for one token.
        seconds: modelled, for a batch of 1 and of 256 tokens.
        resident: bytes in memory.
    """

    numbers: int
    bytes: int
    macs: int
    seconds: tuple[float, float]
    resident: int

    def __add__(self, other: "Cost") -> "Cost":
        return Cost(
            self.numbers + other.numbers,
            self.bytes + other.bytes,
            self.macs + other.macs,
            (self.seconds[0] + other.seconds[0], self.seconds[1] + other.seconds[1]),
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
    return Cost(numbers, size, out * inp, _matmuls([(1, out, inp)], bits), size)


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
    once, many = _matmuls([(1, rank, inp - rank), (1, out, rank)], bits)
    gather = [_read(2 * inp * batch, bits) for batch in BATCHES]
    seconds = (once + gather[0], many + gather[1])
    return Cost(numbers, size, rank * (inp - rank + out), seconds, size + order)


@cache
def network(net: Network, bits: int) -> Cost:
    """Any network, run by its plans; its cores are expanded beside what is stored."""
    numbers, size = stored(stored_numbers(net), pivot_bits(net), bits)
    plans = [plan(net, batch) for batch in BATCHES]
    once, many = (sum(_seconds(s, bits) for s in p.steps) for p in plans)
    cores = ceil(net.parameters * bits / 8)
    return Cost(numbers, size, plans[0].macs, (once, many), size + cores)


@cache
def entries(kind: Placed, bits: int) -> Cost:
    """Entries beside a network: their numbers, and the bits of their positions.

    >>> from bondwise.layers.entries import Columns
    >>> entries(Columns(2, (4, 100)), 32).numbers, entries(Columns(2, (4, 100)), 32).macs
    (10, 8)
    """
    numbers, size = stored(sum(map(prod, kind.shapes)), stored_bits(kind), bits)
    macs, out = kind.macs(1), kind.shape[0]
    return Cost(numbers, size, macs, _matmuls([(1, out, ceil(macs / out))], bits), size)


def slower(
    seconds: Sequence[float], dense_seconds: Sequence[float], network: Network | None
) -> bool:
    """Whether a network takes longer than dense for either batch; two cores may take one more call.

    >>> net = lowrank(4, 6, 2)
    >>> slower((2e-6, 5e-6), (1e-6, 4e-6), net), slower((3e-6, 5e-6), (1e-6, 4e-6), net)
    (False, True)
    """
    more = SECONDS_PER_STEP if network is not None and len(network.cores) == 2 else 0.0
    return any(took > limit + more for took, limit in zip(seconds, dense_seconds, strict=True))


def _matmuls(products: list[tuple[int, int, int]], bits: int) -> tuple[float, float]:
    """Seconds of (blocks, rows, columns) matmuls in a row, for both batches."""
    once, many = (sum(_product(g, batch, m, k, bits) for g, m, k in products) for batch in BATCHES)
    return once, many


def _seconds(step: Step, bits: int) -> float:
    return _product(*step.extents, bits)


def _product(g: int, m: int, n: int, k: int, bits: int) -> float:
    """Seconds of g matmuls (m x k)(k x n): what computing or moving takes, whichever is more."""
    moved = g * (m * k + n * k + m * n)
    return SECONDS_PER_STEP + max(prod((g, m, n, k)) / MACS_PER_SECOND, _read(moved, bits))


def _read(numbers: int, bits: int) -> float:
    return numbers * bits / 8 / BYTES_PER_SECOND
