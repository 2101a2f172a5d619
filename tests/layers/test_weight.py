"""``layer.weight``: the dense weight, made when it is read; what is written into it is refused."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import parametrize, prune
from torch.testing import assert_close

import bondwise as bw
from bondwise.errors import SelectionError, ShapeError
from bondwise.layers.linear import TensorLinear
from nets import random_cores


def made(net=None):
    net = net or bw.lowrank(6, 4, 2)
    return TensorLinear(net, random_cores(net), bias=torch.zeros(6).double())


def test_it_is_the_matrix_of_out_by_in():
    layer = made()
    W = layer.dense()
    assert isinstance(layer.weight, torch.Tensor)
    assert_close(layer.weight + 0, W)
    assert_close(layer.weight.T @ torch.ones(6).double(), W.sum(0))
    assert_close(layer.weight[2:4, 1], W[2:4, 1].clone(), check_stride=False)
    assert_close(F.linear(torch.eye(4).double(), layer.weight), W.T)
    assert_close(torch.stack([layer.weight, layer.weight]), torch.stack([W, W]))
    assert layer.weight.detach().clone().numpy().shape == (6, 4)
    assert_close(layer.weight.norm(), W.norm())


def test_what_it_is_is_known_without_making_it(monkeypatch):
    layer = made()
    monkeypatch.setattr(type(layer.terms[0].kind), "dense", None)
    w = layer.weight
    assert (w.shape, w.dtype, w.device.type, w.ndim) == ((6, 4), torch.float64, "cpu", 2)
    assert (w.size(0), len(w), w.numel(), w.is_meta) == (6, 6, 24, False)
    assert w.requires_grad
    assert w.is_floating_point()
    assert hasattr(layer, "weight")


def test_a_penalty_on_it_reaches_the_cores():
    layer = made()
    layer.weight.square().sum().backward()
    found = [layer.core_0.grad.clone(), layer.core_1.grad.clone()]
    layer.zero_grad()
    layer.dense().square().sum().backward()
    assert_close(found, [layer.core_0.grad, layer.core_1.grad])


WRITES = {
    "add_": lambda w: w.add_(1),
    "data.zero_": lambda w: w.data.zero_(),
    "detach().mul_": lambda w: w.detach().mul_(2),
    "data = ": lambda w: setattr(w, "data", torch.zeros(6, 4)),
    "+=": lambda w: w.__iadd__(1),
    "[0] =": lambda w: w.__setitem__(0, 1.0),
    "view": lambda w: w.T.mul_(2),
    "row of data": lambda w: w.data[0].zero_(),
    "init": nn.init.normal_,
    "out=": lambda w: torch.add(torch.ones(6, 4).double(), 1, out=w.detach()),
    "foreach": lambda w: torch._foreach_add_([w.detach()], 1.0),
}


@pytest.mark.parametrize("write", WRITES.values(), ids=WRITES)
def test_a_write_into_what_was_read_is_one_sentence(write):
    layer = made()
    before = layer.dense()
    with torch.no_grad(), pytest.raises(SelectionError, match=r"holds no numbers to write into"):
        write(layer.weight)
    assert torch.equal(layer.dense(), before)


def test_it_can_be_copied_from():
    layer, other = made(), nn.Linear(4, 6).double()
    with torch.no_grad():
        other.weight.copy_(layer.weight)
        assert_close(other.weight.detach(), layer.dense())
        other.weight.data = layer.weight.data.clone() * 2
        assert_close(other.weight.detach(), 2 * layer.dense())
        other.weight.data = layer.weight.data
        assert_close(other(torch.eye(4).double()) - other.bias, layer.dense().T)
        other.weight.data[:3] = layer.weight.data[:3]
        assert_close(other.weight.detach()[:3], layer.dense()[:3])
    assert type(copy.deepcopy(layer.weight.detach())) is not nn.Parameter


def test_a_weight_that_is_assigned_is_the_one_term():
    layer, W = made(), nn.Parameter(torch.randn(6, 4).double())
    layer.weight = W
    assert [name for name, _ in layer.named_parameters()] == ["bias", "t0_dense"]
    assert layer.t0_dense is W  # what is tied stays tied
    x = torch.randn(3, 4).double()
    assert_close(layer(x), F.linear(x, W))
    again = copy.deepcopy(layer)
    again.load_state_dict(layer.state_dict())
    assert_close(again(x), layer(x))


@pytest.mark.parametrize("value", [torch.zeros(4, 6), None, 3, torch.zeros(24)])
def test_what_is_no_weight_is_not_assigned(value):
    layer = made()
    with pytest.raises(ShapeError, match=r"\(6, 4\)"):
        layer.weight = value
    assert len(layer.parts) == 1


def test_the_guard_of_a_checkpoint_is_passed_over():
    layer = made()
    layer.weight = torch.zeros(1)
    assert list(layer.state_dict()) == ["core_0", "core_1", "bias", "weight"]


@pytest.mark.parametrize("part", [lambda w: w, lambda w: w.data, lambda w: w.detach()])
def test_it_is_no_parameter_and_nothing_that_an_optimizer_could_move(part):
    layer = made()
    with pytest.raises(SelectionError, match=r"nn.Parameter\(layer.weight.clone\(\)\)"):
        nn.Parameter(part(layer.weight))
    nn.Parameter(layer.weight.clone())
    with pytest.raises(ValueError, match="non-leaf"):
        torch.optim.SGD([layer.weight])
    with pytest.raises(SelectionError, match="register_hook came"):
        layer.weight.register_hook(print)


def test_it_does_not_become_the_data_of_another_without_numbers():
    other = nn.Linear(4, 6).double()
    with pytest.raises(RuntimeError, match="incompatible tensor type"):
        other.weight.data = made().weight
    assert other(torch.ones(4).double()).shape == (6,)


def test_freezing_it_freezes_what_it_is_made_from():
    layer = made()
    layer.weight.requires_grad_(False)
    assert [p.requires_grad for p in layer.parameters()] == [False, False, True]
    layer.weight.requires_grad = True
    assert all(p.requires_grad for p in layer.parameters())


def test_what_would_stand_for_it_is_refused():
    layer = made()
    with pytest.raises(SelectionError, match=r"weight_orig.*such as core_0"):
        prune.l1_unstructured(layer, "weight", amount=0.5)
    with pytest.raises(ValueError, match="does not have a parameter"):
        parametrize.register_parametrization(layer, "weight", nn.Identity())
    assert_close(layer.dense(), made().dense())
