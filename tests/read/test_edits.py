"""Interventions do to the output what they say, at the positions meant, and leave no trace."""

import pytest
import torch
from torch import nn

import bondwise as bw
import tiny
from bondwise import read
from bondwise.errors import DataError, SelectionError, ShapeError
from read.planted import EVERY, layer, refused

PROMPT = "bond core rank"


def alone(net):
    return nn.Sequential(layer(net))


def test_what_each_does_to_the_output():
    for net, name in EVERY:
        own = alone(net)
        x = torch.randn(3, 6, net.shape[1], dtype=torch.float64)
        before = own(x)
        bond, chosen = read.bond(own, "0", name), [0, net.bonds[name] - 1]
        y = read.contributions(bond, x)[..., chosen, :].sum(-2)
        other = torch.randn(3, 6, net.shape[1], dtype=torch.float64)
        there = read.contributions(bond, other)[..., chosen, :].sum(-2)
        cases = {
            "zero": (read.zero(bond, chosen), before - y),
            "scale": (read.scale(bond, chosen, 3.0), before + 2 * y),
            "mean": (read.mean(bond, chosen, x), before - y + y.mean((0, 1))),
            "patch": (read.patch(bond, chosen, other), before - y + there),
        }
        for kind, (edit, expected) in cases.items():
            with read.edited(own, edit):
                torch.testing.assert_close(own(x), expected, rtol=0, atol=1e-5, msg=kind)
            torch.testing.assert_close(own(x), before, msg="a trace is left")


def test_resampling_keeps_the_sum_and_steering_adds_the_same_everywhere():
    own = alone(bw.lowrank(6, 8, 4))
    x = torch.randn(50, 8, dtype=torch.float64)
    bond = read.bond(own, "0")
    rest, y = own(x) - read.added(bond, x, [1]), read.added(bond, x, [1])
    with read.edited(own, read.resample(bond, [1], seed=3)):
        moved = own(x) - rest
    torch.testing.assert_close(moved.sum(0), y.sum(0))
    assert not torch.allclose(moved, y)
    before = own(x)
    with read.edited(own, read.steer(bond, [2], 5.0)):
        moved = (own(x) - before).detach()
    assert float(moved.norm(dim=1).min()) == pytest.approx(5.0)
    assert float(moved.std(0).max()) < 1e-6


def test_positions_and_several_edits_at_once():
    own = alone(bw.lowrank(6, 8, 4))
    bond = read.bond(own, "0")
    x = torch.randn(2, 5, 8, dtype=torch.float64)
    before = own(x)
    with read.edited(own, read.zero(bond, [0]).where([1, -1]), read.zero(bond, [1])):
        after = own(x)
    expected = before - read.added(bond, x, [1])
    expected[:, [1, 4]] -= read.added(bond, x, [0])[:, [1, 4]]
    torch.testing.assert_close(after, expected)
    handles = read.attach(own, [read.zero(bond, [0])])
    assert not torch.allclose(own(x), before)
    handles[0].remove()
    torch.testing.assert_close(own(x), before)


def test_gradients_flow_through_an_edit_which_ends_where_something_fails():
    own = alone(bw.lowrank(6, 8, 4))
    x = torch.randn(3, 8, dtype=torch.float64, requires_grad=True)
    edit = read.scale(read.bond(own, "0"), [0], 0.5)
    with read.edited(own, edit):
        assert torch.autograd.gradcheck(own, (x,))
    with pytest.raises(RuntimeError), read.edited(own, edit):
        raise RuntimeError
    assert not own[0]._forward_hooks


def test_a_language_model_patched_from_another_prompt(model):
    bond = read.bond(model, "model.layers.1.mlp.down_proj")
    one, two = tiny.tokens(1, 12, seed=1), tiny.tokens(1, 12, seed=2)
    held = read.recorded(model, [bond], two)[bond.layer]
    layer = model.get_submodule(bond.layer)
    with torch.no_grad():
        with read.edited(model, read.patch(bond, range(bond.size), held)):
            x = read.recorded(model, [bond], one)[bond.layer]
            patched = layer(x)
        torch.testing.assert_close(patched, layer(held), rtol=0, atol=1e-5)
        assert not torch.allclose(patched, layer(x))


def test_what_a_model_writes_with_an_edit(model):
    words = tiny.tokenizer()
    bond = read.bond(model, "model.layers.1.mlp.down_proj")
    plain = read.generated(model, words, PROMPT, tokens=6)
    assert plain == read.generated(model, words, PROMPT, tokens=6)
    edits = [read.steer(bond, [k], 200.0) for k in range(8)]
    told = {read.generated(model, words, PROMPT, edit, tokens=6) for edit in edits}
    assert told - {plain}
    refused(DataError, "empty prompt", read.generated, model, words, "")


def test_bad_input():
    own, small = alone(bw.lowrank(6, 8, 4)), alone(bw.lowrank(6, 8, 3))
    bond = read.bond(own, "0")
    x = torch.randn(2, 5, 8, dtype=torch.float64)
    refused(ShapeError, "write some of 0 to 3", read.zero, bond, [9])
    refused(DataError, "No inputs", read.mean, bond, [0], torch.zeros(0, 8))
    with read.edited(own, read.patch(bond, [0], x[:, :3])):
        refused(ShapeError, "as many tokens", own, x)
    with read.edited(own, read.zero(bond, [0]).where([7])):
        refused(ShapeError, "write some of 0 to 4", own, x)
    edits = [read.zero(bond, [0])]
    refused(SelectionError, "another network", read.attach, small, edits)
    small.insert(0, nn.ReLU())
    refused(SelectionError, "No tensorized layer", read.attach, small, edits)
