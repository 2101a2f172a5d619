"""Every network in a metric: the error is that of numpy's Cholesky, falls, and beats no metric."""

from itertools import pairwise

import numpy as np
import pytest
import scipy.optimize
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bondwise import btt, kron, lowrank, mpo, parse, ring, tree, tucker
from bondwise.compute.run import dense
from bondwise.errors import FitError
from bondwise.fit.alternating import weighted
from bondwise.fit.alternating.weighted import Weighted
from bondwise.fit.fit import Fit, fit
from bondwise.fit.metric import Metric
from bondwise.fit.moment import Moment
from bondwise.fit.named import Named
from bondwise.network.network import Network
from bondwise.topology import registry
from nets import LOOPS, TREES, canon_first, noise, numpy_dense, random_cores, thorough, weight_of

ALL = [*TREES, *LOOPS[:6]]
SOME = [*TREES[:9], *TREES[-6:], LOOPS[0], LOOPS[2]]


def spread(size: int, seed: int, decades: float = 3.0) -> torch.Tensor:
    """A second moment with a decaying spectrum over a basis of no structure."""
    basis = torch.linalg.qr(noise((size, size), seed)).Q
    return (basis * torch.logspace(0, -decades, size, dtype=torch.float64)) @ basis.T


def off(weight: torch.Tensor, got: Fit) -> np.ndarray:
    return weight.double().numpy() - numpy_dense(got.network, got.cores)


def error_in(weight: torch.Tensor, got: Fit, moment: torch.Tensor) -> float:
    """Relative error by a Cholesky factor, in numpy."""
    root = np.linalg.cholesky(moment.numpy())
    wide = weight.double().numpy()
    return float(np.linalg.norm(off(weight, got) @ root) / np.linalg.norm(wide @ root))


@pytest.mark.parametrize("net", canon_first(ALL), ids=str)
def test_the_error_is_that_of_the_cores_falls_and_beats_no_metric(net: Network):
    weight, moment = noise(net.shape, 3), spread(net.shape[1], 1)
    got = fit(weight, net, moment)
    assert got.error == pytest.approx(error_in(weight, got, moment), rel=1e-8, abs=1e-10)
    assert got.sweeps[-1] == pytest.approx(got.error, rel=1e-8, abs=1e-10)
    assert all(after < before for before, after in pairwise(got.sweeps))
    assert got.error <= error_in(weight, fit(weight, net), moment) + 1e-12
    assert got.seconds > 0


@pytest.mark.parametrize("net", canon_first(SOME), ids=str)
def test_the_identity_changes_nothing(net: Network):
    weight = noise(net.shape)
    assert fit(weight, net, 7 * torch.eye(net.shape[1])).error == pytest.approx(
        fit(weight, net).error, abs=1e-12
    )


@pytest.mark.parametrize("net", canon_first(n for n in ALL if len(n.cores) < 4), ids=str)
def test_what_is_such_a_network_is_found_in_a_metric(net: Network):
    weight = weight_of(net, seed=1)
    got = fit(weight, net, spread(net.shape[1], 1, decades=1), sweeps=200, progress=1e-6)
    assert got.error < 1e-6


SINGLE_SITES = [mpo((6, 4), (4, 6), 3), *thorough(btt((6, 4), (3, 8), 2), kron((4, 6), (3, 5), 2))]


@pytest.mark.parametrize("net", SINGLE_SITES, ids=str)
def test_no_general_minimiser_finds_less(net: Network):
    """scipy's L-BFGS on all cores at once, from random starts."""
    weight, moment = noise(net.shape, 3), spread(net.shape[1], 1, decades=1.5)
    sizes = [core.numel() for core in random_cores(net)]
    right = torch.linalg.cholesky(moment)

    def loss(flat: np.ndarray) -> tuple[float, np.ndarray]:
        x = torch.from_numpy(flat).requires_grad_()
        cores = [
            part.reshape(shape) for part, shape in zip(x.split(sizes), net.core_shapes, strict=True)
        ]
        value = ((weight - dense(net, cores)) @ right).square().sum()
        (slope,) = torch.autograd.grad(value, x)
        return float(value.detach()), slope.numpy()

    best = min(
        scipy.optimize.minimize(
            loss,
            torch.cat([core.flatten() for core in random_cores(net, seed)]).numpy(),
            jac=True,
            method="L-BFGS-B",
            options={"maxiter": 3000, "maxfun": 6000},
        ).fun
        for seed in range(4)
    )
    least = float(np.sqrt(best) / np.linalg.norm(weight.numpy() @ right.numpy()))
    assert fit(weight, net, moment, sweeps=500, progress=1e-5).error <= least * 1.02


