"""The table of Tucker-2 says what the cut of each pair of ranks loses, measured by numpy."""

import numpy as np
import pytest
import torch

from bondwise import fit, lowrank, parse
from bondwise.errors import FitError, ShapeError
from bondwise.fit.metric import Kronecker, Metric
from bondwise.fit.tucker2 import tucker2_cut, tucker2_errors
from nets import noise

OUT, IN, TAPS = 6, 5, 4
GRID = [(1, 1), (2, 3), (6, 2), (4, 5), (6, 5)]


def weight() -> torch.Tensor:
    return noise((OUT, IN, TAPS), 3)


def factors() -> tuple[torch.Tensor, torch.Tensor]:
    rows = noise((20, IN), 1) * torch.logspace(0, -1, IN, dtype=torch.float64)
    taps = torch.arange(TAPS, dtype=torch.float64)
    channels = rows.T @ rows
    return channels / channels.diagonal().max(), 0.8 ** (taps[:, None] - taps).abs()


def patches() -> torch.Tensor:
    """A full second moment near a product."""
    near = noise((40, IN * TAPS), 2) @ torch.linalg.cholesky(torch.kron(*factors())).T
    moment = near.T @ near
    return moment / moment.diagonal().max()


def loss(cores, moment: torch.Tensor, of: torch.Tensor | None = None) -> float:
    dense = np.einsum("op,pqk,qi->oik", *(core.numpy() for core in cores))
    off = ((weight() if of is None else of).numpy() - dense).reshape(OUT, -1)
    return float(np.trace(off @ moment.numpy() @ off.T))


METRICS = {
    "none": (None, torch.eye(IN * TAPS, dtype=torch.float64)),
    "product": (Kronecker(*factors()), torch.kron(*factors())),
    "full": (Metric(patches() * 9, 9, 0.0), patches()),
}


@pytest.mark.parametrize("kind", METRICS)
@pytest.mark.parametrize("ranks", GRID)
def test_the_table_is_what_the_cut_loses(kind: str, ranks: tuple[int, int]):
    metric, moment = METRICS[kind]
    table = tucker2_errors(weight(), metric, inner=[q for _, q in GRID])
    cores = tucker2_cut(weight(), metric, ranks)
    assert [tuple(core.shape) for core in cores] == [
        (OUT, ranks[0]), (ranks[0], ranks[1], TAPS), (ranks[1], IN)
    ]  # fmt: skip
    total = loss([torch.zeros(OUT, 1), torch.zeros(1, 1, TAPS), torch.zeros(1, IN)], moment)
    assert float(table[ranks]) == pytest.approx(loss(cores, moment), abs=1e-9 * total)
    assert float(table[0, 0]) == pytest.approx(total)


@pytest.mark.parametrize("kind", METRICS)
def test_the_table_falls_and_is_low_rank_where_one_side_is_whole(kind: str):
    metric, moment = METRICS[kind]
    table = tucker2_errors(weight(), metric, inner=range(1, IN + 1))
    assert (table.diff(dim=0) <= 1e-9).all()
    if kind != "full":  # there a cut of the channels is best in the marginals
        assert (table.diff(dim=1) <= 1e-9).all()
    flat = weight().reshape(OUT, -1)
    for rank in (1, 3):
        best = fit(flat, lowrank(OUT, IN * TAPS, rank), moment).error
        assert float(table[rank, IN] / table[0, 0]) ** 0.5 == pytest.approx(best, rel=1e-6)


@pytest.mark.parametrize("kind", METRICS)
def test_the_table_is_near_what_a_fit_finds(kind: str):
    metric, _ = METRICS[kind]
    table = tucker2_errors(weight(), metric, inner=[2])
    net = parse("o p, p q k, q i -> (o) (i k)", o=OUT, i=IN, k=TAPS, p=3, q=2)
    best = fit(weight().reshape(OUT, -1), net, metric).error
    got = float(table[3, 2] / table[0, 0]) ** 0.5
    assert best * (1 - 1e-9) <= got < 1.15 * best


@pytest.mark.parametrize("full", [False, True])
def test_inputs_that_never_come_do_no_harm(full: bool):
    channels, kernel = factors()
    channels[2], channels[:, 2] = 0, 0
    kernel[0], kernel[:, 0] = 0, 0
    moment = torch.kron(channels, kernel)
    metric = moment if full else Kronecker(channels, kernel)
    for ranks in GRID:
        cores = tucker2_cut(weight(), metric, ranks)
        assert max(float(core.abs().max()) for core in cores) < 100
        table = tucker2_errors(weight(), metric, inner=[ranks[1]])
        assert float(table[ranks]) == pytest.approx(
            loss(cores, moment / moment.diagonal().max()), abs=1e-8
        )
    assert float(table[OUT, IN]) == pytest.approx(0, abs=1e-9)


def test_what_has_no_such_table_is_refused():
    with pytest.raises(ShapeError, match="give \\(out, in, taps\\)"):
        tucker2_errors(noise((4, 6)))
    with pytest.raises(FitError, match="Ranks"):
        tucker2_cut(weight(), None, (0, 2))
    with pytest.raises(FitError, match="5 channels x 3 taps"):
        tucker2_errors(weight(), Kronecker(torch.eye(5), torch.eye(3)))
    assert torch.isinf(tucker2_errors(weight(), patches(), inner=[2])[1:, 1]).all()
