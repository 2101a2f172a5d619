"""Layers in every mode that they are called in: batches, dtypes, autocast, inference, devices."""

import copy
from functools import partial

import pytest
import torch
from torch.testing import assert_close
from torch.utils.checkpoint import checkpoint

import bondwise as bw
from contract.subjects import (
    IN,
    OUT,
    Cell,
    check,
    check_gradients,
    every_cell,
    wanted,
    weight,
)
from nets import thorough

BATCHES = [(), (0,), (1,), (5,), (2, 3), (2, 0, 3), (70,)]


@every_cell
def test_the_weight_is_what_numpy_says_and_what_merge_gives(cell: Cell):
    model, W, x = cell.model(), cell.reference(), cell.inputs(5)
    assert_close(weight(model[0]).detach(), W)
    twin = model if cell.topology == "dense" else bw.merge(model)
    assert type(twin[0]) is type(Cell("dense", cell.host).layer())
    assert_close(weight(twin[0]).detach(), W)
    assert_close(check(twin, x), check(model, x))


@every_cell
def test_any_batch(cell: Cell):
    model = cell.model()
    for batch in BATCHES[:4] if cell.convolved else BATCHES:
        x = cell.inputs(*batch)
        like = (*batch, OUT if cell.takes_vectors else IN)
        assert check(model, x).shape[: len(like)] == like
        check_gradients(model, x)


@every_cell
def test_views_that_are_not_contiguous(cell: Cell):
    if str(cell) == "control-conv1d":
        pytest.skip("transformers' own takes no such views")
    model, x = cell.model(), cell.inputs(4) if cell.convolved else cell.inputs(4, 6)
    turned, part = x.transpose(0, 1), x[:, 1:3]
    if cell.convolved:
        turned, part = x.transpose(1, -1).contiguous().transpose(1, -1), x[..., 1:3]
    for view in (turned, x[::2], part, x[:1].expand(5, *x.shape[1:]), x.flip(0)):
        check(model, view)
        check_gradients(model, view)


@every_cell
def test_the_input_is_left_as_it_was(cell: Cell):
    model, x = cell.model(), cell.inputs(5)
    before = x.clone()
    check(model, x)
    check_gradients(model, x)
    assert torch.equal(x, before)


@every_cell
@pytest.mark.parametrize("rows", [4, 70])
def test_a_look_in_inference_mode_then_gradients(cell: Cell, rows):
    model, x = cell.model(), cell.inputs(rows)
    for trains in (True, False):
        model.requires_grad_(trains)
        with torch.inference_mode():
            y = model(x)
        assert_close(y, wanted(model[0], x).detach())
        if trains or cell.takes_vectors:
            check_gradients(model, x)
        for module in model.modules():
            module.training = not module.training  # as Lightning does it


@every_cell
def test_a_look_at_inputs_of_inference_mode(cell: Cell):
    model = cell.model().requires_grad_(False)
    with torch.inference_mode():
        x = cell.inputs(5)
        y = model(x)
    assert_close(model(x.clone()), y)


# each product on the way rounds, and so does each factor of it
def bound(cell, dtype):
    return (cell.cores + 3 + bool(cell.beside)) * torch.finfo(dtype).eps


def close(y, exact, limit):
    assert (y.double() - exact).norm() <= limit * exact.norm()


@every_cell
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, *thorough(torch.float16)])
def test_to_another_dtype_and_back(cell: Cell, dtype):
    model, x = cell.model(), cell.inputs(5)
    before = check(model, x)
    model.to(dtype)
    assert {p.dtype for p in model.parameters()} == {dtype}
    with torch.no_grad():
        rounded = copy.deepcopy(model).double()
        given = x.to(dtype) if cell.takes_vectors else x
        exact = wanted(rounded[0], given.double() if cell.takes_vectors else x)
        y = model(given)
    assert y.dtype == dtype
    close(y, exact, bound(cell, dtype))
    close(exact, before, 10 * bound(cell, dtype))
    y = model(given)
    y.float().square().mean().backward()
    assert all(p.grad.dtype == dtype and p.grad.isfinite().all() for p in model.parameters())
    check(model.double(), given.double() if cell.takes_vectors else x, exact)