SLOW = {"cp", "ring", "tree"}


@pytest.mark.parametrize("name", [n if n not in SLOW else thorough(n)[0] for n in registry.names()])
def test_on_unseen_inputs_the_metric_fit_is_far_better(name: str):
    """Inputs of decaying spectrum; the median over weights, against the fit without a metric."""
    ratios = []
    for seed in range(3):
        net = registry.find(name).sized(
            12, 18, {"cp": 4, "ring": 2, "tree": 4, "btt": 1}.get(name, 3)
        )
        mix = noise((18, 18), seed) * torch.logspace(0, -2, 18, dtype=torch.float64)[:, None]
        seen, unseen = (noise((4000, 18), 10 + k + seed) @ mix for k in (0, 50))
        weight = noise((12, 18), 100 + seed)
        held = unseen.T @ unseen
        got = fit(weight, net, Metric(seen.T @ seen, 4000, 0.0), held_out=held)
        plain = fit(weight, net, held_out=held)
        assert got.held_out == pytest.approx(error_in(weight, got, held), rel=1e-8)
        assert got.held_out is not None
        assert plain.held_out is not None
        ratios.append(got.held_out / plain.held_out)
    assert np.median(ratios) <= 0.7


@settings(deadline=None, max_examples=10)
@given(
    st.sampled_from(["mpo", "ring", "tucker", "cp", "btt", "tree", "kron"]),
    st.integers(1, 13),
    st.integers(1, 13),
    st.integers(1, 4),
    st.integers(0, 14),
)
def test_the_error_never_rises_for_any_sizes(name: str, out: int, inp: int, rank: int, tokens: int):
    """Fewer tokens than inputs, dead inputs and constant inputs too."""
    net = registry.find(name).sized(out, inp, rank)
    weight, inputs = noise((out, inp), rank), noise((tokens + 1, inp), rank + 1)
    inputs[:, : tokens % inp] = float(tokens % 3 == 0)
    if not inputs.any():
        inputs[0, 0] = 1
    moment = inputs.T @ inputs
    got = fit(weight, net, moment)
    assert all(after <= before for before, after in pairwise(got.sweeps))
    assert all(torch.isfinite(core).all() for core in got.cores)
    norm = np.linalg.norm(weight.numpy() @ inputs.numpy().T)
    true = np.linalg.norm(off(weight, got) @ inputs.numpy().T) / norm if norm > 1e-12 else 0.0
    assert got.error == pytest.approx(float(true), abs=1e-6)


SMALL = [mpo((3, 4), (4, 3), 2), btt((3, 4), (4, 3), 1), *thorough(tucker((3, 4), (4, 3), 2))]
NETS = [lowrank(12, 12, 2), *SMALL, *thorough(LOOPS[0])]


@pytest.mark.parametrize("net", NETS, ids=str)
@pytest.mark.parametrize(("scale", "by"), [(1, 1e30), (1, 1e-30), (1e30, 1e-30), (1e-30, 1e30)])
def test_no_scale_matters(net: Network, scale: float, by: float):
    weight, moment = noise(net.shape), spread(net.shape[1], 1)
    want = fit(weight, net, moment).error
    assert fit(weight * scale, net, moment * by).error == pytest.approx(want, rel=1e-6)
    assert fit(weight, net, Metric(moment * by, 5, 0.0)).error == pytest.approx(want, rel=1e-6)


@pytest.mark.parametrize("net", NETS, ids=str)
def test_inputs_that_never_come_do_no_harm(net: Network):
    weight, inputs = noise(net.shape), noise((30, net.shape[1]), 1)
    inputs[:, 1::2] = 0
    got = fit(weight, net, inputs.T @ inputs)
    assert all(torch.isfinite(core).all() for core in got.cores)
    assert got.error < fit(weight, net).error + 0.2
    token = inputs[0].numpy()  # a single one
    alone = fit(weight, net, inputs[:1].T @ inputs[:1])
    least = np.linalg.norm(off(weight, fit(weight, net)) @ token)
    assert alone.error <= 0.5 * least / np.linalg.norm(weight.numpy() @ token)
    unmet = weight.clone()
    unmet[:, ::2] = 0
    got = fit(unmet, net, inputs.T @ inputs)
    assert got.error == 0
    assert all(torch.isfinite(core).all() for core in got.cores)


@pytest.mark.parametrize("net", NETS, ids=str)
def test_an_indefinite_metric_is_refused(net: Network):
    size = net.shape[1]
    indefinite = 2 * torch.ones(size, size) - torch.eye(size)
    for bad in (indefinite, Metric(indefinite, 1, 0.0)):
        with pytest.raises(FitError, match="negative eigenvalue"):
            fit(noise(net.shape), net, bad)


