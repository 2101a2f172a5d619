"""Layers follow their parameters, whoever writes them and however; copies are whole and apart."""

import copy
import io
import pickle

import pytest
import torch
from safetensors.torch import load, save
from torch import nn
from torch.testing import assert_close

from contract.subjects import (
    Cell,
    check,
    check_gradients,
    every_cell,
    largest,
    wanted,
    weight,
)
from nets import thorough


def data_copied(model):
    for p in model.parameters():
        p.data.copy_(0.5 * p.detach())


def data_assigned(model):
    for p in model.parameters():
        p.data = p.data * 0.5


def data_in_place(model):
    for p in model.parameters():
        p.data.mul_(0.5)


def detached_in_place(model):
    for p in model.parameters():
        p.detach().mul_(0.5)


def in_place(model):
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(0.5)


def in_inference_mode(model):
    with torch.inference_mode():
        for p in model.parameters():
            p.mul_(0.5)


def by_numpy(model):
    for p in model.parameters():
        p.detach().numpy()[...] *= 0.5


def set_anew(model):
    for name, p in list(model[0].named_parameters()):
        setattr(model[0], name, nn.Parameter(p.detach() * 0.5))


def from_a_vector(model):
    vector = nn.utils.parameters_to_vector(model.parameters()).detach()
    nn.utils.vector_to_parameters(vector * 0.5, model.parameters())


def by_an_optimizer(model):
    for p in model.parameters():
        p.grad = p.detach().clone()
    torch.optim.SGD(model.parameters(), lr=0.5).step()


def swapped(model):
    for p in model.parameters():
        torch.utils.swap_tensors(p, nn.Parameter(p.detach() * 0.5))


WRITES = (
    data_copied, data_assigned, in_place, in_inference_mode, set_anew, by_an_optimizer,
    from_a_vector, *thorough(data_in_place, detached_in_place, by_numpy, swapped),
)  # fmt: skip


@every_cell
@pytest.mark.parametrize("write", WRITES, ids=lambda write: write.__name__)
def test_what_is_written_between_two_looks_is_seen(cell: Cell, write):
    model, x = cell.model(), cell.inputs(70)
    y = check(model, x)
    for _ in range(2):
        write(model)
        found = check(model, x)
        assert not torch.allclose(found, y)
        y = found
    check_gradients(model, x)


@every_cell
def test_steps_without_gradients(cell: Cell):
    """MeZO (Malladi et al. 2023): the same noise up, down twice, and back, by assigning data."""
    model, x = cell.model(), cell.inputs(5)
    start, size = [p.detach().clone() for p in model.parameters()], 1e-2

    def moved(seed, by):
        torch.manual_seed(seed)
        for p in model.parameters():
            p.data = p.data + by * torch.randn_like(p)
        return check(model, x).square().mean()

    for seed in range(3):
        up, down = moved(seed, size), moved(seed, -2 * size)
        moved(seed, size)
        assert_close([p.detach() for p in model.parameters()], start)
        noise = draws(model, seed)
        right = sum((g * z).sum() for g, z in zip(loss_gradients(model, x), noise, strict=True))
        # a central difference: what is left is of third order in the size
        assert_close((up - down) / (2 * size), right, rtol=0.2, atol=0.05)
        moved(seed, -1e-3 * float((up - down) / (2 * size)))
        start = [p.detach().clone() for p in model.parameters()]


def draws(model, seed):
    torch.manual_seed(seed)
    return [torch.randn_like(p) for p in model.parameters()]


def loss_gradients(model, x):
    return torch.autograd.grad(wanted(model[0], x).square().mean(), [*model.parameters()])


def by_torch(state):
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def by_safetensors(state):
    return load(save({name: value.contiguous() for name, value in state.items()}))


WAYS = (copy.deepcopy, by_torch, by_safetensors)


@every_cell
@pytest.mark.parametrize("assign", [False, True], ids=["copied", "assigned"])
def test_a_state_dict_of_another_instance(cell: Cell, assign):
    one, two, x = cell.model(0), cell.model(1), cell.inputs(5)
    start, state, before, y = one.state_dict(), two.state_dict(), check(one, x), check(two, x)
    start = copy.deepcopy(start)
    assert not torch.allclose(before, y)
    for way in WAYS:
        done = one.load_state_dict(way(state), assign=assign)
        assert not done.missing_keys
        assert not done.unexpected_keys
        assert torch.equal(check(one, x), y)
        again = one.state_dict()
        assert list(again) == list(state)
        assert all(torch.equal(again[name], value) for name, value in state.items())
        one.load_state_dict(way(start), assign=assign)
        assert torch.equal(check(one, x), before)
    check_gradients(one, x)
    check(two, x, y)


