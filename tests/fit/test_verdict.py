"""The report on a fit: low rank at the same stored numbers, by numpy, and the reason."""

import numpy as np
import pytest
import torch

from bondwise.fit.fit import fit
from bondwise.fit.verdict import lowrank_with
from bondwise.gauge.compact import compact
from bondwise.network.network import Network
from bondwise.topology.btt import btt
from bondwise.topology.kron import kron
from bondwise.topology.lowrank import lowrank
from bondwise.topology.mpo import mpo
from nets import LOOPS, TREES, noise, weight_of


def spectrum(weight: torch.Tensor, moment: torch.Tensor | None) -> np.ndarray:
    root = np.eye(weight.shape[1]) if moment is None else np.linalg.cholesky(moment.numpy())
    return np.linalg.svd(weight.numpy() @ root, compute_uv=False)


@pytest.mark.parametrize("metric", [False, True])
@pytest.mark.parametrize("net", [*TREES[:12], *LOOPS[:3]], ids=str)
def test_low_rank_beside_it_has_no_more_numbers_and_the_error_of_numpy(net: Network, metric: bool):
    weight, inputs = noise(net.shape), noise((3 * net.shape[1], net.shape[1]), 1)
    moment = inputs.T @ inputs if metric else None
    got = fit(weight, net, moment, report=True, sweeps=2)
    report = got.report
    assert report is not None
    assert report.stored == compact(got.network, got.cores).parameters
    out, inp = net.shape
    ranks = range(min(out, inp) + 1)
    assert report.rank == max(r for r in ranks if r * (out + inp - r) <= report.stored)
    values = spectrum(weight, moment)
    want = np.sqrt((values[report.rank :] ** 2).sum() / (values**2).sum())
    assert report.lowrank == pytest.approx(float(want), abs=1e-7)
    assert report.error == got.error
    if want > 1e-6:
        assert report.ratio == pytest.approx(got.error / float(want), rel=1e-5)
    if not metric:
        assert all(left <= got.error + 1e-9 for left in report.beyond.values())


def test_every_rank_is_the_largest_that_fits():
    for out, inp in [(1, 1), (3, 5), (8, 8), (7, 2)]:
        for numbers in range(out * inp + 3):
            want = max(r for r in range(min(out, inp) + 1) if r * (out + inp - r) <= numbers)
            assert lowrank_with(out, inp, numbers) == want


def test_a_format_that_lost_says_which_bond_it_was():
    low = noise((12, 1)) @ noise((1, 12), 1) + 0.01 * noise((12, 12), 2)
    report = fit(low, btt((3, 4), (4, 3), 1), report=True).report
    assert report is not None
    assert report.ratio < 2 or "lost" in str(report)
    lost = fit(low, kron((3, 4), (4, 3), 1), report=True).report
    assert lost is not None
    assert lost.ratio > 1
    assert str(lost).startswith("'s o1 i1, s o2 i2 -> (o1 o2) (i1 i2)' lost: error ")
    assert "bond s alone leaves" in str(lost)
    assert lost.beyond["s"] == pytest.approx(lost.error, rel=1e-6)


def test_a_format_that_won_and_one_that_drew():
    net = kron((3, 4), (4, 3), 1)
    won = fit(weight_of(net) + 1e-3 * noise((12, 12)), net, report=True).report
    assert won is not None
    assert won.ratio < 0.1
    assert "won" in str(won)
    drew = fit(torch.eye(4), lowrank(4, 4, 4), report=True).report
    assert drew is not None
    assert "drew" in str(drew)
    assert drew.ratio == 1


def test_the_held_out_error_is_in_the_report():
    held = torch.diag(torch.arange(1.0, 13))
    got = fit(noise((12, 12)), mpo((3, 4), (4, 3), 2), torch.eye(12), held_out=held, report=True)
    assert got.report is not None
    assert got.report.held_out == got.held_out is not None
    assert fit(torch.eye(3), lowrank(3, 3, 1)).report is None
