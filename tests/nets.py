"""Networks of every kind, and the weights that they stand for by numpy alone."""

import subprocess
import sys
from collections.abc import Iterable
from functools import cache, reduce
from math import prod
from typing import Any

import numpy as np
import pytest
import torch
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from bondwise import btt, cp, kron, lowrank, mpo, parse, ring, tree, tucker
from bondwise.compute.plan import Plan
from bondwise.compute.whole import made_whole
from bondwise.gauge.compact import compact
from bondwise.layers import entries
from bondwise.layers.networks import compacted, network
from bondwise.network.network import Network
from bondwise.topology import registry

# global optimum, or exact recovery of exact networks, to rounding
TREES = [
    lowrank(12, 18, 4),
    lowrank((3, 4), (6, 3), 4),
    mpo((6, 4), (4, 6), 5),
    mpo((3, 4, 2), (2, 3, 3), (5, 4)),
    mpo((2, 3, 2), (5,), 2),
    ring((4, 3), (3, 4), (2, 3)),
    tucker((4, 6), (5, 4), (3, 2, 3, 2)),
    btt((6, 4), (3, 8), 3),
    btt(5, 7, 2),
    tree((3, 2, 3, 2), (2, 3, 2, 3), 3),
    kron((4, 6), (3, 5), 3),
    kron((4, 3, 2), (3, 5, 2), 1),
    cp((4, 6), (5, 4), 1),
    parse("o a b, b a i -> (o) (i)", o=6, i=7, a=2, b=2),
    parse("o1 i1, o2 i2 -> (o1 o2) (i1 i2)", o1=3, i1=4, o2=2, i2=5),
    parse("o1 o2 i1 -> (o1 o2) (i1)", o1=2, o2=3, i1=4),
    parse("o a, i -> (o) (i)", o=3, a=2, i=4),
    parse("b o i -> (b o) (i b)", b=3, o=2, i=4),
    parse("b o a, a i b -> (b o) (i b)", b=3, o=4, a=2, i=5),
    parse("c b o a, a i b c -> (b o) (i b c)", b=2, c=3, o=5, a=2, i=4),
    parse("o1 a, i1 b, a b c, c i2 d, d o2 -> (o1 o2) (i1 i2)",
          o1=4, i1=3, i2=5, o2=3, a=2, b=2, c=3, d=2),
]  # fmt: skip

# alternating least squares
LOOPS = [
    ring((4, 3, 4), (3, 4, 3), 3),
    ring((4, 3, 4, 2), (3, 4, 3, 3), (2, 3, 2, 3)),
    cp((4, 6), (5, 4), 4),
    kron((4, 3, 2), (3, 5, 2), 2),
    parse("o1 a b, a c i1, b c o2 i2 -> (o1 o2) (i1 i2)", o1=6, i1=5, o2=4, i2=3, a=3, b=3, c=2),
    parse("o1 i1 a h, a o2 i2 h c, h o3 c -> (o1 o2 o3) (i1 i2)",
          o1=4, o2=4, o3=4, i1=4, i2=4, a=2, h=2, c=2),
    parse("o1 b a, b a i1 c, c i2 o2 -> (o1 o2) (b i1 i2)", o1=4, b=3, a=2, i1=4, c=3, i2=2, o2=5),
    parse("g x a b, g b y c, g c z a -> (x y g) (z g)", g=2, x=5, y=5, z=6, a=2, b=2, c=2),
]  # fmt: skip


# one of each kind: two cores, a chain, a star, blocks, a tree, Kronecker, parallel bonds, one core,
# open on both sides; a ring, CP, block indices with loops
CANON = [*(TREES[k] for k in (0, 3, 6, 7, 9, 10, 13, 15, 18)), *(LOOPS[k] for k in (0, 2, 7))]


def thorough(*values: object) -> list[Any]:
    """Parameters of a test that count where all is run."""
    return [pytest.param(value, marks=pytest.mark.thorough) for value in values]


def canon_first(nets: Iterable[Network]) -> list[Any]:
    """Networks as parameters of a test: those of `CANON` always, the others where all is run."""
    return [net if net in CANON else thorough(net)[0] for net in nets]


SIZES = [(12, 18, 3), (24, 16, 2), (7, 5, 3), (1, 6, 2)]

ODD = [
    parse("i2 o2 i1 o1 -> (o1 o2) (i1 i2)", o1=2, o2=3, i1=4, i2=5),
    parse("b o i -> (b o) (b i)", b=3, o=2, i=4),
    parse("b o a, b a i -> (b o) (b i)", b=3, o=2, a=2, i=4),
    parse("o a b, c a i -> (o c b) (b i c)", b=3, o=2, a=2, i=4, c=2),
    parse("o i z -> (o) (i)", o=2, i=3, z=4),
    parse("o i z, q, b b2 -> (o b) (i b2)", o=2, i=3, z=4, q=5, b=2, b2=3),
    parse("o, i -> (o) (i)", o=4, i=3),
    parse("i -> () (i)", i=3),
    parse("o -> (o) ()", o=3),
    parse("z -> () ()", z=3),
    parse("o r, i r, r -> (o) (i)", o=4, i=3, r=5),
    parse("o i, o, i, i -> (o) (i)", o=4, i=3),
    parse("b i, o b, b -> (o b) (i b)", o=4, i=3, b=2),
    parse("o1 a, a b i1, b i2 o2 -> (o2 o1) (i2 i1)", o1=2, a=3, b=2, i1=3, i2=2, o2=3),
    parse("z a o, a b i, b z -> (o) (i)", z=2, a=3, b=2, o=4, i=3),
    parse("o a, a i -> (o) (i)", o=1, a=1, i=1),
    parse("o1 o2 a, i2 a i1 -> (o1 o2) (i1 i2)", o1=1, o2=6, a=5, i1=1, i2=4),
]


