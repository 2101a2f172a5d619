"""What enters layers is told once for each layer and batch, without padding, and nothing stays."""

import pytest
import torch
from torch import nn

from bondwise.errors import DataError
from bondwise.flow.calibrate import Inputs
from bondwise.flow.watch import collect, watch, watching


class Twins(nn.Module):
    def __init__(self):
        super().__init__()
        self.one, self.two, self.last = nn.Linear(3, 4), nn.Linear(3, 4), nn.Linear(4, 2)

    def forward(self, x):
        return self.last(self.one(x) + self.two(x))


def layers(model):
    return dict(model.named_children())


def test_layers_that_get_one_tensor_are_told_who_got_it_first():
    model, seen = Twins(), []
    watch(model, layers(model), [torch.randn(5, 3)] * 2, seen.append)
    assert [(e.name, e.first) for e in seen] == 2 * [("one", "one"), ("two", "one"), ("last",) * 2]
    assert all(e.mask is None for e in seen)
    assert not any(m._forward_pre_hooks for m in model.modules())


def test_padding_is_left_out():
    model, seen = Twins(), []
    x, mask = torch.randn(2, 4, 3), torch.tensor([[1, 1, 1, 0], [1, 0, 0, 0]])
    with watching(layers(model), seen.append) as begin:
        begin(mask)
        model(x)
        begin(mask[:, :3])  # of another shape: it says nothing of these inputs
        model(x)
    torch.testing.assert_close(seen[0].tokens, x[mask.bool()])
    assert len(seen[2].tokens) == 4
    assert len(seen[3].tokens) == 8


def test_second_moments_count_each_batch_once_also_where_it_comes_again():
    model, x = Twins(), torch.randn(5, 3)
    inputs = Inputs(layers(model))
    inputs.watch(model, [x, x, torch.randn(2, 3)])
    assert inputs.group == {"one": "one", "two": "one", "last": "last"}
    assert {name: own.tokens for name, own in inputs.moments.items()} == {"one": 12, "last": 12}


def test_a_sample_stops_at_its_limit_and_is_shared():
    model, x = Twins(), torch.randn(6, 3)
    found = collect(model, ["one", "two"], [x[:4], x[4:]], 5)
    torch.testing.assert_close(found["one"], x[:5])
    torch.testing.assert_close(found["two"], x[:5])


def test_hooks_end_where_something_fails():
    model = Twins()
    with pytest.raises(DataError, match="Inputs of one are not finite"):
        collect(model, ["one"], [torch.full((2, 3), float("nan"))], 5)
    with pytest.raises(DataError, match="no batch"):
        collect(model, ["one"], [], 5)
    assert not any(m._forward_pre_hooks for m in model.modules())
