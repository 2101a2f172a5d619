"""Rounding that the rest of the network makes up for, against numpy's least squares."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import bondwise as bw
from bondwise.errors import FitError
from bondwise.fit.metric import Metric
from bondwise.gauge.compact import Compact, GaugeForm, compact, gauge_forms
from bondwise.gauge.rounding import core_metrics, feedback, moment_of
from nets import random_cores, thorough

HALF = torch.bfloat16


def correlated(size, seed=0):
    """A second moment with strong correlations and loud inputs."""
    random = np.random.default_rng(seed)
    mix = random.standard_normal((size, size)) * np.geomspace(1, 0.02, size)
    x = random.standard_normal((4 * size, size)) @ mix.T
    return torch.from_numpy(x.T @ x / len(x))


def error(net, cores, stored, moment):
    """Relative error in the metric, by numpy, of low rank."""
    wanted = cores[0].double().numpy() @ cores[1].double().numpy()
    U, V = (core.double().numpy() for core in stored.cores())
    missed = U @ V - wanted
    weigh = moment.numpy()
    return np.sqrt(np.trace(missed @ weigh @ missed.T) / np.trace(wanted @ weigh @ wanted.T))


def nearest(net, cores, form=None):
    exact = compact(net, cores, torch.float64, form=form)
    return Compact(net, exact.form, tuple(f.to(HALF) for f in exact.free), exact.pivots)


@settings(deadline=None, max_examples=15)
@given(rows=st.integers(1, 5), rank=st.integers(1, 6), seed=st.integers(0, 999))
def test_feedback_is_least_squares_column_after_column(rows, rank, seed):
    random = np.random.default_rng(seed)
    A = random.standard_normal((rows, rank))
    half = random.standard_normal((rank + 2, rank))
    G = half.T @ half
    left, wanted, rounded = list(np.argsort(-np.diag(G))), A.copy(), np.empty_like(A)
    done: list[int] = []
    while left:  # round one column, then solve for all columns that are still to come
        k = left.pop(0)
        done.append(k)
        rounded[:, k] = torch.from_numpy(wanted[:, k]).to(HALF).double().numpy()
        if left:
            rest = A @ half.T - rounded[:, done] @ half[:, done].T
            wanted[:, left] = np.linalg.lstsq(half[:, left], rest.T, rcond=None)[0].T
    got = feedback(torch.from_numpy(A)[None], torch.from_numpy(G)[None], HALF)[0].numpy()
    np.testing.assert_array_equal(got, rounded)


@pytest.mark.parametrize("form", [GaugeForm((None, "a")), GaugeForm(("a", None))])
def test_the_parent_makes_up_for_rounding(form):
    net, moment = bw.lowrank(60, 90, 36), correlated(90)
    weight = np.random.default_rng(0).standard_normal(net.shape)
    cores = bw.fit(torch.from_numpy(weight), net, moment).cores
    plain = compact(net, cores, HALF, form=GaugeForm((None, None)))
    exact = compact(net, cores, torch.float64, moment, form)
    before = error(net, cores, nearest(net, cores, form), moment)
    after = error(net, cores, compact(net, cores, HALF, moment, form), moment)
    assert error(net, cores, exact, moment) < 1e-12
    assert after < 0.75 * before
    assert after < 2 * error(net, cores, plain, moment)


def test_loud_inputs_carry_the_identity_block():
    net, scale = bw.lowrank(30, 40, 10), torch.ones(40, dtype=torch.float64)
    scale[5:12] = 50.0
    cores = random_cores(net)
    with_scale = compact(net, cores, HALF, scale)
    moment = scale.square().diag()
    assert error(net, cores, with_scale, moment) < error(
        net, cores, compact(net, cores, HALF), moment
    )
    held = with_scale.cores()[1][:, 5:12]
    unscaled = compact(net, cores, torch.float64).cores()[1][:, 5:12]
    assert (held.abs().sum(0) == 1).sum() > (unscaled.abs().sum(0) == 1).sum()


def test_scale_second_moment_and_metric_say_the_same():
    net = bw.lowrank(12, 9, 4)
    cores = [torch.randn(s, dtype=torch.float64) for s in net.core_shapes]
    rms = torch.linspace(0.5, 2, 9, dtype=torch.float64)
    moment = rms.square().diag()
    ways = [compact(net, cores, HALF, s) for s in (rms, moment, Metric(moment * 7, 7, 0.0))]
    for way in ways[1:]:
        assert all(torch.equal(a, b) for a, b in zip(way.free, ways[0].free, strict=True))
    with pytest.raises(FitError, match="square"):
        moment_of(torch.ones(2, 3), 3)


def test_modes_are_weighed_by_their_marginals():
    net = bw.mpo((2, 3), (3, 4), 2)
    left, right = correlated(3, 1), correlated(4, 2)
    weigh = core_metrics(net, torch.from_numpy(np.kron(left.numpy(), right.numpy())))
    for metric, own, other in zip(weigh, (left, right), (right, left), strict=True):
        ((_, got),) = metric.groups
        expected = own.numpy() * np.trace(other.numpy()) / len(other)
        np.testing.assert_allclose(got.numpy(), expected, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize(("net", "most"), [
    (bw.mpo((4, 4, 4), (4, 4, 4), 8), 0.95),
    (bw.tree((4, 4, 4), (4, 4, 4), 6), 0.95),
    (bw.tucker((6, 6), (6, 6), 5), 0.95),
    (bw.btt((12, 6), (6, 12), 4), 0.95),
    (bw.ring((4, 4, 4), (4, 4, 4), 4), 0.99),  # the bond left open in a loop counts as white
], ids=str)  # fmt: skip
def test_other_networks_gain_too(net, most):
    moment = torch.eye(net.shape[1], dtype=torch.float64)
    gains = []
    for seed in range(4):
        cores = random_cores(net, seed)
        wanted = compact(net, cores).dense()
        for form in gauge_forms(net):
            before, after = (
                float((way.dense().double() - wanted).norm())
                for way in (nearest(net, cores, form), compact(net, cores, HALF, moment, form))
            )
            gains.append(after / before)
    assert np.median(gains) < most


@pytest.mark.parametrize("moment", [
    torch.ones(20, 20).double(),  # one direction
    torch.diag(torch.tensor([1.0] * 5 + [0.0] * 15)).double(),  # dead inputs
    torch.diag(torch.logspace(-12, 12, 20)).double(),
], ids=["rank one", "dead", "ill scaled"])  # fmt: skip
@pytest.mark.parametrize("dtype", [HALF, torch.float32, *thorough(torch.float16, torch.float64)])
def test_poor_metrics_do_no_harm(moment, dtype):
    net, errors = bw.lowrank(12, 20, 8), []
    bound = {HALF: 0.05, torch.float16: 0.02}.get(dtype, 1e-5)
    for seed in range(20):
        cores = random_cores(net, seed)
        wanted = cores[0] @ cores[1]
        for form in gauge_forms(net):
            c = compact(net, cores, dtype, moment, form)
            assert all(free.isfinite().all() and free.dtype == dtype for free in c.free)
            given = c.cores()[0].double() @ c.cores()[1].double()
            errors.append(float((given - wanted).norm() / wanted.norm()))
    assert max(errors) < bound  # one draw in 200 is above: its block at the pivots is near singular
    assert np.median(errors) < bound / 5
