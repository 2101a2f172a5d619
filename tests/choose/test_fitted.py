import pytest
import torch

from bondwise.choose.budget import allocate
from bondwise.choose.candidates import Group, candidates
from bondwise.choose.fitted import fitted, shapes
from bondwise.fit.metric import Metric


def site():
    torch.manual_seed(0)
    x, y = torch.randn(2, 300, 32) @ torch.randn(32, 32)
    weight = torch.kron(torch.randn(4, 8), torch.randn(8, 4)) + 0.05 * torch.randn(32, 32)
    return Group({"w": weight}, Metric(x.T @ x, 300, 0.1), Metric(y.T @ y, 300, 0.0))


@pytest.mark.parametrize("form", ["mpo", "btt", "tree", "tucker"])
def test_every_shape_is_one_of_the_weight(form):
    for out, inp in ((32, 48), (30, 7), (13, 13)):
        for build in shapes(form, out, inp, heads=out // 2 if out % 2 == 0 else None):
            assert build(out, inp, (), 2).shape == (out, inp)


def test_a_kronecker_weight_is_won_by_an_mpo():
    here = site()
    exact = candidates(here)
    others = list(fitted(here, (0.3,), prefer="size", formats=["mpo"]))
    best = min(others, key=lambda c: c.error)
    chosen = allocate([[*exact, *others]], 0.3)["w"]
    assert chosen.format == "mpo"
    assert best.numbers <= 0.3 * 1024
    rival = min(c.error for c in exact if c.numbers <= best.numbers)
    assert best.error < 0.5 * rival


def test_speed_leaves_out_what_needs_as_many_multiplications_as_dense():
    here = site()
    quick = list(fitted(here, prefer="speed"))
    every = list(fitted(here, prefer="size"))
    assert len(quick) < len(every)
    assert all(c.macs < 32 * 32 for c in quick)


def test_outputs_folded_in_pairs_keep_a_bond_as_wide_as_the_pairs():
    folded = [build(32, 48, (), 12) for build in shapes("mpo", 32, 48)]
    pairs = next(net for net in folded if [i.size for i in net.rows] == [16, 2])
    assert tuple(pairs.bonds.values()) == (12,)
    assert pairs.core_shapes[0][0] == 16


@pytest.mark.parametrize(
    ("out", "inp", "grids"),
    [
        (24, 12, {(2, 1), (3, 1), (4, 1), (6, 1)}),
        (10, 30, {(1, 2), (1, 3), (1, 6)}),
        (12, 12, {(1, 2), (2, 1), (2, 2)}),
        (7, 7, set()),
    ],
)
def test_blocks_split_the_longer_side_where_it_can_be(out, inp, grids):
    nets = [build(out, inp, (), 1) for build in shapes("btt", out, inp)]
    assert {(net.rows[1].size, net.cols[0].size) for net in nets} == grids