@cache
def networks() -> list[Any]:
    """All kinds; without a mark every topology once, and one of each odd kind."""
    sized = [registry.find(name).sized(*size) for name in registry.names() for size in SIZES]
    loop = ring((2, 3), (3, 2), (2, 3))
    every = [*sized, loop, mpo((2, 1, 3), (3, 2), 2), kron((2, 3), (4, 5), 1), *ODD]
    quick = [*sized[:: len(SIZES)], loop, *(ODD[k] for k in (2, 3, 5, 7, 9, 10))]
    return [net if net in quick else thorough(net)[0] for net in every]


def random_cores(net: Network, seed: int = 0) -> list[torch.Tensor]:
    """Cores of normal numbers in float64."""
    random = torch.Generator().manual_seed(seed)
    return [torch.randn(s, generator=random, dtype=torch.float64) for s in net.core_shapes]


def numpy_dense(net: Network, cores) -> np.ndarray:
    """The weight by numpy in float64, an index open on both sides written on the diagonal.

    This is what all rooms compare with; it shares nothing with the code of bondwise.
    """
    ids = {name: k for k, name in enumerate(net.sizes)}
    operands = []
    for core, names in zip(cores, net.names, strict=True):
        operands += [np.asarray(core.detach().double()), [ids[name] for name in names]]
    rows = [index.name for index in net.rows]
    cols = [index.name for index in net.cols]
    out = rows + [name for name in cols if name not in rows]
    inner = np.einsum(*operands, [ids[name] for name in out], optimize=True)
    values = np.indices(inner.shape)
    axis = dict(zip(out, values, strict=True))
    weight = np.zeros(net.shape)

    def flat(names: list[str]) -> np.ndarray | int:
        if not names:
            return 0
        sizes = tuple(net.sizes[name] for name in names)
        return np.ravel_multi_index(tuple(axis[name] for name in names), sizes)

    weight[flat(rows), flat(cols)] = inner
    assert prod(net.shape) == weight.size
    return weight


def reference(net: Network, cores) -> torch.Tensor:
    """`numpy_dense` as a tensor."""
    return torch.from_numpy(numpy_dense(net, cores))


def assert_same(net: Network, one, two, tol: float = 1e-10) -> None:
    """The cores stand for the same weight."""
    expected = numpy_dense(net, one)
    assert np.abs(numpy_dense(net, two) - expected).max() <= tol * np.abs(expected).max()


def weight_of(net: Network, seed: int = 0) -> torch.Tensor:
    return reference(net, random_cores(net, seed))


def noise(shape: tuple[int, int], seed: int = 0) -> torch.Tensor:
    random = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=random, dtype=torch.float64)


class Storages(TorchDispatchMode):
    """Every storage that an operation has written its result to."""

    def __init__(self):
        super().__init__()
        self.made = {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, torch.Tensor):
                storage = tensor.untyped_storage()
                self.made[storage._cdata] = (StorageWeakRef(storage), storage.nbytes())
        return out


def kept_bytes(work, *given) -> int:
    """Bytes that are kept for the gradient of a work, beside what it is given and its result."""
    with Storages() as seen:
        y = work()
    apart = {tensor.untyped_storage()._cdata for tensor in (*given, y)}
    return sum(
        size for at, (ref, size) in seen.made.items() if at not in apart and not ref.expired()
    )


def in_training(net: Network) -> Plan:
    """A plan that makes the weight first, as those of large batches do."""
    return made_whole(net, 4096)


def layer_of(kind, net: Network, cores, gauge: bool, beside=(), **options):
    """A layer that holds cores, as they are or without their gauge."""
    own = compacted(compact(net, cores)) if gauge else network(net, cores)
    return kind.of([own, *beside], **options)


BESIDE = ("columns", "rows", "entries", "dense", "network")


def beside_of(kind: str, shape: tuple[int, int], seed: int = 0, count: int = 4):
    """A term of each kind at random places, and the matrix of it by numpy."""
    rng, dense = np.random.default_rng(seed), np.zeros(shape)
    if kind == "dense":
        dense = rng.standard_normal(shape)
        return entries.dense(torch.from_numpy(dense)), torch.from_numpy(dense)
    if kind == "network":
        net = lowrank(*shape, 2)
        cores = random_cores(net, seed + 7)
        return compacted(compact(net, cores)), reference(net, cores)
    total = {"columns": shape[1], "rows": shape[0], "entries": prod(shape)}[kind]
    at = np.sort(rng.choice(total, count, replace=False))
    sizes = {"columns": (shape[0], count), "rows": (count, shape[1]), "entries": (count,)}
    where = {"columns": (slice(None), at), "rows": at, "entries": np.unravel_index(at, shape)}
    values = rng.standard_normal(sizes[kind])
    dense[where[kind]] = values
    make = getattr(entries, kind)
    return make(torch.from_numpy(at), torch.from_numpy(values), shape), torch.from_numpy(dense)


def multiplied(factors) -> torch.Tensor:
    """What the factors of a stack multiply to, by torch alone."""
    first, *others = factors
    return reduce(lambda below, factor: torch.sparse.mm(factor, below), others, first.to_dense())


def passes_alone(program: str, **values: object) -> None:
    """Runs it in a process of its own: the import hook that checks shapes cannot be traced."""
    given = "".join(f"{name} = {value!r}\n" for name, value in values.items())
    done = subprocess.run(
        [sys.executable, "-c", given + program], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
