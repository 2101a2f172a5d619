"""Layers whose features are known, and every kind of network."""

import pytest
import scipy.stats
import torch

import bondwise as bw

NETS = [
    bw.lowrank(6, 8, 4),
    bw.mpo((2, 3, 2), (2, 2, 5), 4),
    bw.ring((2, 3, 2), (2, 2, 5), 3),
    bw.cp((4, 2), (3, 2), 5),
    bw.tucker((4, 2), (3, 2), 2),
    bw.btt((2, 2), (3, 3), 2),
    bw.tree((2, 2, 2, 2), (2, 2, 2, 2), 3),
    bw.kron((2, 2), (3, 3), 2),
    bw.parse("b o a, a b i -> (b o) (b i)", b=3, o=2, i=2, a=2),
    bw.parse("o1 a, a b i1, b o2 -> (o1 o2) (i1)", o1=3, a=2, b=3, i1=5, o2=2),
]
EVERY = [(net, name) for net in NETS for name in net.bonds]


def layer(net, seed=0, dtype=torch.float64, bias=True):
    torch.manual_seed(seed)
    return bw.TensorLinear(net, dtype=dtype, bias=bias)


def refused(kind, said, call, *given, **options):
    with pytest.raises(kind, match=said):
        call(*given, **options)


def sparse(count, rank):
    """Independent sources, most of the time zero."""
    torch.manual_seed(0)
    there = torch.rand(count, rank, dtype=torch.float64) < 0.1
    return torch.randn(count, rank, dtype=torch.float64) * there


def scrambled(sources, out=20, inp=30):
    """A low-rank layer whose bond carries the sources, in a random gauge; and its inputs."""
    rank = sources.shape[1]
    torch.manual_seed(0)
    B = torch.randn(rank, inp, dtype=torch.float64)
    x = sources @ torch.linalg.pinv(B).T
    A = torch.randn(out, rank, dtype=torch.float64)
    X = torch.randn(rank, rank, dtype=torch.float64)
    cores = [A @ X, torch.linalg.inv(X) @ B]
    return bw.TensorLinear(bw.lowrank(out, inp, rank), cores, dtype=torch.float64), x


def match(found, true):
    """The mean over the true features of the largest correlation with a found one."""
    both = torch.corrcoef(torch.cat([found, true], 1).T)
    return float(both[: found.shape[1], found.shape[1] :].abs().max(0).values.mean())


LEVEL = 0.05
REPEATS = pytest.mark.parametrize(
    "repeats", [200, pytest.param(400, marks=pytest.mark.thorough)], ids=str
)


def at_its_level(wrong, repeats):
    """Whether so many rejections of a true null are between the 0.5 % and 99.5 % quantiles."""
    low, high = scipy.stats.binom.ppf([0.005, 0.995], repeats, LEVEL)
    return low <= wrong <= high
