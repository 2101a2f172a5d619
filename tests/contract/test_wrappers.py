"""Layers in what is put around modules: replicas, averages, pruning, parametrizations, hooks."""

import copy
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import nn
from torch.nn.parallel import replicate
from torch.nn.utils import parametrizations, parametrize, prune
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.testing import assert_close

from contract.subjects import Cell, check, check_gradients, every_cell, largest, wanted


class Copies(torch.autograd.Function):
    """What a broadcast to several cards gives, on the processor."""

    @staticmethod
    def forward(ctx, count, *tensors):
        ctx.count = count
        return tuple(t.clone() for _ in range(count) for t in tensors)

    @staticmethod
    def backward(ctx, *grads):
        each = len(grads) // ctx.count
        return (None, *(sum(grads[k::each]) for k in range(each)))


def broadcast(tensors, devices, detach=False):
    if not len(tensors) or detach:
        return [[t.detach().clone() for t in tensors] for _ in devices] if len(tensors) else []
    made, each = Copies.apply(len(devices), *tensors), len(tensors)
    return [made[k * each : (k + 1) * each] for k in range(len(devices))]


@pytest.fixture
def replicas(monkeypatch):
    """torch's own `replicate` for two devices; only the copy between cards is done here."""
    at = sys.modules[replicate.__module__]
    monkeypatch.setattr(at, "_broadcast_coalesced_reshape", broadcast)
    monkeypatch.setattr(at, "_get_device_index", lambda device, *_, **__: device)
    return lambda model: replicate(model, [0, 1], detach=not torch.is_grad_enabled())


@every_cell
def test_replicas_give_the_outputs_and_gradients_of_one_process(cell: Cell, replicas):
    model, x = cell.model().train(), cell.inputs(6)

    def run(x):
        return torch.cat(
            [part(rows) for part, rows in zip(replicas(model), x.split(3), strict=True)]
        )

    assert_close(run(x), wanted(model[0], x))
    check_gradients(model, x, run)


@every_cell
def test_replicas_follow_the_parameters(cell: Cell, replicas):
    model, x = cell.model(), cell.inputs(6)
    with torch.no_grad():
        for _ in range(2):
            for part in replicas(model):
                assert_close(part(x), wanted(model[0], x))
            for p in model.parameters():
                p.mul_(1.5)
        before = [p.clone() for p in model.parameters()]
        for part in replicas(model):
            part(x)
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), before, strict=True))


@every_cell
def test_two_threads_at_once(cell: Cell):
    model, x = cell.model(), [cell.inputs(5, seed=k) for k in range(2)]
    y = [wanted(model[0], own).detach() for own in x]

    def look(k):
        with torch.no_grad():
            return [model(x[k]) for _ in range(3)]

    with ThreadPoolExecutor(2) as pool:
        for found, right in zip(pool.map(look, range(2)), y, strict=True):
            for own in found:
                assert_close(own, right)


@every_cell
def test_an_average_with_buffers_of_what_does_not_change_is_the_model(cell: Cell):
    model, x = cell.model(), cell.inputs(5)
    y = check(model, x)
    for how in (get_ema_multi_avg_fn(0.9), get_ema_multi_avg_fn(0.9999), None):
        average = AveragedModel(model, multi_avg_fn=how, use_buffers=True)
        for _ in range(4):
            average.update_parameters(model)
            check(average.module, x, y)


def follow(average, model, decay):
    """An average over all that a state dict holds, whatever it is, as trackers do it."""
    with torch.no_grad():
        for own, new in zip(
            average.state_dict().values(), model.state_dict().values(), strict=True
        ):
            own.copy_(decay * own + (1 - decay) * new)


@every_cell
def test_an_average_over_the_state_dict_of_what_does_not_change_is_the_model(cell: Cell):
    model, x = cell.model(), cell.inputs(5)
    y = check(model, x)
    average = copy.deepcopy(model)
    for step in range(9):
        follow(average, model, min(0.9999, (1 + step) / (10 + step)))
        check(average, x, y)


@every_cell
def test_averages_of_what_is_trained_are_those_of_its_parameters(cell: Cell):
    model, x = cell.model(), cell.inputs(5)
    average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.5), use_buffers=True)
    tracked, by_hand = copy.deepcopy(model), [p.detach().clone() for p in model.parameters()]
    average.update_parameters(model)  # the first copies
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    for _ in range(3):
        optimizer.zero_grad()
        model(x).square().mean().backward()
        optimizer.step()
        average.update_parameters(model)
        follow(tracked, model, 0.5)
        by_hand = [(p + q.detach()) / 2 for p, q in zip(by_hand, model.parameters(), strict=True)]
        for found in (average.module, tracked):
            check(found, x)
            assert_close([p.detach() for p in found.parameters()], by_hand)


