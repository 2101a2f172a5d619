"""The stack of a layer gives what the layer gives, trains it, and can be hooked."""

import copy
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch.testing import assert_close

import bondwise as bw
from bondwise.compute.orders import orders
from bondwise.errors import PlanError, ShapeError
from bondwise.layers.linear import TensorLinear
from bondwise.layers.stacked import SparseLinear
from nets import BESIDE, beside_of, layer_of, networks, random_cores, thorough

every_net = pytest.mark.parametrize("net", networks(), ids=str)
MORE = [kind for kind in BESIDE if kind not in ("columns", "entries")]
every_rest = pytest.mark.parametrize("rest", [None, "columns", "entries", *thorough(*MORE)])


draw = partial(torch.randn, dtype=torch.float64)


def make(net, gauge=False, rest=None, bias=True):
    beside = [beside_of(rest, net.shape, count=1)[0]] if rest else []
    bias = draw(net.shape[0]) if bias else None
    return layer_of(TensorLinear, net, random_cores(net), gauge, beside, bias=bias)


@every_net
@pytest.mark.parametrize("gauge", [False, True], ids=["plain", "gauge"])
@every_rest
def test_every_stack_gives_what_the_layer_gives(net, gauge, rest):
    layer = make(net, gauge, rest)
    W = layer.dense()
    for order in [None, *(found.order for found in orders(net, limit=6))]:
        made = layer.as_stack(order)
        for batch in [(), (5,), (2, 3), (0,)]:
            x = draw(*batch, net.shape[1])
            y = made(x)
            assert_close(y, F.linear(x, W, layer.bias))
            assert_close(y, layer(x))


@every_net
@every_rest
def test_gradients_reach_the_layer_and_the_inputs(net, rest):
    layer = make(net, gauge=True, rest=rest)
    x = draw(4, net.shape[1]).requires_grad_()
    towards = draw(4, net.shape[0])
    leaves = [x, *layer.parameters()]
    ours = torch.autograd.grad(layer.as_stack()(x), leaves, towards)
    theirs = torch.autograd.grad(F.linear(x, layer.dense(), layer.bias), leaves, towards)
    assert_close(ours, theirs)


@every_net
def test_each_level_is_its_sparse_weight_and_knows_its_sizes(net):
    layer = make(net, bias=False)
    made = layer.as_stack()
    for level, factor in zip(made, bw.stack(net, layer.cores()), strict=True):
        assert isinstance(level, SparseLinear)
        assert level.weight.is_sparse
        assert (level.out_features, level.in_features) == factor.shape
        assert_close(level.weight.to_dense(), factor.to_dense())
        x = draw(3, level.in_features)
        assert_close(level(x), x @ factor.to_dense().T)


@every_net
def test_hooks_see_the_bonds_by_name(net):
    layer = make(net, rest="columns")
    made = layer.as_stack()
    seen = {}
    for k, level in enumerate(made[1:-1]):
        level.register_forward_hook(lambda module, _, y, k=k: seen.update({k: (module, y)}))
    x = draw(2, 3, net.shape[1])
    made(x)
    expected = x
    for k, factor in enumerate(bw.stack(net, layer.cores())):
        module, y = seen[k]
        expected = expected @ factor.to_dense().T
        if k == len(net.cores) - 1:
            expected = expected + layer.bias
        sizes = [index.size for index in module.level.after]
        assert module.named(y).shape == (2, 3, *sizes)
        assert_close(module.named(y), expected.reshape(2, 3, *sizes))


def test_a_hook_that_changes_a_bond_changes_the_output():
    layer = make(bw.lowrank(6, 5, 3))
    made = layer.as_stack()
    made[0].register_forward_hook(lambda _, __, y: y * torch.tensor([1.0, 0.0, 1.0]))
    x = draw(4, 5)
    A, B = layer.cores()
    assert_close(made(x), x @ B[[0, 2]].T @ A[:, [0, 2]].T + layer.bias)


def test_a_step_on_the_stack_is_one_on_the_layer():
    layer = make(bw.mpo((2, 3), (3, 2), 2), rest="entries")
    made = layer.as_stack()
    assert {id(p) for p in made.parameters()} == {id(p) for p in layer.parameters()}
    x, optimizer = draw(8, 6), torch.optim.SGD(made.parameters(), lr=0.1)
    before = layer(x).detach()
    made(x).square().mean().backward()
    optimizer.step()
    assert not torch.allclose(layer(x), before)
    assert_close(made(x), layer(x))


def test_a_copy_stands_alone_and_moves():
    layer = make(bw.mpo((2, 3), (3, 2), 2), gauge=True, rest="columns")
    made = copy.deepcopy(layer.as_stack()).float()
    assert layer.core_0.dtype == torch.float64
    x = draw(4, 6)
    assert_close(made(x.float()), layer(x).float(), atol=1e-5, rtol=1e-5)
    again = layer.as_stack().float()
    again.load_state_dict(made.state_dict())
    assert torch.equal(again(x.float()), made(x.float()))


def test_it_prints_what_it_is():
    lines = str(make(bw.mpo((2, 3), (4, 5), 6), rest="entries").as_stack((1, 0)))
    assert "(0): Carry(20 -> 40)" in lines
    assert "(1): SparseLinear(core 1, i1 i2 -> i1 a o2, 40 -> 92, 360 entries, 20 carried)" in lines
    assert "(3): AddTerms(26 -> 6, entries)" in lines


def test_several_terms_are_added_at_the_end():
    net = bw.mpo((2, 3), (3, 2), 2)
    beside, dense = zip(
        *(beside_of(kind, net.shape, k) for k, kind in enumerate(BESIDE)), strict=True
    )
    layer = layer_of(TensorLinear, net, random_cores(net), True, beside)
    made, x = layer.as_stack(), draw(5, 6)
    assert_close(made(x), x @ (layer.terms[0].dense() + sum(dense)).T)
    assert {id(p) for p in made.parameters()} == {id(p) for p in layer.parameters()}


def test_an_impossible_order_is_refused():
    with pytest.raises(PlanError, match="each of 0 to 1 once"):
        make(bw.lowrank(6, 4, 2)).as_stack((0, 0))


@every_rest
def test_inputs_of_another_width_are_refused(rest):
    made = make(bw.lowrank(6, 4, 2), rest=rest).as_stack()
    for x, came in ((draw(3, 5), 5), (torch.tensor(1.0), "none")):
        with pytest.raises(ShapeError, match=f"Inputs of width {came} came.*takes 4"):
            made(x)
    for layer in made:
        with pytest.raises(ShapeError, match=f"width 99 came.*takes {layer.in_features}:"):
            layer(draw(3, 99))


def test_outputs_of_another_width_have_no_names():
    made = make(bw.lowrank(6, 4, 2)).as_stack()
    with pytest.raises(ShapeError, match=r"Outputs of width 4 came.*gives 2:"):
        made[0].named(draw(3, 4))
