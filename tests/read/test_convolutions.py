"""Convolutions are read from their weights; what needs their inputs says that it cannot."""

import pytest
import torch
from torch import nn
from torch.testing import assert_close

import bondwise as bw
from bondwise import read
from bondwise.errors import SelectionError
from nets import multiplied


def model_of():
    return nn.Sequential(
        bw.TensorConv2d(bw.tucker2(8, 4, (3, 3), (5, 3)), padding=1),
        nn.ReLU(),
        bw.TensorConv2d(bw.lowrank(6, (8, 3, 3), 3)),
    )


def test_their_weight_is_read():
    model = model_of()
    assert [(b.layer, b.name, b.size) for b in read.bonds(model)] == [
        ("0", "p", 5), ("0", "q", 3), ("2", "a", 3),
    ]  # fmt: skip
    W = model[2].weight.flatten(1).detach().double()
    own = next(s for s in read.spectra(model) if s.layer == "2")
    assert_close(own.values[:3].double(), torch.linalg.svdvals(W)[:3], rtol=1e-4, atol=1e-5)
    assert_close(bw.canonical(model[0].network, model[0].cores(), center=0)[1].ndim, 4)
    for layer in (model[0], model[2]):
        assert "<svg" in layer._repr_html_()
        assert str(layer.network) in repr(model)
        assert_close(multiplied(bw.stack(layer.network, layer.cores())), layer.dense())


@pytest.mark.parametrize(
    "look",
    [
        lambda m, b, x: read.features(m, [b], [x]),
        lambda m, _, x: read.input_moments(m, ["2"], [x]),
        lambda m, b, x: read.recorded(m, [b], x),
        lambda m, b, _: read.attach(m, [read.zero(b, [0])]),
        lambda m, b, x: read.importance(m, [b], [x], {}),
    ],
)
def test_what_needs_rows_says_so(look):
    model, x = model_of(), torch.randn(4, 4, 7, 7)
    with pytest.raises(SelectionError, match="Layer '2' is a convolution, whose bonds are read"):
        look(model, read.bond(model, "2"), x)
