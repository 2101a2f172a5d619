"""What is measured of a dense model: all that may be chosen for it, as it would be stored."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from transformers.pytorch_utils import Conv1D

import bondwise as bw
import tiny
from bondwise.choose.candidates import COLUMNS, Group, candidates
from bondwise.choose.fitted import fitted
from bondwise.choose.kinds.kernels import Moves
from bondwise.choose.scout import heads_of
from bondwise.choose.seconds.clock import Clock
from bondwise.choose.seconds.drawn import drawn
from bondwise.choose.seconds.interpolate import family, multiplications
from bondwise.choose.seconds.ladder import ladder
from bondwise.choose.seconds.place import Place
from bondwise.choose.seconds.rungs import rungs
from bondwise.choose.select import select
from bondwise.compute.kernels.geometry import Geometry
from bondwise.fit.kernels.patches import Patches
from bondwise.gauge.compact import stored_numbers
from bondwise.layers.hosts.registry import matrix_of
from bondwise.layers.prepare.measurements import Measurements


def families(every):
    return {family(terms[0], terms) for terms in every if isinstance(terms[0], bw.Network)}


@settings(deadline=None, max_examples=6)
@given(st.integers(4, 40), st.integers(4, 120), st.sampled_from([0, 2, 4]))
def test_every_format_that_may_be_chosen_is_on_a_ladder(out, inp, heads):
    heads = heads if heads and out % heads == 0 and out > heads else 0
    x = torch.randn(200, inp)
    group = Group({"w": torch.randn(out, inp)}, x.T @ x)
    some = candidates(group, formats=("dense", "lowrank", COLUMNS))
    few = (0.4, 0.7)
    some += list(fitted(group, few, heads={"w": heads} if heads else None))  # what speed leaves
    own = families(rungs(Place("linear", (out, inp), "float32"), 32, heads))
    chosen = [c for c in some if c.network is not None and c.macs < 0.5 * out * inp]
    assert families(c.terms for c in chosen) <= own


def conv_place(conv, size):
    return Place.of(conv, Moves(Geometry.of(conv), size))


@pytest.mark.parametrize(
    ("conv", "size"),
    [
        (nn.Conv2d(12, 16, 3, padding=1), (9, 9)),
        (nn.Conv2d(16, 16, 3, groups=2, stride=2), (11, 11)),
        (nn.Conv1d(8, 24, 20), (64,)),
        (nn.Conv2d(12, 32, 1), (6, 6)),
    ],
)
def test_every_format_of_a_convolution_is_on_a_ladder(conv, size):
    place = conv_place(conv, size)
    x = torch.randn(4, conv.in_channels, *size)
    seen = Patches(
        conv.in_channels, conv.kernel_size, stride=conv.stride, dilation=conv.dilation,
        groups=conv.groups,
    )  # fmt: skip
    seen.add(Geometry.of(conv).pad(x))
    group = Group({"c": matrix_of(conv)}, seen.metric(), moves={"c": place.moves})
    some = candidates(group)
    whole = next(c.macs for c in some if c.format == "dense")
    chosen = [c.terms for c in some if c.network is not None and c.macs < 0.5 * whole]
    assert chosen
    assert families(chosen) <= families(rungs(place, 32))


@pytest.mark.parametrize("host", ["linear", "conv1d", "embedding"])
@pytest.mark.parametrize("shape", [(24, 120), (48, 32), (7, 13)])
def test_what_is_measured_is_stored_without_its_gauge_and_is_right(host, shape):
    out, inp = shape
    module = {
        "linear": nn.Linear(inp, out),
        "conv1d": Conv1D(out, inp),
        "embedding": nn.Embedding(out, inp),
    }[host]
    every = list(rungs(Place.of(module), 32, 0))
    for terms in every:
        layer = drawn(module, Place.of(module), terms, seed=1).double()
        if host == "embedding":
            ids = torch.arange(out)
            wanted = F.embedding(ids, layer.dense())
            torch.testing.assert_close(layer(ids), wanted)
        else:
            x = torch.randn(3, inp, dtype=torch.float64)
            torch.testing.assert_close(layer(x), F.linear(x, layer.dense(), layer.bias))
        if len(terms) == 1 and isinstance(terms[0], bw.Network):
            numbers = sum(own.numel() for own in layer.stored()[0])
            assert numbers == stored_numbers(terms[0])
    beside = any(len(terms) > 1 for terms in every)
    assert beside == (inp >= 100 and host != "embedding")


@pytest.mark.parametrize("groups", [1, 2])
def test_convolutions_that_are_measured_are_right(groups):
    conv = nn.Conv2d(8, 12, 3, stride=2, padding=1, groups=groups)
    place = conv_place(conv, (9, 7))
    for terms in rungs(place, 32):
        layer = drawn(conv, place, terms).double()
        assert layer.size == (9, 7)
        x = torch.randn(2, 8, 9, 7, dtype=torch.float64)
        wanted = F.conv2d(x, layer.weight + 0, layer.bias, 2, 1, 1, groups)
        torch.testing.assert_close(layer(x), wanted)


def test_ladders_reach_from_few_multiplications_to_nearly_all():
    place = Place("linear", (64, 96), "float32")
    nets = [terms[0] for terms in rungs(place, 32) if len(terms) == 1][1:]
    low = [multiplications(net, None) for net in nets if "o a, a i" in str(net)]
    assert len(low) == 8
    assert low[0] < 0.2 * 64 * 96
    assert low[-1] > 0.9 * 64 * 96
    assert all(multiplications(net, None) < 64 * 96 for net in nets)


def test_a_dense_model_is_measured_once_for_each_kind_of_weight(briefly):
    model = tiny.llama()
    found = ladder(model, rows=(1, 8))
    weights = [w for w in select(model)[0] if w.chosen]
    assert {entry.shape for entry in found} == {w.shape for w in weights}
    assert {entry.rows for entry in found} == {1, 8}
    keys = [entry.key for entry in found]
    assert len(keys) == len(set(keys))
    dense = [entry for entry in found if entry.network is None]
    assert all(e.way == "dense" and e.seconds == e.dense_seconds for e in dense)
    assert heads_of(model, "model.layers.0.self_attn.q_proj") == 4
    places = {w.name: Place.of(model.get_submodule(w.name)) for w in weights}
    clock = Clock(Measurements.here(found), "here")
    assert clock.on(places).loads == (1, 8)


class Tokens(nn.Module):
    """Patches of an image, and linear layers over them; the head meets one row of a sample."""

    def __init__(self):
        super().__init__()
        self.patch = nn.Conv2d(3, 24, 4, stride=4)
        self.mix, self.out = nn.Linear(24, 24), nn.Linear(24, 10)

    def forward(self, x):
        tokens = self.patch(x).flatten(2).mT
        return self.out(self.mix(tokens).mean(1))


def test_rows_are_those_of_samples_where_there_are_convolutions(briefly):
    found = ladder(Tokens(), rows=(1,), example=torch.zeros(2, 3, 16, 16))
    linear = {(entry.shape, entry.rows) for entry in found if entry.host == "linear"}
    assert linear == {((24, 24), 32), ((10, 24), 2)}
    assert all(e.size == (16, 16) for e in found if e.host == "convolution 2d")


def test_rows_are_alike_where_there_are_none(briefly):
    model = nn.Sequential(nn.Linear(6, 8), nn.Flatten(0, 1), nn.Linear(8, 8))
    found = ladder(model, rows=(1,), example=torch.zeros(3, 5, 6))
    assert {entry.rows for entry in found} == {15}
