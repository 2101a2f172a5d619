import numpy as np
import pytest
import torch

from bondwise.choose.candidates import COLUMNS, Group, candidates
from bondwise.choose.curves import curve
from bondwise.choose.kinds.columns import low_rank_with_columns
from bondwise.compute.run import dense
from bondwise.fit.fit import fit
from bondwise.fit.metric import Metric
from bondwise.fit.whitened import metric_norm
from bondwise.layers.entries import Columns
from bondwise.topology.lowrank import lowrank


def moments(inp, seed=0, tokens=400):
    torch.manual_seed(seed)
    mix = torch.randn(inp, inp, dtype=torch.float64) * torch.logspace(0, -1, inp).double()
    x = torch.randn(2, tokens, inp, dtype=torch.float64) @ mix
    return x[0], x[1]


@pytest.mark.parametrize("shape", [(20, 36), (36, 20), (24, 24)])
def test_all_ranks_of_one_decomposition_are_the_errors_of_explicit_fits(shape):
    x, y = moments(shape[1])
    weight = torch.randn(shape, dtype=torch.float64)
    metric, held = Metric(x.T @ x, len(x), 0.2), Metric(y.T @ y, len(y), 0.7)
    found = {c.numbers: c for c in candidates(Group({"w": weight}, metric, held))}
    for rank in (1, 5, 12):
        done = fit(weight, lowrank(*shape, rank), metric)
        off = weight - dense(done.network, done.cores)
        expected = float(((off @ y.T) ** 2).sum() / ((weight @ y.T) ** 2).sum())
        (match,) = (c for c in found.values() if c.network and c.network.bonds["a"] == rank)
        assert match.error == pytest.approx(expected, rel=1e-8)
        assert match.network == lowrank(*shape, rank)


@pytest.mark.parametrize("shape", [(12, 24), (40, 24)])
def test_a_curve_is_that_of_a_numpy_svd(shape):
    x, y = moments(24)
    weight = torch.randn(shape, dtype=torch.float64)
    found = curve(weight, x.T @ x, y.T @ y)
    left = np.linalg.svd(weight.numpy() @ x.T.numpy(), full_matrices=False)[0]
    for rank in (1, 7, 12):
        off = weight.numpy() - left[:, :rank] @ (left[:, :rank].T @ weight.numpy())
        for tokens, errors in ((x, found.fitting), (y, found.held_out)):
            expected = np.linalg.norm(off @ tokens.T.numpy()) ** 2
            assert float(errors[rank]) == pytest.approx(expected, rel=1e-8, abs=1e-8)


def test_what_a_candidate_stores_is_less_than_dense_and_counted_without_the_gauge():
    site = Group({"q": torch.randn(64, 48), "k": torch.randn(16, 48)})
    found = candidates(site, bits=16)
    for c in (c for c in found if c.format != "dense"):
        rank, (out, _) = c.network.bonds["a"], c.network.shape
        assert 0 <= c.numbers - rank * (out + 48 - rank) <= 3  # the pivots: 48 bits
        assert c.numbers < out * 48
        assert 2 * (c.numbers - 1) < c.bytes <= 2 * c.numbers
    assert {c.weight for c in found} == {"q", "k"}


def test_dead_inputs_and_dead_weights_have_no_error_and_no_nan():
    moment = torch.zeros(16, 16)
    moment[0, 0] = 4.0
    site = Group({"a": torch.zeros(8, 16), "b": torch.randn(8, 16)}, Metric(moment, 2, 0.5))
    found = candidates(site)
    assert {c.weight for c in found} == {"a", "b"}
    for c in found:
        assert 0 <= c.error <= 1 + 1e-9
        assert c.weight != "a" or c.error == 0.0


def test_without_tokens_the_errors_are_those_of_the_weight():
    weight = torch.randn(12, 20, dtype=torch.float64)
    spectrum = np.linalg.svd(weight.numpy())[1] ** 2
    found = [c for c in candidates(Group({"w": weight})) if c.format == "lowrank"]
    assert len(found) > 1
    for c in found:
        rank = c.network.bonds["a"]
        assert c.error == pytest.approx(spectrum[rank:].sum() / spectrum.sum(), abs=1e-12)


def test_columns_and_low_rank_are_the_best_pair_that_alternating_finds():
    x, y = moments(200, tokens=900)
    weight = torch.randn(40, 200, dtype=torch.float64)
    moment, held = x.T @ x, y.T @ y
    found = low_rank_with_columns(weight, moment, rank=10, count=2)
    best = metric_norm(weight - found.dense(), moment)
    root = np.linalg.cholesky(moment.numpy())
    kept = np.zeros_like(weight.numpy())
    for _ in range(300):  # columns by regression on their inputs, low rank by an SVD, in turn
        left = np.linalg.svd((weight.numpy() - kept) @ root, full_matrices=False)[0][:, :10]
        close = left @ (left.T @ (weight.numpy() - kept))
        at = found.positions.numpy()
        kept[:] = 0
        kept[:, at] = (weight.numpy() - close) @ np.linalg.lstsq(root[at].T, root.T)[0].T
    other = np.linalg.norm((weight.numpy() - close - kept) @ root)
    assert best <= other * (1 + 1e-9)
    assert best == pytest.approx(other, rel=1e-3)
    site = Group({"w": weight}, Metric(moment, 900, 0.0), Metric(held, 900, 0.5))
    chosen = [c for c in candidates(site, formats=("dense", COLUMNS)) if c.network]
    (match,) = (c for c in chosen if c.network.bonds["a"] == 10)
    off = weight - found.dense()
    expected = (metric_norm(off, held) / metric_norm(weight, held)) ** 2
    assert match.error == pytest.approx(expected, rel=1e-6)
    assert match.terms[1] == Columns(2, weight.shape)
    assert match.numbers < 10 * (240 - 10) + 2 * 40 + 12
