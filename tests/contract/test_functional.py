"""Layers as functions of their parameters: torch.func, vmap, Jacobians, forward-mode gradients."""

import copy

import pytest
import torch
from torch.autograd import forward_ad
from torch.func import functional_call, grad, jacfwd, jacrev, jvp, stack_module_state, vjp, vmap
from torch.testing import assert_close

from contract.subjects import Cell, check, every_cell, wanted, weight

# what forward-mode gradients import
pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")


def parameters(model):
    return {name: p.detach() for name, p in model.named_parameters()}


def by_the_weight(model, x):
    """The outputs as a function of the parameters, through the weight alone."""

    class Wanted(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.model = model

        def forward(self, x):
            return wanted(self.model[0], x)

    own = Wanted()
    return lambda given: functional_call(own, {f"model.{k}": v for k, v in given.items()}, (x,))


def by_the_layer(model, x):
    return lambda given: functional_call(model, given, (x,))


def changed(model):
    torch.manual_seed(1)
    return {name: p + 0.1 * torch.randn_like(p) for name, p in parameters(model).items()}


@every_cell
def test_called_with_other_parameters(cell: Cell):
    model, x = cell.model(), cell.inputs(5)
    y, new = check(model, x), changed(model)
    found = by_the_layer(model, x)(new)
    assert not torch.allclose(found, y)
    check(model, x, y)
    with torch.no_grad():
        for name, p in model.named_parameters():
            p.copy_(new[name])
    check(model, x, found)


@every_cell
def test_grad_with_respect_to_parameters(cell: Cell):
    model, x = cell.model(), cell.inputs(5)
    check(model, x)
    ours = grad(lambda given: by_the_layer(model, x)(given).square().sum())(parameters(model))
    theirs = torch.autograd.grad(wanted(model[0], x).square().sum(), [*model.parameters()])
    assert_close([*ours.values()], [*theirs])


@every_cell
def test_vmap_over_a_batch(cell: Cell):
    model, x = cell.model(), cell.inputs(4, 3)
    for _ in range(2):
        assert_close(vmap(model)(x), wanted(model[0], x))
        assert_close(vmap(vmap(model))(x), wanted(model[0], x))
        check(model, x[0])


@every_cell
def test_a_gradient_for_each_sample(cell: Cell):
    model, x = cell.model(), cell.inputs(4)

    def loss(given, row):
        return functional_call(model, given, (row,)).square().sum()

    ours = vmap(grad(loss), in_dims=(None, 0))(parameters(model), x)
    for k, row in enumerate(x):
        theirs = torch.autograd.grad(wanted(model[0], row).square().sum(), [*model.parameters()])
        assert_close([g[k] for g in ours.values()], [*theirs])


@every_cell
def test_vmap_over_stacked_parameters(cell: Cell):
    model, x = cell.model(), cell.inputs(5)
    models = [model, copy.deepcopy(model)]
    with torch.no_grad():
        for p in models[1].parameters():
            p.mul_(1.5)
    stacked, buffers = stack_module_state(models)
    base = copy.deepcopy(model)
    run = vmap(lambda p, b: functional_call(base, (p, b), (x,)))
    assert_close(run(stacked, buffers), torch.stack([wanted(own[0], x) for own in models]))
    own = torch.stack([x, x.flip(0)])
    each = vmap(lambda p, b, x: functional_call(base, (p, b), (x,)))
    found = each(stacked, buffers, own)
    assert_close(found[1], wanted(models[1][0], x.flip(0)))


@every_cell
def test_jacobians(cell: Cell):
    model, x = cell.model(), cell.inputs(2)
    ours = jacrev(by_the_layer(model, x))(parameters(model))
    assert_close(ours, jacrev(by_the_weight(model, x))(parameters(model)))
    assert_close(jacfwd(by_the_layer(model, x))(parameters(model)), ours)
    if cell.convolved:
        right = jacrev(lambda x: wanted(model[0], x))(x[0])
        assert_close((jacrev(model)(x[0]), jacfwd(model)(x[0])), (right, right))
    elif cell.takes_vectors:
        assert_close(jacrev(model)(x[0]), weight(model[0]))
        assert_close(jacfwd(model)(x[0]), weight(model[0]))
        _, back = vjp(model, x[0])
        assert_close(back(model(x[0]))[0], model(x[0]) @ weight(model[0]))


@every_cell
def test_forward_mode(cell: Cell):
    model, x = cell.model(), cell.inputs(5)
    start, along = parameters(model), changed(model)
    ours = jvp(by_the_layer(model, x), (start,), (along,))
    assert_close(ours, jvp(by_the_weight(model, x), (start,), (along,)))
    with forward_ad.dual_level():
        duals = {k: forward_ad.make_dual(start[k], along[k]) for k in start}
        assert_close(forward_ad.unpack_dual(by_the_layer(model, x)(duals)).tangent, ours[1])
        if cell.takes_vectors:
            dual = forward_ad.make_dual(x, x.flip(0))
            tangent = forward_ad.unpack_dual(model(dual)).tangent
            assert_close(tangent, wanted(model[0], x.flip(0)) - wanted(model[0], 0 * x))