@every_cell
def test_pruned_again_and_again(cell: Cell):
    model, x = cell.model(), cell.inputs(5)
    name, y = largest(model[0]), check(model, x)
    for _ in range(3):
        prune.l1_unstructured(model[0], name, amount=0.3)
        with torch.no_grad():
            found = model(x)  # the hook before it makes the pruned parameter
        assert_close(found, wanted(model[0], x).detach())
        assert not torch.allclose(found, y)
        y = found
    with torch.no_grad():
        getattr(model[0], f"{name}_orig").mul_(2)
        found = model(x)
        assert_close(found, wanted(model[0], x))
        assert not torch.allclose(found, y)
    prune.remove(model[0], name)
    check(model, x, found)


class Scaled(nn.Module):
    def __init__(self):
        super().__init__()
        self.by = nn.Parameter(torch.tensor(2.0, dtype=torch.float64))

    def forward(self, value):
        return value * self.by


@every_cell
def test_a_parametrized_parameter(cell: Cell):
    model, x = cell.model(), cell.inputs(5)
    name, y = largest(model[0]), check(model, x)
    parametrize.register_parametrization(model[0], name, Scaled())
    for by in (2.0, 3.0):
        with torch.no_grad():
            model[0].parametrizations[name][0].by.fill_(by)
        found = check(model, x)
        assert not torch.allclose(found, y)
        y = found
    check_gradients(model, x)
    with parametrize.cached():
        check(model, x, y)
    check(copy.deepcopy(model), x, y)
    parametrize.remove_parametrizations(model[0], name, leave_parametrized=True)
    check(model, x, y)


@every_cell
@pytest.mark.parametrize("norm", [parametrizations.weight_norm, parametrizations.spectral_norm])
def test_norms_of_a_parameter(cell: Cell, norm):
    model, x = cell.model(), cell.inputs(5)
    check(model, x)
    norm(model[0], largest(model[0]))
    for _ in range(2):
        check(model, x)
        check_gradients(model, x)
        with torch.no_grad():
            for p in model.parameters():
                p.mul_(1.5)
    check(copy.deepcopy(model), x, check(model, x))


@every_cell
def test_hooks_see_and_change_what_a_dense_module_shows(cell: Cell):
    model, x = cell.model(), cell.inputs(4)
    layer, seen = model[0], {}
    layer.register_forward_pre_hook(lambda _, args: (args[0].flip(0),))
    layer.register_forward_hook(lambda _, args, y: seen.update(x=args[0], y=y) or y.square())
    if cell.takes_vectors:
        layer.register_full_backward_pre_hook(lambda _, out: seen.update(pre=out[0]))
        layer.register_full_backward_hook(lambda _, inp, out: seen.update(into=inp[0], out=out[0]))
        x.requires_grad_()
    right = wanted(layer, x.flip(0))
    y = model(x)
    assert_close(y, right.square())
    assert_close(seen["x"], x.flip(0))
    assert_close(seen["y"], right)
    leaves = [*model.parameters(), *([x] if cell.takes_vectors else [])]
    y.sum().backward()
    theirs = torch.autograd.grad(right.square().sum(), leaves)
    assert_close([p.grad for p in leaves], [*theirs])
    if cell.takes_vectors:
        assert_close(seen["pre"], torch.ones_like(y))
        assert_close(seen["out"], torch.ones_like(y))
        assert_close(seen["into"].flip(0), x.grad)


@every_cell
def test_hooks_of_parameters_run_once_in_a_step(cell: Cell):
    model, x, seen = cell.model(), cell.inputs(4), []
    for name, p in model.named_parameters():
        p.register_hook(lambda g, name=name: seen.append((name, g)))
        p.register_post_accumulate_grad_hook(lambda p, name=name: seen.append((name, p.grad)))
    model(x).square().sum().backward()
    names = [name for name, _ in model.named_parameters()]
    assert sorted(name for name, _ in seen) == sorted(2 * names)
    right = dict(zip(names, gradients_of_squares(model, x), strict=True))
    for name, found in seen:
        assert_close(found, right[name])


def gradients_of_squares(model, x):
    return torch.autograd.grad(wanted(model[0], x).square().sum(), [*model.parameters()])
