"""What is timed: weights, networks and batches."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

import bondwise as bw
from bondwise.network.shapes import balanced

Build = Callable[[int, int], bw.Network]


@dataclass(frozen=True)
class Format:
    """A network for any weight. ``family`` says which peers can hold it, and how."""

    family: str
    build: Build


@dataclass(frozen=True)
class Case:
    """One layer of the grid, and the batches that it is timed at."""

    kind: str
    weight: tuple[int, int]  # out x in
    label: str
    family: str
    network: bw.Network
    batches: tuple[int, ...]


def _low(share: int) -> Build:
    return lambda out, inp: bw.lowrank(out, inp, max(1, min(out, inp) // share))


def _mpo(sites: int, rank: int) -> Build:
    return lambda out, inp: bw.mpo(balanced(out, sites), balanced(inp, sites), rank)


def _blocks(count: int, share: int) -> Build:
    """Blocks along the longer side (of a square weight: its inputs), each of its own low rank."""

    def build(out: int, inp: int) -> bw.Network:
        rank = max(1, min(out, inp) // share)
        if out > inp:
            return bw.btt((out // count, count), (1, inp), rank)
        return bw.btt((out, 1), (count, inp // count), rank)

    return build


def _tucker(out: int, inp: int) -> bw.Network:
    rows, cols = balanced(out, 2), balanced(inp, 2)
    return bw.tucker(rows, cols, tuple(max(1, mode // 2) for mode in (*rows, *cols)))


def _pairs(make: Callable[..., bw.Network], sites: int, rank: int) -> Build:
    return lambda out, inp: make(balanced(out, sites), balanced(inp, sites), rank)


FORMATS: dict[str, Format] = {
    "low rank, 1/8": Format("lowrank", _low(8)),
    "low rank, 1/3": Format("lowrank", _low(3)),
    "MPO, 2 sites, rank 4": Format("mpo", _mpo(2, 4)),
    "MPO, 2 sites, rank 16": Format("mpo", _mpo(2, 16)),
    "MPO, 2 sites, rank 64": Format("mpo", _mpo(2, 64)),
    "MPO, 3 sites, rank 8": Format("mpo", _mpo(3, 8)),
    "MPO, 3 sites, rank 32": Format("mpo", _mpo(3, 32)),
    "MPO, 4 sites, rank 8": Format("mpo", _mpo(4, 8)),
    "block trains, 2 blocks": Format("btt", _blocks(2, 8)),
    "block trains, 4 blocks": Format("btt", _blocks(4, 8)),
    "Tucker, half of every mode": Format("tucker", _tucker),
    "CP, rank 64": Format("cp", _pairs(bw.cp, 2, 64)),
    "ring, 2 sites, rank 4": Format("ring", _pairs(bw.ring, 2, 4)),
    "tree, 4 sites, rank 16": Format("tree", _pairs(bw.tree, 4, 16)),
}
SMALL: dict[str, Format] = {  # of a 64 x 64 weight, where a layer is all overhead
    "low rank, 1/8": Format("lowrank", _low(8)),
    "MPO, 2 sites, rank 8": Format("mpo", _mpo(2, 8)),
    "MPO, 3 sites, rank 8": Format("mpo", _mpo(3, 8)),
    "block trains, 4 blocks": Format("btt", _blocks(4, 16)),
    "Tucker, half of every mode": Format("tucker", _tucker),
    "CP, rank 16": Format("cp", _pairs(bw.cp, 2, 16)),
    "ring, 2 sites, rank 4": Format("ring", _pairs(bw.ring, 2, 4)),
    "tree, 4 sites, rank 4": Format("tree", _pairs(bw.tree, 4, 4)),
}
SOME = (  # on the weights where all formats would take too long
    "low rank, 1/8", "low rank, 1/3", "MPO, 2 sites, rank 4", "MPO, 2 sites, rank 16",
    "MPO, 3 sites, rank 8", "block trains, 4 blocks", "tree, 4 sites, rank 16",
)  # fmt: skip
KINDS = ("forward", "training", "overhead", "memory")  # memory last: it starts the profiler
BATCHES = (1, 16, 64, 256, 1024, 4096)
# (out, in) -> formats, batches of forward, batches of forward and backward
WEIGHTS: dict[tuple[int, int], tuple[Sequence[str], Sequence[int], Sequence[int]]] = {
    (768, 768): (tuple(FORMATS), BATCHES, (16, 256, 2048)),
    (3072, 768): (tuple(FORMATS), BATCHES, (16, 256, 2048)),
    (1024, 1024): (SOME, BATCHES, ()),
    (4096, 4096): (SOME, (1, 16, 256, 1024), ()),
}
OVERHEAD = (64, 64)


def cases(
    weights: Sequence[tuple[int, int]] = tuple(WEIGHTS),
    formats: Sequence[str] = tuple(FORMATS),
    batches: Sequence[int] | None = None,
    kinds: Sequence[str] = KINDS,
) -> Iterator[Case]:
    """The layers of a run; a weight that the grid does not have gets all formats and batches.

    ``batches`` replaces the grid's own.
    """
    for kind in (kind for kind in KINDS if kind in kinds):
        if kind == "overhead":
            for label, chosen in SMALL.items():
                net = chosen.build(*OVERHEAD)
                yield Case(kind, OVERHEAD, label, chosen.family, net, (1,))
            continue
        for out, inp in weights:
            named, forward, training = WEIGHTS.get((out, inp), (tuple(FORMATS), BATCHES, BATCHES))
            own = forward if kind == "forward" else training
            at = tuple(own if batches is None else batches)
            for label in (label for label in formats if own and label in named):
                chosen = FORMATS[label]
                yield Case(kind, (out, inp), label, chosen.family, chosen.build(out, inp), at)


def random_cores(net: bw.Network, dtype: torch.dtype, seed: int = 0) -> list[Tensor]:
    """Cores whose outputs are about as large as their inputs: a tolerance then means the same."""
    draw = torch.Generator().manual_seed(seed)
    cores = [torch.randn(shape, generator=draw) for shape in net.core_shapes]
    size = bw.dense(net, cores).norm() / net.shape[0] ** 0.5
    return [(core / size ** (1 / len(cores))).to(dtype) for core in cores]
