import numpy as np
import pytest
import torch

from bondwise.choose.candidates import COLUMNS, Group, candidates
from bondwise.choose.columns import low_rank_with_columns
from bondwise.choose.curves import curve, shared_cores
from bondwise.compute.run import dense
from bondwise.fit.fit import fit
from bondwise.fit.metric import Metric
from bondwise.fit.whitened import metric_norm
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
        (match,) = (c for c in found.values() if c.networks and c.networks[0].bonds["a"] == rank)
        assert match.errors[0] == pytest.approx(expected, rel=1e-8)
        assert match.networks == (lowrank(*shape, rank),)


@pytest.mark.parametrize("outs", [(12, 5, 9), (30, 40)])
def test_shared_errors_are_those_of_a_numpy_svd_of_the_stack(outs):
    x, y = moments(24)
    weights = [torch.randn(out, 24, dtype=torch.float64) * 3.0**k for k, out in enumerate(outs)]
    found = curve(weights, x.T @ x, y.T @ y)
    factors = [1 / np.linalg.norm((w @ x.T).numpy()) for w in weights]
    stack = np.concatenate([f * w.numpy() for f, w in zip(factors, weights, strict=True)])
    left = np.linalg.svd(stack @ x.T.numpy(), full_matrices=False)[0]
    for rank in (1, 7, 15):
        close = left[:, :rank] @ (left[:, :rank].T @ stack)
        starts = np.cumsum((0, *outs))
        for k, weight in enumerate(weights):
            off = weight.numpy() - close[starts[k] : starts[k + 1]] / factors[k]
            for tokens, errors in ((x, found.fitting), (y, found.held_out)):
                expected = np.linalg.norm(off @ tokens.T.numpy()) ** 2
                assert float(errors[k, rank]) == pytest.approx(expected, rel=1e-8)


def test_shared_cores_are_what_the_curve_is_of():
    x, y = moments(24)
    weights = [torch.randn(out, 24, dtype=torch.float64) for out in (12, 5)]
    left, right = shared_cores(weights, x.T @ x, 6)
    found = curve(weights, x.T @ x, y.T @ y)
    for k, weight in enumerate(weights):
        off = weight - left[k] @ right
        assert float(((off @ y.T) ** 2).sum()) == pytest.approx(
            float(found.held_out[k, 6]), rel=1e-8
        )


def test_a_quiet_weight_is_not_given_up_for_a_loud_one_that_shares():
    x, _ = moments(24)
    weights = [1000 * torch.randn(24, 24, dtype=torch.float64), torch.randn(24, 24).double()]
    found = curve(weights, x.T @ x)
    shares = found.fitting[:, 12] / found.fitting[:, 0]
    assert float(shares[1]) < 2 * float(shares[0])


def test_what_a_candidate_stores_is_less_than_dense_and_counted_without_the_gauge():
    site = Group({"q": torch.randn(64, 48), "k": torch.randn(16, 48)})
    found = candidates(site, bits=16)
    for c in (c for c in found if c.format != "dense"):
        rank = c.networks[0].bonds["a"]
        outs = sum(net.shape[0] for net in c.networks)
        assert 0 <= c.numbers - rank * (outs + 48 - rank) <= 3  # the pivots: 48 bits
        assert c.numbers < outs * 48
        assert 2 * (c.numbers - 1) < c.bytes <= 2 * c.numbers
    assert {c.weights for c in found} == {("q",), ("k",), ("q", "k")}


def test_dead_inputs_and_dead_weights_have_no_error_and_no_nan():
    moment = torch.zeros(16, 16)
    moment[0, 0] = 4.0
    site = Group({"a": torch.zeros(8, 16), "b": torch.randn(8, 16)}, Metric(moment, 2, 0.5))
    found = candidates(site)
    assert {c.weights for c in found} == {("a",), ("b",), ("a", "b")}
    for c in found:
        assert all(0 <= e <= 1 + 1e-9 for e in c.errors)
        assert c.weights != ("a",) or c.errors == (0.0,)


def test_without_tokens_the_errors_are_those_of_the_weight():
    weight = torch.randn(12, 20, dtype=torch.float64)
    spectrum = np.linalg.svd(weight.numpy())[1] ** 2
    found = [c for c in candidates(Group({"w": weight})) if c.format == "lowrank"]
    assert len(found) > 1
    for c in found:
        rank = c.networks[0].bonds["a"]
        assert c.errors[0] == pytest.approx(spectrum[rank:].sum() / spectrum.sum(), abs=1e-12)


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
    chosen = [c for c in candidates(site, formats=("dense", COLUMNS)) if c.networks]
    (match,) = (c for c in chosen if c.networks[0].bonds["a"] == 10)
    off = weight - found.dense()
    expected = (metric_norm(off, held) / metric_norm(weight, held)) ** 2
    assert match.errors[0] == pytest.approx(expected, rel=1e-6)
    assert match.remainder == 2
    assert match.numbers < 10 * (240 - 10) + 2 * 40 + 12