@every_cell
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_autocast_gives_what_dense_gives(cell: Cell, dtype):
    model = cell.model().float()
    x = cell.inputs(5, dtype=dtype)
    exact = wanted(copy.deepcopy(model).double()[0], x.double() if cell.takes_vectors else x)
    twin = Cell("dense", cell.host).model().float()
    for graded in (True, False):
        with torch.set_grad_enabled(graded), torch.autocast("cpu", torch.bfloat16):
            y, like = model(x), twin(x)
        assert y.dtype == like.dtype
        close(y, exact.detach(), bound(cell, torch.bfloat16))
    with torch.no_grad():
        plain = model(x.float() if cell.takes_vectors else x)  # nothing rounded is left behind
    assert plain.dtype == torch.float32
    close(plain, exact, bound(cell, torch.float32) * 4)
    with torch.autocast("cpu", torch.bfloat16):
        y = model(x)
    leaves = [*model.parameters()]
    ours = torch.autograd.grad(y.float().square().mean(), leaves)
    theirs = torch.autograd.grad(wanted(model[0], x.float() if cell.takes_vectors else x)
                                 .square().mean(), leaves)  # fmt: skip
    for one, two in zip(ours, theirs, strict=True):
        assert one.dtype == torch.float32
        close(one, two.double(), 4 * bound(cell, torch.bfloat16))


@every_cell
def test_shapes_on_meta(cell: Cell):
    model, x = cell.model(), cell.inputs(5)
    check(model, x)
    abroad = copy.deepcopy(model).to("meta")
    y = abroad(x.to("meta"))
    assert (y.device.type, y.shape, y.dtype) == ("meta", model(x).shape, torch.float64)
    assert weight(model[0]).device.type == "cpu"


@every_cell
def test_frozen_in_part(cell: Cell):
    model, x = cell.model(), cell.inputs(5)
    check(model, x)
    for p in list(model.parameters())[1:]:
        p.requires_grad_(False)
    check_gradients(model, x)
    first, *others = model.parameters()
    first.requires_grad_(False)
    if others:
        others[-1].requires_grad_()
        check_gradients(model, x)


@every_cell
def test_gradients_of_gradients(cell: Cell):
    model, x = cell.model(), cell.inputs(3)
    leaves = [*model.parameters(), *([x.requires_grad_()] if cell.takes_vectors else [])]

    def twice(y):
        first = torch.autograd.grad(y.square().sum(), leaves, create_graph=True)
        return torch.autograd.grad(sum(g.square().sum() for g in first), leaves)

    assert_close(twice(model(x)), twice(wanted(model[0], x)))


@every_cell
def test_checkpointed_activations(cell: Cell):
    model = cell.model()
    check_gradients(model, cell.inputs(5), partial(checkpoint, model, use_reentrant=False))


@every_cell
def test_what_surrounds_it_does_not_matter(cell: Cell):
    """Defaults for new tensors are of the caller, who makes some on meta, say."""
    model, x = cell.model(), cell.inputs(5)
    y = check(model, x)
    with torch.device("meta"), torch.no_grad():
        found = model(x)
    assert_close(found, y)
    torch.set_default_dtype(torch.bfloat16)
    try:
        check(model, x, y)
        check_gradients(model, x)
    finally:
        torch.set_default_dtype(torch.float32)


@every_cell
def test_deterministic_algorithms(cell: Cell):
    model, x = cell.model().train(), cell.inputs(70)
    torch.use_deterministic_algorithms(True)
    try:
        check_gradients(model, x)
        assert torch.equal(model(x), model(x))
    finally:
        torch.use_deterministic_algorithms(False)
