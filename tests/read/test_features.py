"""Streamed features are what one pass over everything gives, in any batches."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

import bondwise as bw
import tiny
from bondwise.errors import DataError
from bondwise.flow.watch import collect, in_turns
from bondwise.read import bonds, features, gauge, input_moments
from bondwise.read.features import AFTER, BEFORE, TOP
from read.planted import layer, refused


def small(net=None):
    return nn.Sequential(layer(net or bw.mpo((2, 3), (4, 2), 5), dtype=torch.float32), nn.Tanh())


@pytest.mark.parametrize("split", [1, 3, 8])
def test_a_stream_is_the_whole_in_any_batches(split):
    own = small()
    x = torch.randn(24, 16, 8) * torch.rand(24, 16, 1) * 3
    found = features(own, bonds(own), list(x.split(split)), per_bond=3)[0]
    F = found.values(x).reshape(-1, 3).double().numpy()
    np.testing.assert_allclose(found.rms, np.sqrt((F**2).mean(0)), rtol=1e-4)
    np.testing.assert_allclose(found.mean, F.mean(0), atol=1e-5)
    np.testing.assert_allclose(found.density, (F**2).mean(0) ** 2 / (F**4).mean(0), rtol=1e-4)
    order = np.argsort(-F, axis=0, kind="stable")[:TOP].T
    np.testing.assert_allclose(found.top, np.take_along_axis(F.T, order, 1), rtol=1e-4)
    for k in range(3):
        np.testing.assert_allclose(F[found.at[k].numpy(), k], found.top[k].numpy(), rtol=1e-4)
        np.testing.assert_allclose(F[found.low_at[k].numpy(), k], found.low[k].numpy(), rtol=1e-4)
        assert F[:, k].min() == pytest.approx(float(found.low[k, 0]), rel=1e-4)
    assert found.counts.sum(1).tolist() == [24 * 16] * 3


def test_around_an_example_are_the_values_of_its_own_window():
    own = small()
    x = torch.randn(12, 20, 8)
    found = features(own, bonds(own), [x], per_bond=2)[0]
    F = found.values(x)
    for n in (0, 7, TOP - 1):
        window, place = divmod(int(found.at[1, n]), 20)
        spots = torch.arange(place - BEFORE, place + AFTER + 1)
        inside = (spots >= 0) & (spots < 20)
        expected = torch.where(inside, F[window, spots.clamp(0, 19), 1], 0.0)
        torch.testing.assert_close(found.around[1, n], expected)
        assert float(found.around[1, n, BEFORE]) == float(found.top[1, n])


def test_the_values_that_add_most_come_first_and_their_shares_add_up_where_they_are_orthogonal():
    own = small()
    x = torch.randn(400, 8)
    made = gauge(own[0], "whitened", data=x)
    read = replace(made.bond, layer="0")
    found = features(own, [read], [x], per_bond=5)[0]
    assert bool((found.share.diff() <= 1e-9).all())
    assert float(found.share.sum()) == pytest.approx(1, abs=1e-3)  # cores in float32


def test_padding_is_not_counted(model):
    ids = tiny.tokens(16, 32)
    mask = torch.ones_like(ids)
    mask[:, 20:] = 0
    own = bonds(model)[:2]
    found = features(model, own, [{"input_ids": ids, "attention_mask": mask}], per_bond=4)
    assert found[0].tokens == 16 * 20
    assert int((found[0].at % 32).max()) < 20


def test_bad_input():
    own = small()
    few, nan = [torch.randn(40, 8)], [torch.full((200, 8), float("nan"))]
    for said, x in (("need at least 100", few), ("no batch", []), (r"not finite|NaN", nan)):
        refused(DataError, said, features, own, bonds(own), x)


def test_inputs_of_layers_are_taken_in_turns_and_up_to_a_limit():
    own = small()
    found = collect(own, ["0"], [torch.randn(30, 8), torch.randn(30, 8)], 40)
    assert found["0"].shape == (40, 8)
    wide = {"a": 2**14, "b": 2**14, "c": 8}
    assert in_turns(wide, 2**12) == [["a", "b", "c"]]
    assert in_turns(wide, 2**13) == [["a", "b"], ["c"]]  # two take the whole room
    assert in_turns(wide, 2**14) == [["a"], ["b"], ["c"]]
    moments = input_moments(own, ["0"], [torch.ones(10, 8)])
    torch.testing.assert_close(moments["0"], torch.ones(8, 8, dtype=torch.float64))


def test_features_lean_to_the_positive_side_whatever_the_sign_of_the_inputs():
    own = small(bw.lowrank(6, 8, 3))
    x = torch.randn(40, 16, 8) ** 3
    one, two = (features(own, bonds(own), [each], per_bond=3)[0] for each in (x, -x))
    assert bool((one.skew >= 0).all())
    torch.testing.assert_close(one.readers, -two.readers)
    for name in ("top", "at", "low", "around", "mean"):
        torch.testing.assert_close(getattr(one, name), getattr(two, name), msg=name)


def test_moments_of_data_in_every_form():
    model, ids = tiny.llama(), tiny.tokens(6, 12)
    names = ["model.layers.0.mlp.up_proj"]
    wanted = input_moments(model, names, [ids])[names[0]]
    for data in ([{"input_ids": row.tolist()} for row in ids], ids.numpy(), iter([ids])):
        torch.testing.assert_close(input_moments(model, names, data)[names[0]], wanted)
