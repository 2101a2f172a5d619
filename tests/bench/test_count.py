"""Counts agree with torch's own counter, which knows nothing of layers."""

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode
from transformers.pytorch_utils import Conv1D

import bondwise as bw
import tiny
from bondwise.bench.count import macs, multiplications, networks, resident_bytes
from bondwise.checkpoint.loading import load_model
from bondwise.compress.swap import footprint
from bondwise.layers.module import TensorLayer


def of_linear_layers(counter):
    """Half the flops of plain matrix products; attention and rotary angles use others."""
    found = {str(op): count for op, count in counter.get_flop_counts()["Global"].items()}
    return (found.get("aten.mm", 0) + found.get("aten.addmm", 0)) // 2


@pytest.mark.parametrize("kind", ["llama", "gpt2", "bert"])
@pytest.mark.parametrize("tensorized", [False, True])
def test_multiplications_are_those_that_torch_counts(shelf, small, kind, tensorized):
    model = load_model((small if tensorized else shelf) / kind).model
    with torch.no_grad():
        model(input_ids=tiny.tokens(2, 8))  # weights that layers keep ready are made now
    with (
        torch.no_grad(),
        FlopCounterMode(display=False) as counter,
        multiplications(model) as made,
    ):
        model(input_ids=tiny.tokens(2, 8))
    assert networks(model) == (8 if kind == "gpt2" else 14 if kind == "llama" else 13) * tensorized
    assert made() == of_linear_layers(counter)


def test_a_layer_says_itself_what_it_multiplies(monkeypatch):
    layer = bw.TensorLinear(bw.lowrank(6, 4, 2))
    monkeypatch.setattr(bw.TensorLinear, "macs", lambda _, rows: 7 * rows, raising=False)
    assert macs(layer, 3) == 21


def test_dense_layers_of_both_layouts():
    assert macs(nn.Linear(4, 6), 10) == macs(Conv1D(6, 4), 10) == 240
    assert macs(nn.Linear(4, 6), 0) == 0


def test_hooks_are_gone_afterwards():
    layer = nn.Linear(4, 6)
    with pytest.raises(KeyError), multiplications(layer):
        raise KeyError
    assert not layer._forward_hooks


def test_resident_bytes_count_shared_tensors_once():
    tied = tiny.llama(tied=True)
    assert resident_bytes(tied) == footprint(tied)["bytes"]


def test_resident_bytes_include_what_a_layer_keeps_beside(monkeypatch):
    one, two = (bw.TensorLinear(bw.lowrank(6, 4, 2)) for _ in range(2))
    model = nn.Sequential(one, two)
    monkeypatch.delattr(TensorLayer, "resident_bytes")
    plain = resident_bytes(model)
    one.kept = torch.zeros(6, 4)
    two.kept = one.kept
    assert resident_bytes(model) == plain + 4 * 24
    monkeypatch.setattr(TensorLayer, "resident_bytes", lambda _: plain // 2 + 1000, raising=False)
    assert resident_bytes(model) == plain + 2000
