"""The ways to store a convolution: dense, low rank both of its sides or of one, at many ranks."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from math import ceil, prod
from typing import Any

import torch
from torch import Tensor

from bondwise.choose import cost
from bondwise.choose.cost import Cost
from bondwise.compute.kernels.convolve import convolution_macs
from bondwise.compute.kernels.geometry import Geometry, Sizes
from bondwise.compute.kernels.stacks import conv_plan
from bondwise.fit.kernels.groups import each_group
from bondwise.fit.kernels.parallel import between, cp_errors
from bondwise.fit.kernels.tucker2 import Basis, tucker2_cut, tucker2_errors
from bondwise.gauge.compact import pivot_bits, stored_numbers
from bondwise.network.groups import grouped_network
from bondwise.network.network import Network
from bondwise.network.ranks import capped
from bondwise.topology.cp import cp
from bondwise.topology.lowrank import lowrank
from bondwise.topology.tucker2 import tucker2

LONG = 16  # taps from which on a kernel's own modes are worth cutting
TRIED = (0.03, 0.15)  # of the dense numbers, at which CP is fitted
STEPS_OF_CP = 20  # ranks of CP that are looked at
EVERY = 2**18  # numbers of a weight up to which every rank is looked at, to meet a budget
LEAST = 8  # channels of a group on both sides from which on a cut may pay
STEPS = 12  # ranks of the inputs that are looked at


@dataclass(frozen=True)
class Moves:
    """How a convolution moves over its input.

    Attributes:
        geometry: stride, padding and the like.
        size: of the input that calibration showed, one for each axis.
    """

    geometry: Geometry
    size: Sizes

    @property
    def taps(self) -> int:
        """Numbers of a kernel between two channels."""
        return self.geometry.taps


def dense_cost(out: int, inp: int, moves: Moves, bits: int) -> Cost:
    """A dense convolution; multiplications are those of one sample.

    Args:
        out: channels that leave, of all groups.
        inp: channels that enter a group.
        moves: its geometry and input size.
        bits: of a stored number.
    """
    numbers, size = cost.stored(out * inp * moves.taps, 0, bits)
    whole = inp * moves.geometry.groups
    macs = convolution_macs(moves.geometry, out, whole, moves.size)
    return Cost(numbers, size, macs, size)


def kernel_cost(net: Network, moves: Moves, bits: int) -> Cost:
    """A network of a convolution; multiplications are those of one sample."""
    numbers, size = cost.stored(stored_numbers(net), pivot_bits(net), bits)
    plan = conv_plan(net, moves.geometry, moves.size)
    return Cost(numbers, size, plan.macs, size + ceil(net.parameters * bits / 8))


def options(
    weight: Tensor, moves: Moves, metric: Any, held_out: Any, bits: int
) -> Iterator[tuple[str, Network, Cost, float]]:
    """Formats, networks, costs and relative squared errors of a convolution, beside dense.

    Args:
        weight: (groups * out, in * kernel).
        moves: its geometry and input size.
        metric: of its patches, one for each group where there are several; None for none.
        held_out: the same, of other inputs.
        bits: of a stored number.
    """
    groups, blocks = moves.geometry.groups, _blocks(weight, moves)
    out, inp = blocks.shape[1:3]
    if groups > 1 and min(out, inp) < LEAST:
        return  # depthwise and the like: rank 1 already
    inner = _spread(ranks(inp)) if moves.taps > 1 and out > 1 else [inp]
    bases = _bases(blocks, metric)
    table = _errors(bases, held_out, inner)
    outer = [r for r in (range(1, out) if weight.numel() <= EVERY else ranks(out)) if r < out]
    for form, net, error in _pairs(table, inner, outer, moves):
        price = kernel_cost(net, moves, bits)
        if price.numbers < weight.numel():
            yield form, net, price, error
    if groups == 1 and moves.taps >= LONG and min(out, inp) >= LEAST:
        yield from _parallel(bases[0], moves, bits)


def _parallel(basis: Basis, moves: Moves, bits: int) -> Iterator[tuple[str, Network, Cost, float]]:
    """CP, which cuts a long kernel's own modes too."""
    out, inp, taps = basis.weight.shape
    each, numbers = out + inp + taps, basis.weight.numel()
    known = sorted({max(1, int(part * numbers / each)) for part in TRIED})
    errors = cp_errors(basis, known)
    least, most = known[0] / 4, numbers / each / 2
    ratio = (most / least) ** (1 / STEPS_OF_CP)
    for rank in dict.fromkeys(_even(least * ratio**k) for k in range(STEPS_OF_CP + 1)):
        net = cp((out,), (inp, taps), rank)
        yield "cp", net, kernel_cost(net, moves, bits), between(known, errors, rank)