@every_cell
@pytest.mark.parametrize("dtype", [torch.bfloat16, *thorough(torch.float16, torch.float32)])
def test_a_state_dict_that_was_cast_whole(cell: Cell, dtype):
    one, two, x = cell.model(0), cell.model(1), cell.inputs(5)
    state = {name: value.to(dtype) for name, value in two.state_dict().items()}
    one.load_state_dict(state)
    with torch.no_grad():
        for p in two.parameters():
            p.copy_(p.to(dtype))
    assert torch.equal(check(one, x), check(two, x))


@every_cell
def test_a_soup_of_models_of_one_start(cell: Cell):
    """Averages of the whole state dict (Wortsman et al. 2022)."""
    models, x = [cell.model() for _ in range(3)], cell.inputs(5)
    for k, own in enumerate(models):
        with torch.no_grad():
            for p in own.parameters():
                p.mul_(1 + k)
    states = [own.state_dict() for own in models]
    mean = {name: sum(state[name] / 4 for state in (*states, states[1])) for name in states[0]}
    soup = cell.model(1)
    soup.load_state_dict(mean)
    assert_close(check(soup, x), check(models[1], x))


@every_cell
def test_parameters_that_torch_swaps(cell: Cell):
    model, other, x = cell.model(0), cell.model(1), cell.inputs(5)
    y = check(other, x)
    torch.__future__.set_swap_module_params_on_conversion(True)
    try:
        model.float().double().load_state_dict(other.state_dict())
        check(model, x, y)
    finally:
        torch.__future__.set_swap_module_params_on_conversion(False)


@every_cell
def test_a_state_dict_that_lacks_or_has_more_is_refused(cell: Cell):
    model = cell.model()
    state = model.state_dict()
    with pytest.raises(RuntimeError, match="other"):
        model.load_state_dict(state | {"0.other": torch.zeros(1)})
    name = largest(model[0])
    del state[f"0.{name}"]
    with pytest.raises(RuntimeError, match=name):
        model.load_state_dict(state)


@every_cell
@pytest.mark.parametrize("assign", [False, True], ids=["copied", "assigned"])
def test_emptied_on_meta_and_loaded(cell: Cell, assign):
    model, other, x = cell.model(0), cell.model(1), cell.inputs(5)
    y = check(other, x)
    check(model, x)
    model.to("meta")
    assert {p.device.type for p in model.parameters()} == {"meta"}
    if not assign:
        model.to_empty(device="cpu")
    model.load_state_dict(other.state_dict(), assign=assign)
    assert torch.equal(check(model, x), y)
    check_gradients(model, x)


def by_deepcopy(model):
    return copy.deepcopy(model)


def by_pickle(model):
    return pickle.loads(pickle.dumps(model))


def by_file(model):
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


@every_cell
@pytest.mark.parametrize("made", [by_deepcopy, by_pickle, by_file], ids=lambda f: f.__name__)
def test_copies_are_whole_and_apart(cell: Cell, made):
    model, x = cell.model(), cell.inputs(5)
    for _ in range(2):  # never looked at, then looked at
        again, y = made(model), wanted(model[0], x).detach()
        assert torch.equal(check(again, x), check(model, x, y))
        in_place(again)
        check(model, x, y)
        assert not torch.allclose(check(again, x), y)
        check_gradients(again, x)


@every_cell
def test_a_shallow_copy_has_the_same_parameters(cell: Cell):
    model, x = cell.model(), cell.inputs(5)
    y = check(model, x)
    again = nn.Sequential(copy.copy(model[0]))
    check(again, x, y)
    for write in (in_place, data_copied):
        write(model)
        assert_close(weight(again[0]), weight(model[0]))
        assert torch.equal(check(again, x), check(model, x))
    check_gradients(again, x)


@every_cell
def test_in_shared_memory(cell: Cell):
    model, x = cell.model(), cell.inputs(5)
    y = check(model, x)
    check(model.share_memory(), x, y)
    in_place(model)
    assert not torch.allclose(check(model, x), y)
