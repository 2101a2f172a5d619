"""The table of Tucker-2 says what the cut of each pair of ranks loses, measured by numpy."""

import numpy as np
import pytest
import torch

from bondwise import fit, lowrank, parse
from bondwise.fit.kernels.tucker2 import Basis, tucker2_cut, tucker2_errors
from bondwise.fit.metric import Kronecker, Metric
from nets import noise

OUT, IN, TAPS = 6, 5, 4
GRID = [(1, 1), (2, 3), (6, 2), (4, 5), (6, 5)]


def weight() -> torch.Tensor:
    return noise((OUT, IN, TAPS), 3)


def factors() -> tuple[torch.Tensor, torch.Tensor]:
    rows = noise((20, IN), 1) * torch.logspace(0, -1, IN, dtype=torch.float64)
    taps = torch.arange(TAPS, dtype=torch.float64)
    return rows.T @ rows, 0.8 ** (taps[:, None] - taps).abs()


def patches(seed: int = 2) -> torch.Tensor:
    """A full second moment near a product."""
    near = noise((40, IN * TAPS), seed) @ torch.linalg.cholesky(torch.kron(*factors())).T
    return near.T @ near


def energy(matrix: torch.Tensor, moment: torch.Tensor) -> float:
    flat = matrix.reshape(OUT, -1).numpy()
    return float(np.trace(flat @ moment.numpy() @ flat.T))


def loss(cut: torch.Tensor, moment: torch.Tensor) -> float:
    off = weight().reshape(OUT, -1) - cut.reshape(OUT, -1)
    return energy(off, moment) / energy(weight(), moment)


METRICS = {
    "none": (None, torch.eye(IN * TAPS, dtype=torch.float64)),
    "product": (Kronecker(*factors()), torch.kron(*factors())),
    "full": (Metric(patches() * 9, 9, 0.0), patches()),
}


@pytest.mark.parametrize("kind", METRICS)
def test_the_table_is_what_the_cut_loses_and_the_cut_has_its_ranks(kind: str):
    metric, moment = METRICS[kind]
    for p, q in GRID:
        (row,) = tucker2_errors(Basis.of(weight(), metric), [q])
        cut = tucker2_cut(Basis.of(weight(), metric), (p, q))
        assert float(row[0]) == pytest.approx(1)
        assert float(row[p]) == pytest.approx(loss(cut, moment), abs=1e-9)
        whole = cut.reshape(OUT, IN, TAPS)
        assert torch.linalg.matrix_rank(whole.reshape(OUT, -1), rtol=1e-6) <= p
        assert torch.linalg.matrix_rank(whole.movedim(1, 0).flatten(1), rtol=1e-6) <= q


def test_errors_are_measured_on_other_patches_where_they_are_given():
    metric, _ = METRICS["full"]
    other = patches(7)
    for p, q in GRID:
        (row,) = tucker2_errors(Basis.of(weight(), metric), [q], Metric(other, 40, 0.0))
        assert float(row[p]) == pytest.approx(
            loss(tucker2_cut(Basis.of(weight(), metric), (p, q)), other), abs=1e-9
        )


@pytest.mark.parametrize("kind", METRICS)
def test_with_all_inputs_it_is_low_rank_and_else_near_what_a_fit_finds(kind: str):
    metric, moment = METRICS[kind]
    whole, some = tucker2_errors(Basis.of(weight(), metric), [IN, 2])
    flat = weight().reshape(OUT, -1)
    for rank in (1, 3):
        best = fit(flat, lowrank(OUT, IN * TAPS, rank), moment).error
        assert float(whole[rank]) ** 0.5 == pytest.approx(best, rel=1e-6)
    net = parse("o p, p q k, q i -> (o) (i k)", o=OUT, i=IN, k=TAPS, p=3, q=2)
    best = fit(flat, net, metric).error
    assert best * (1 - 1e-9) <= float(some[3]) ** 0.5 < 1.15 * best


@pytest.mark.parametrize("full", [False, True])
def test_inputs_that_never_come_do_no_harm(full: bool):
    channels, kernel = factors()
    channels[2], channels[:, 2] = 0, 0
    kernel[0], kernel[:, 0] = 0, 0
    moment = torch.kron(channels, kernel)
    metric = moment if full else Kronecker(channels, kernel)
    for p, q in GRID:
        cut = tucker2_cut(Basis.of(weight(), metric), (p, q))
        assert float(cut.abs().max()) < 20
        (row,) = tucker2_errors(Basis.of(weight(), metric), [q])
        assert float(row[p]) == pytest.approx(loss(cut, moment), abs=1e-6)