def _even(rank: float) -> int:
    """A multiple of 16, which runs at full speed; 8 and less as they are."""
    return max(1, round(rank)) if rank < 16 else 16 * round(rank / 16)


def cuts(
    weight: Tensor, networks: Iterable[Network], moves: Moves, metric: Any
) -> Iterator[Tensor]:
    """A weight of the ranks of some networks of `options`, as quickly as can be had."""
    bases = _bases(_blocks(weight, moves), metric)
    for bonds in (net.bonds for net in networks):
        outer, inner = bonds.get("p", bonds.get("a", 0)), bonds.get("q", bases[0].weight.shape[1])
        yield torch.cat([tucker2_cut(basis, (outer, inner)) for basis in bases])


def _blocks(weight: Tensor, moves: Moves) -> Tensor:
    """The weights of the groups, (groups, out, in, taps)."""
    groups = moves.geometry.groups
    return weight.reshape(groups, len(weight) // groups, -1, moves.taps)


def _bases(blocks: Tensor, metric: Any) -> list[Basis]:
    metrics = each_group(metric, len(blocks))
    return [Basis.of(block, own) for block, own in zip(blocks, metrics, strict=True)]


def _spread(found: Sequence[int]) -> list[int]:
    """At most so many of some ranks, evenly spread, with the last."""
    step = ceil(len(found) / STEPS)
    return [*found[(len(found) - 1) % step :: step]]


@cache
def ranks(channels: int) -> list[int]:
    """Ranks worth a look, up to all channels: multiples of 8, from 64 on of 16, from 256 of 32."""
    found = [r for r in (1, 2, 4) if r < channels]
    rank = 8
    while rank < channels:
        found.append(rank)
        rank += 8 if rank < 64 else 16 if rank < 256 else 32
    return [*found, channels]


def _pairs(
    table: Tensor, inner: Sequence[int], outer: Sequence[int], moves: Moves
) -> Iterator[tuple[str, Network, float]]:
    """Networks of pairs of ranks that no other pair beats in numbers or multiplications."""
    groups, kernel = moves.geometry.groups, moves.geometry.kernel
    out = table.shape[1] - 1
    inp = inner[-1]
    points = [
        (_rough(out, inp, p, q, moves), float(row[p]), p, q)
        for q, row in zip(inner, table, strict=True)
        for p in ([*outer, out] if q < inp else outer)
    ]
    even = [point for point in points if point[2] in ranks(out)]
    kept = {pair for which in range(2) for some in (points, even) for pair in _front(some, which)}
    for _, error, p, q in points:
        if (p, q) in kept:
            form = "lowrank" if q == inp else "tucker2"
            net = (
                lowrank((out,), (inp, *kernel), p)
                if form == "lowrank"
                else tucker2(out, inp, kernel, (p, q))
            )
            yield form, grouped_network(capped(net), groups), error


def _front(
    points: Sequence[tuple[tuple[int, int], float, int, int]], which: int
) -> Iterator[tuple[int, int]]:
    """Pairs that no other beats in error and in numbers, or in multiplications."""
    least = float("inf")
    for _, error, p, q in sorted(points, key=lambda point: (point[0][which], point[1])):
        if error < least:
            least = error
            yield p, q


def _rough(out: int, inp: int, p: int, q: int, moves: Moves) -> tuple[int, int]:
    """Numbers and multiplications of a pair of ranks, near enough to compare them."""
    geometry = moves.geometry
    before, after = prod(moves.size), prod(geometry.extents(moves.size))
    middle = before if geometry.transposed else after
    first = 0 if q == inp else inp * q
    numbers = first + p * q * moves.taps + out * p - p * p - (q * q if first else 0)
    return numbers, first * before + p * q * moves.taps * middle + out * p * after


def _errors(bases: Sequence[Basis], held_out: Any, inner: Sequence[int]) -> Tensor:
    """The mean over groups, each weighed by its own norm."""
    others = each_group(held_out, len(bases))
    tables = [
        tucker2_errors(basis, inner, other) for basis, other in zip(bases, others, strict=True)
    ]
    weights = torch.stack([basis.weight.double().square().sum() for basis in bases])
    share = weights / weights.sum().clamp(min=torch.finfo(weights.dtype).tiny)
    return (torch.stack(tables).double() * share[:, None, None]).sum(0)
