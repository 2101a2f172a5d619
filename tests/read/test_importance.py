"""The ladder's rungs are what they say: exact errors, slopes of the loss, and the loss itself."""

import numpy as np
import pytest
import scipy.stats
import torch
from torch import nn

import bondwise as bw
import tiny
from bondwise import read
from bondwise.errors import DataError
from bondwise.read.importance import gradients, importance, next_token_loss
from read.planted import EVERY, layer, refused


def square(model, batch):
    return model(batch).square().sum(-1).mean()


def test_slopes_are_those_of_finite_differences():
    for net, name in EVERY:
        model = nn.Sequential(layer(net), nn.Tanh())
        x = torch.randn(20, net.shape[1], dtype=torch.float64)
        bond = read.bond(model, "0", name)
        (found,) = gradients(model, [bond], [x], square)
        for b in range(bond.size):
            ends = []
            for by in (1 + 1e-5, 1 - 1e-5):
                with torch.no_grad(), read.edited(model, read.scale(bond, [b], by)):
                    ends.append(float(square(model, x)))
            assert float(found[b]) == pytest.approx(-(ends[0] - ends[1]) / 2e-5, abs=1e-7)
        assert all(p.requires_grad for p in model.parameters())


def test_the_measured_rung_is_the_loss_without_the_value():
    model = nn.Sequential(layer(bw.lowrank(6, 8, 4)))
    x = torch.randn(64, 8, dtype=torch.float64)
    moments = read.input_moments(model, ["0"], [x])
    bond = read.bond(model, "0")
    (own,), how = importance(model, [bond], [x], moments, measure=3, loss=square)
    assert how.measured == int(own.measured.isfinite().sum()) == 3
    assert dict(how.rank_correlation) == {}  # too few to say
    y = read.contributions(bond, x)
    whole = model[0](x).detach()
    for b in range(4):
        if own.measured[b].isfinite():
            left = (whole - y[:, b]).square().sum(1).mean() - whole.square().sum(1).mean()
            assert float(own.measured[b]) == pytest.approx(float(left))
    shares = y.square().sum((0, 2)) / y.sum(1).square().sum()
    np.testing.assert_allclose(own.output, shares, rtol=1e-5)


def test_a_language_model_and_how_well_the_rungs_predict(model):
    bonds = read.bonds(model)[-3:]
    ids = [tiny.tokens(8, 24, seed=1)]
    moments = read.input_moments(model, [b.layer for b in bonds], ids)
    found, how = importance(model, bonds, ids, moments, measure=12)
    assert how.measured == 12
    assert set(how.rank_correlation) == {"schmidt", "output", "gradient"}
    assert all(-1 <= v <= 1 for v in how.rank_correlation.values())
    seen = torch.cat([f.measured for f in found])
    slopes = torch.cat([f.gradient for f in found])
    known = seen.isfinite()
    expected = scipy.stats.spearmanr(slopes[known].abs(), seen[known].abs()).statistic
    assert how.rank_correlation["gradient"] == pytest.approx(expected)


def test_bad_input():
    model = nn.Sequential(layer(bw.lowrank(6, 8, 4)))
    bond = read.bond(model, "0")
    x = torch.randn(9, 8, dtype=torch.float64)
    moments = read.input_moments(model, ["0"], [x])
    refused(DataError, "holds no batch", importance, model, [bond], [], moments)
    refused(DataError, "add loss=", next_token_loss, model, x)
    given = {"loss": lambda m, b: m(b).sum() * float("inf")}
    refused(DataError, "finite", importance, model, [bond], [x], moments, **given)
