"""Weights made whole in parts: their gradients, what is kept for them, autocast."""

import pytest
import torch
from torch.testing import assert_close

import bondwise as bw
from bondwise.compute import whole
from bondwise.compute.machine import Rates
from bondwise.compute.plan import timed
from bondwise.compute.run import apply, dense

SMALL = bw.mpo((4, 3), (3, 4), 3)


def whole_plan(net):
    made = timed(net, 4096, Rates(), 4, ready=False, training=True)
    assert made.whole
    return made


def test_a_mode_of_one_is_not_what_is_parted():
    assert len(whole.parts(whole_plan(bw.mpo((1, 16, 16), (1, 16, 16), 9)))) > 1


def test_parts_are_the_rows_of_the_weight(net, make_cores):
    made = timed(net, 4096, Rates(), 4, ready=False, training=True)
    if not made.whole:
        pytest.skip("nothing is made whole")
    cores, W = make_cores(net), dense(net, make_cores(net))
    at = 0
    for part in whole.parts(made):
        assert part.rows.start == at
        (own,) = whole.prepare(part.plan, part.of(cores))
        assert_close(own, W[part.rows])
        at = part.rows.stop
    assert at == net.shape[0]


@pytest.mark.parametrize("batch", [0, 1, 5])
@pytest.mark.parametrize("which", range(4))
def test_gradients_are_those_through_the_dense_weight(batch, which, make_cores):
    made, cores = whole_plan(SMALL), make_cores(SMALL)
    x = torch.randn(batch, 12, dtype=torch.float64)
    leaves = [x, *cores] if which == 3 else [[x, *cores][which]]
    for leaf in leaves:
        leaf.requires_grad_()
    towards = torch.randn(batch, 12, dtype=torch.float64)
    ours = torch.autograd.grad(apply(made, cores, x), leaves, towards)
    wanted = torch.autograd.grad(x @ dense(SMALL, cores).T, leaves, towards)
    for one, two in zip(ours, wanted, strict=True):
        assert_close(one, two)


def test_second_order(make_cores):
    made, cores = whole_plan(SMALL), [core.requires_grad_() for core in make_cores(SMALL)]
    x = torch.randn(5, 12, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x, *c: apply(made, c, x), (x, *cores))
    assert torch.autograd.gradgradcheck(lambda x, *c: apply(made, c, x), (x, *cores))


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated")  # inside torch.func.jvp
def test_under_torch_func(make_cores):
    made, cores = whole_plan(SMALL), make_cores(SMALL)
    x, dx = torch.randn(2, 5, 12, dtype=torch.float64)
    _, along = torch.func.jvp(lambda x: apply(made, cores, x), (x,), (dx,))
    assert_close(along, dx @ dense(SMALL, cores).T)
    each = torch.func.vmap(lambda row: apply(made, cores, row))(x)
    assert_close(each, x @ dense(SMALL, cores).T)


def test_a_second_backward_through_the_same_graph(make_cores):
    cores = [core.requires_grad_() for core in make_cores(SMALL)]
    y = apply(whole_plan(SMALL), cores, torch.randn(5, 12, dtype=torch.float64))
    once = torch.autograd.grad(y.square().sum(), cores, retain_graph=True)
    assert_close(once, torch.autograd.grad(y.square().sum(), cores))


def test_only_the_input_and_the_cores_are_kept(make_cores):
    made, kept = whole_plan(SMALL), []
    cores = [core.requires_grad_() for core in make_cores(SMALL)]
    x = torch.randn(7, 12, dtype=torch.float64)
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        apply(made, cores, x)
    assert sum(t.numel() for t in kept) == x.numel() + SMALL.parameters


def test_autocast_gives_its_dtype_and_gradients_theirs():
    layer = bw.TensorLinear(SMALL)
    x = torch.randn(5, 12, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        y = apply(whole_plan(SMALL), layer.cores(), x)
    assert y.dtype == torch.bfloat16
    y.float().sum().backward()
    assert x.grad is not None
    assert x.grad.dtype == torch.float32
    assert_close(x.grad, layer.dense().sum(0).expand(5, 12), atol=0.1, rtol=0.1)


def test_a_wrong_width_names_both_numbers(make_cores):
    cores = [core.requires_grad_() for core in make_cores(SMALL)]
    with pytest.raises(ValueError, match=r"width 11; the weight has 12 columns"):
        apply(whole_plan(SMALL), cores, torch.randn(5, 11, dtype=torch.float64))


def test_an_index_open_on_both_sides_is_not_cut(make_cores):
    net = bw.parse("b o i -> (b o) (b i)", b=3, o=4, i=4)
    made, cores = whole_plan(SMALL), make_cores(net)
    made = timed(net, 4096, Rates(), 4, ready=False, training=True)
    x = torch.randn(5, 12, dtype=torch.float64)
    leaves = [core.requires_grad_() for core in cores]
    ours = torch.autograd.grad(apply(made, leaves, x).square().sum(), leaves)
    wanted = torch.autograd.grad((x @ dense(net, leaves).T).square().sum(), leaves)
    assert_close(ours, wanted)
