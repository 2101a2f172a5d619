"""The path of the input: chunks, gradients that are computed again, memory, autocast."""

from dataclasses import replace
from itertools import product

import pytest
import torch
from torch.testing import assert_close

import bondwise as bw
from bondwise.compute import path
from bondwise.compute.machine import Rates
from bondwise.compute.plan import plan, timed
from bondwise.compute.run import apply, dense
from bondwise.layers import gathered
from nets import kept_bytes


def gradients(made, cores, x, towards):
    cores = [core.detach().requires_grad_() for core in cores]
    x = x.detach().requires_grad_()
    return torch.autograd.grad(apply(made, cores, x), [x, *cores], towards)


def test_gradients_in_chunks_are_those_through_dense(net, make_cores, monkeypatch):
    monkeypatch.setattr(path, "BACKWARD_ROWS", 4)
    cores = make_cores(net)
    x = torch.randn(10, net.shape[1], dtype=torch.float64)
    towards = torch.randn(10, net.shape[0], dtype=torch.float64)
    held = [core.detach().requires_grad_() for core in cores]
    leaf = x.clone().requires_grad_()
    wanted = torch.autograd.grad(leaf @ dense(net, held).T, [leaf, *held], towards)
    for batch, chunk in product((1, 3000), (None, 1, 4)):
        made = replace(timed(net, batch, Rates(), 4, ready=False), chunk=chunk)
        assert_close(gradients(made, cores, x, towards), wanted)


@pytest.mark.parametrize("which", range(3))
def test_only_what_is_asked_for_gets_a_gradient(which, make_cores):
    net = bw.mpo((4, 3), (3, 4), 3)
    cores, x = make_cores(net), torch.randn(5, 12, dtype=torch.float64)
    leaves = [x, *cores]
    leaves[which].requires_grad_()
    y = apply(plan(net), cores, x)
    (one,) = torch.autograd.grad(y.sum(), [leaves[which]])
    (two,) = torch.autograd.grad((x @ dense(net, cores).T).sum(), [leaves[which]])
    assert_close(one, two)


def test_second_order_through_chunks(make_cores, monkeypatch):
    monkeypatch.setattr(path, "BACKWARD_ROWS", 2)
    net = bw.mpo((2, 3), (3, 2), 2)
    cores = [core.requires_grad_() for core in make_cores(net)]
    x = torch.randn(5, 6, dtype=torch.float64, requires_grad=True)
    made = replace(plan(net), chunk=2)
    assert torch.autograd.gradcheck(lambda x, *c: apply(made, c, x), (x, *cores))
    assert torch.autograd.gradgradcheck(lambda x, *c: apply(made, c, x), (x, *cores))


@pytest.mark.parametrize(
    "small", [bw.mpo((8, 8), (8, 8), 16), bw.lowrank(64, 64, 32), bw.btt((8, 8), (8, 8), 8)]
)
def test_nothing_between_the_products_is_kept_for_the_gradient(small, make_cores):
    cores = [core.float().requires_grad_() for core in make_cores(small)]
    x = torch.randn(500, 64, requires_grad=True)
    made = timed(small, 500, Rates(), 4, ready=False)
    kept = kept_bytes(lambda: apply(made, cores, x), x, *cores)
    # what the matmuls take: the cores in another order, or the weight
    assert kept <= 4 * max(sum(core.numel() for core in cores), 64 * 64)


def test_autocast_casts_once_and_gives_its_dtype(make_cores):
    net = bw.mpo((8, 8), (8, 8), 4)
    cores = [core.float().requires_grad_() for core in make_cores(net)]
    x = torch.randn(6, 64, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        y = apply(plan(net), cores, x)
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
