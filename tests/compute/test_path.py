"""The path of the input, and weights made whole: gradients, memory, chunks, autocast."""

from dataclasses import replace
from itertools import product

import pytest
import torch
from torch.testing import assert_close

import bondwise as bw
from bondwise.compute import path, whole
from bondwise.compute.fast.ways import as_plan, programs
from bondwise.compute.plan import plan
from bondwise.compute.run import apply, dense
from bondwise.layers import gathered
from nets import in_training, kept_bytes, random_cores

SMALL = bw.mpo((4, 3), (3, 4), 3)
WHOLE = in_training(SMALL)
both_plans = pytest.mark.parametrize("made", [plan(SMALL), WHOLE], ids=["in turn", "whole"])


@pytest.fixture(params=["kept", "made again"])
def remade(request, monkeypatch):
    """What lies between the products is kept for the gradient, or never."""
    monkeypatch.setattr(path, "fits", lambda *_: request.param == "kept")


@pytest.mark.parametrize("rows", [4, 1000])
def test_gradients_in_chunks_are_those_through_dense(net, rows, remade, monkeypatch):
    monkeypatch.setattr(path, "BACKWARD_ROWS", rows)
    x = torch.randn(10, net.shape[1], dtype=torch.float64)
    towards = torch.randn(10, net.shape[0], dtype=torch.float64)
    leaves = [leaf.requires_grad_() for leaf in (x, *random_cores(net))]
    wanted = torch.autograd.grad(x @ dense(net, leaves[1:]).T, leaves, towards)
    plans = [plan(net), plan(net, 4096), in_training(net)]
    for made, chunk in product(programs(net)[:6], (None, 1, 4)):
        plans.append(as_plan(net, made, 10, chunk))
    for made in plans:
        assert_close(torch.autograd.grad(apply(made, leaves[1:], x), leaves, towards), wanted)


def test_a_mode_of_one_is_not_what_is_parted():
    made = in_training(bw.mpo((1, 16, 16), (1, 16, 16), 9))
    assert made.whole
    assert len(whole.parts(made)) > 1


def test_parts_are_the_rows_of_the_weight(net):
    made, cores = in_training(net), random_cores(net)
    if not made.whole:
        pytest.skip("nothing is made whole")
    W, at = dense(net, cores), 0
    for part in whole.parts(made):
        assert part.rows.start == at
        (own,) = whole.prepare(part.plan, part.of(cores))
        assert_close(own, W[part.rows])
        at = part.rows.stop
    assert at == net.shape[0]


@pytest.mark.parametrize("batch", [0, 1, 5])
@pytest.mark.parametrize("which", range(4))
@both_plans
def test_only_what_is_asked_for_gets_a_gradient(made, batch, which, remade):
    assert WHOLE.whole
    cores, x = random_cores(SMALL), torch.randn(batch, 12, dtype=torch.float64)
    leaves = [x, *cores] if which == 3 else [[x, *cores][which]]
    for leaf in leaves:
        leaf.requires_grad_()
    towards = torch.randn(batch, 12, dtype=torch.float64)
    y = apply(made, cores, x)
    ours = torch.autograd.grad(y, leaves, towards, retain_graph=True)
    wanted = torch.autograd.grad(x @ dense(SMALL, cores).T, leaves, towards)
    assert_close(ours, wanted)
    assert_close(torch.autograd.grad(y, leaves, towards), wanted)  # through the same graph again


@pytest.mark.parametrize(
    "made",
    [
        plan(bw.btt((2, 3), (3, 2), 2)),
        plan(bw.cp((2, 3), (3, 2), 2)),
        plan(bw.ring((2, 3), (3, 2), 2)),
        replace(plan(bw.mpo((2, 3), (3, 2), 2)), chunk=2),
        WHOLE,
    ],
    ids=["btt", "cp", "ring", "chunks", "whole"],
)
def test_first_and_second_order(made, remade, monkeypatch):
    monkeypatch.setattr(path, "BACKWARD_ROWS", 2)
    cores = [core.requires_grad_() for core in random_cores(made.network)]
    x = torch.randn(5, made.network.shape[1], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x, *c: apply(made, c, x), (x, *cores))
    assert torch.autograd.gradgradcheck(lambda x, *c: apply(made, c, x), (x, *cores))


@pytest.mark.parametrize(
    "small", [bw.mpo((8, 8), (8, 8), 16), bw.lowrank(64, 64, 32), bw.btt((8, 8), (8, 8), 8)]
)
def test_nothing_between_the_products_is_kept_for_the_gradient(small):
    cores = [core.float().requires_grad_() for core in random_cores(small)]
    x = torch.randn(500, 64, requires_grad=True)
    made = as_plan(small, programs(small)[0], 500)
    kept = kept_bytes(lambda: apply(made, cores, x), x, *cores)
    # what the matmuls take: the cores in another order, or the weight
    assert kept <= 4 * max(sum(core.numel() for core in cores), 64 * 64)


def test_of_a_weight_made_whole_nothing_is_kept():
    cores = [core.requires_grad_() for core in random_cores(SMALL)]
    x = torch.randn(7, 12, dtype=torch.float64)
    assert kept_bytes(lambda: apply(WHOLE, cores, x), x, *cores) == 0


@pytest.mark.parametrize("planned", [plan, in_training])
def test_autocast_casts_once_and_gives_its_dtype(planned):
    net = bw.mpo((8, 8), (8, 8), 4)
    cores = [core.float().requires_grad_() for core in random_cores(net)]
    x = torch.randn(6, 64, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        y = apply(planned(net), cores, x)
    assert y.dtype == torch.bfloat16
    got = torch.autograd.grad(y.float().square().sum(), [x, *cores])
    exact = torch.autograd.grad((x @ dense(net, cores).T).square().sum(), [x, *cores])
    for one, two in zip(got, exact, strict=True):
        assert one.dtype == torch.float32
        assert (one - two).norm() < 0.05 * two.norm()  # bfloat16 has 8 bits, and there are 3 sums


@pytest.mark.parametrize("rest", [0, 4])
def test_gathered_low_rank_and_its_gradients(rest, monkeypatch):
    monkeypatch.setattr(gathered, "BACKWARD_ROWS", 2)
    order = torch.randperm(3 + rest)
    make = lambda *shape: torch.randn(*shape, dtype=torch.float64, requires_grad=True)  # noqa: E731
    x, free, outer, bias = make(2, 3, 3 + rest), make(3, rest), make(5, 3), make(5)
    W = torch.zeros(3, 3 + rest, dtype=torch.float64).index_copy(
        1, order, torch.cat([torch.eye(3, dtype=torch.float64), free], 1)
    )
    y = gathered.linear(x, order, free, outer, bias)
    assert_close(y, x @ (outer @ W).T + bias)
    with torch.no_grad():
        assert_close(gathered.linear(x, order, free, outer, bias), y)
    work = lambda *args: gathered.linear(args[0], order, *args[1:])  # noqa: E731
    assert torch.autograd.gradcheck(work, (x, free, outer, bias))
    assert torch.autograd.gradgradcheck(work, (x, free, outer, bias))


def test_gathered_low_rank_keeps_x_alone_for_the_gradient():
    x, order = torch.randn(300, 64, requires_grad=True), torch.randperm(64)
    free, outer = (torch.randn(*s, requires_grad=True) for s in ((40, 24), (64, 40)))
    assert kept_bytes(lambda: gathered.linear(x, order, free, outer), x, free, outer) == 0