@pytest.mark.parametrize(
    "net",
    [ring((3, 4), (4, 3), 3), *thorough(mpo((6, 4), (4, 6), 9), tree((3, 2, 2), (2, 3, 2), 5))],
    ids=str,
)
def test_a_tolerance_in_a_metric_is_met_with_fewer_numbers_the_larger_it_is(net: Network):
    weight, moment = noise(net.shape), spread(net.shape[1], 1)
    full = fit(weight, net, moment)
    sizes = []
    for tol in (0.9, 0.6, 0.3):
        got = fit(weight, net, moment, tol=tol)
        assert got.error <= tol or got.error == pytest.approx(full.error)
        sizes.append(got.parameters)
    assert sizes == sorted(sizes)
    assert sizes[0] < sizes[-1]


@pytest.mark.parametrize("net", SMALL, ids=str)
def test_gradients_in_float32_end_where_the_exact_half_steps_end(net: Network, monkeypatch):
    """The way of large weights, forced on a small one."""
    weight, moment = noise(net.shape, 3), spread(net.shape[1], 1, decades=1)
    exact = fit(weight, net, moment, sweeps=300, progress=1e-7)
    monkeypatch.setattr(weighted, "SMALL", 0)
    monkeypatch.setattr(weighted, "_FINE", 0)
    got = fit(weight, net, moment, sweeps=300, progress=1e-7)
    assert got.error == pytest.approx(error_in(weight, got, moment), rel=1e-8)
    assert all(after < before for before, after in pairwise(got.sweeps))
    assert got.error == pytest.approx(exact.error, rel=0.03)


@pytest.mark.parametrize("net", [mpo((3, 2), (2, 3), 2), btt((3, 2), (2, 3), 1), LOOPS[6]], ids=str)
def test_a_half_step_is_numpys_least_squares(net: Network):
    weight, moment = noise(net.shape, 3), spread(net.shape[1], 1, decades=1)
    goal = Weighted(weight, Moment.of(moment))
    cores = random_cores(net)
    root = np.linalg.cholesky(moment.numpy())
    columns = [
        numpy_dense(net, [cores[0], torch.from_numpy(e).reshape(cores[1].shape), *cores[2:]]) @ root
        for e in np.eye(cores[1].numel())
    ]
    system = np.stack([column.ravel() for column in columns], axis=1)
    best = np.linalg.lstsq(system, (weight.numpy() @ root).ravel(), rcond=None)[0]
    parts = [Named(core, names) for core, names in zip(cores, net.names, strict=True)]
    metric = weighted._MetricOperand.of(net, goal)
    _, pushed = goal.pull(net, cores)
    got = weighted._half_step(metric, goal, parts, 1, pushed)
    np.testing.assert_allclose(system @ got.tensor.numpy().ravel(), system @ best, atol=1e-7)


def test_sweeping_stops_after_two_sweeps_that_gain_less_than_asked():
    net = mpo((3, 4), (4, 3), 2)
    weight, moment = noise(net.shape), spread(net.shape[1], 1)
    assert len(fit(weight, net, moment, progress=0.999).sweeps) == 3
    assert len(fit(weight, net, moment, sweeps=5, progress=0.0).sweeps) == 6


def test_a_network_of_one_core_is_solved_in_one_sweep():
    net = parse("b o i -> (b o) (i b)", b=3, o=2, i=4)
    weight, moment = noise(net.shape), spread(12, 1)
    got = fit(weight, net, moment)
    # by hand: each block by numpy's least squares on its own inputs, all inputs as right-hand side
    root = np.linalg.cholesky(moment.numpy())
    want = 0.0
    for b in range(3):
        rows = weight.numpy()[2 * b : 2 * b + 2] @ root
        own = root[b::3]
        want += np.linalg.lstsq(own.T, rows.T, rcond=None)[1].sum()
    assert got.error == pytest.approx(np.sqrt(want) / np.linalg.norm(weight.numpy() @ root))


@pytest.mark.parametrize("inputs", [500, 2000])
def test_sums_of_float32_over_inputs_that_are_alike_are_a_metric(inputs):
    """Rounded, their least eigenvalue is below zero by more than a small share of a variance."""
    x = torch.randn(400, 1) @ torch.ones(1, inputs) + 1e-3 * torch.randn(400, inputs)
    moment = x.T @ x
    unit = (moment / moment.diagonal().max()).double()
    assert torch.linalg.eigvalsh((unit + unit.T) / 2).min() < 0
    weight = torch.randn(6, inputs)
    found = fit(weight, lowrank(6, inputs, 3), moment)
    assert 0 <= found.error < 1
