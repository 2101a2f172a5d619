"""A Kronecker metric gives what the product itself would, and the product is never formed."""

from itertools import pairwise

import numpy as np
import pytest
import tensorly
import torch
from tensorly.decomposition import partial_tucker

from bondwise import btt, cp, fit, lowrank, mpo, parse
from bondwise.errors import FitError
from bondwise.fit.fit import Fit
from bondwise.fit.metric import Kronecker, Metric
from bondwise.fit.moment import Coordinates, Moment
from bondwise.network.network import Network
from nets import noise, numpy_dense, random_cores, thorough, weight_of

tensorly.set_backend("numpy")

OUT, IN, TAPS = 8, 6, 4
TUCKER2 = "o p, p q y x, q i -> (o) (i y x)"
ALIGNED = [
    parse(TUCKER2, o=OUT, i=IN, y=2, x=2, p=3, q=3),
    parse("o a, a b i, b y x -> (o) (i y x)", o=OUT, i=IN, y=2, x=2, a=4, b=3),
    parse("o r, i r, y r -> (o) (i y)", o=OUT, i=IN, y=TAPS, r=3),
]
LOWRANK = [
    parse("o a, a i y x -> (o) (i y x)", o=OUT, i=IN, y=2, x=2, a=3),
    lowrank(OUT, IN * TAPS, 3),  # its one column mode need not split
    *thorough(parse("a i y, o a -> (o) (i y)", o=OUT, i=IN, y=TAPS, a=3)),
    *thorough(lowrank(40, IN * TAPS, 3)),
]
SWEPT = [
    parse("o p, p q, q i y, q x -> (o) (i y x)", o=OUT, i=IN, y=2, x=2, p=4, q=3),
    *thorough(
        cp(OUT, (3, 2, 2, 2), 3),
        parse("o1 a, a i o2 b, b j y -> (o1 o2) (i j y)", o1=4, o2=2, i=3, j=2, y=4, a=3, b=3),
        parse("g o a, g a i y -> (g o) (g i y)", g=2, o=4, a=2, i=3, y=TAPS),
        btt((4, 2), (IN, TAPS), 1),
    ),
]  # fmt: skip


def moments(seed: int = 1) -> tuple[torch.Tensor, torch.Tensor]:
    rows = noise((30, IN), seed) * torch.logspace(0, -1.5, IN, dtype=torch.float64)
    taps = torch.arange(TAPS, dtype=torch.float64)
    return rows.T @ rows, 0.8 ** (taps[:, None] - taps).abs()


def error_in(weight: torch.Tensor, got: Fit, *factors: torch.Tensor) -> float:
    """Relative error by a Cholesky factor of the whole product, in numpy."""
    full = np.kron(*(factor.numpy() for factor in factors))
    root = np.linalg.cholesky(full + 1e-14 * np.trace(full) * np.eye(len(full)))
    off = weight.numpy() - numpy_dense(got.network, got.cores)
    return float(np.linalg.norm(off @ root) / np.linalg.norm(weight.numpy() @ root))


@pytest.mark.parametrize("net", [*ALIGNED, *LOWRANK, *SWEPT], ids=str)
def test_the_error_is_that_in_the_product_and_no_more_than_with_the_product_given(net: Network):
    weight, (channels, kernel) = noise(net.shape, 3), moments()
    got = fit(weight, net, Kronecker(channels, kernel))
    assert got.error == pytest.approx(error_in(weight, got, channels, kernel), rel=1e-6)
    whole = fit(weight, net, torch.kron(channels, kernel))
    assert got.error <= whole.error * (1 + 2e-3)
    assert all(after < before for before, after in pairwise(got.sweeps))
    plain = fit(weight, net)
    assert got.error <= error_in(weight, plain, channels, kernel) + 1e-9


@pytest.mark.parametrize("net", LOWRANK, ids=str)
def test_low_rank_is_the_whitened_svd(net: Network):
    weight, (channels, kernel) = noise(net.shape), moments()
    got = fit(weight, net, Kronecker(Metric(channels * 7, 7, 0.0), kernel))
    white = weight.numpy() @ np.linalg.cholesky(np.kron(channels.numpy(), kernel.numpy()))
    values = np.linalg.svd(white, compute_uv=False) ** 2
    assert got.error == pytest.approx(np.sqrt(values[3:].sum() / values.sum()), rel=1e-7)


def test_tucker2_is_tensorlys_hooi_in_whitened_coordinates():
    weight, (channels, kernel) = noise((OUT, IN * TAPS)), moments()
    roots = np.kron(np.linalg.cholesky(channels.numpy()), np.linalg.cholesky(kernel.numpy()))
    white = (weight.numpy() @ roots).reshape(OUT, IN, TAPS)
    (core, factors), _ = partial_tucker(white, [3, 3], [0, 1], n_iter_max=500, tol=1e-12)
    near = np.einsum("pqk,op,iq->oik", core, *factors)
    best = float(np.linalg.norm(white - near) / np.linalg.norm(white))
    got = fit(weight, ALIGNED[0], Kronecker(channels, kernel))
    assert got.error <= best * (1 + 1e-4)


@pytest.mark.parametrize("net", [*ALIGNED[:2], *thorough(ALIGNED[2])], ids=str)
def test_inputs_that_never_come_do_no_harm(net: Network):
    """A dead channel, two that always move together, and a tap that is always padding."""
    channels, kernel = moments()
    channels[2], channels[:, 2] = 0, 0
    channels[4], channels[:, 4] = channels[3], channels[:, 3]
    channels[4, 4] = channels[3, 3]
    kernel[0], kernel[:, 0] = 0, 0
    weight = weight_of(net, seed=1)
    got = fit(weight, net, Kronecker(channels, kernel))
    assert got.error < (1e-7 if "r" not in net.bonds else 0.5)
    size = float(weight.abs().max())
    assert np.abs(numpy_dense(net, got.cores)).max() < 20 * size
    assert max(float(core.abs().max()) for core in got.cores) < 20 * size
    wide = net.resize(**dict.fromkeys(net.bonds, 6))  # more than there are inputs that come
    got = fit(noise(net.shape), wide, Kronecker(channels, kernel))
    assert max(float(core.abs().max()) for core in got.cores) < 1e3


def test_a_tolerance_is_met_with_the_smallest_ranks():
    net = parse(TUCKER2, o=OUT, i=IN, y=2, x=2, p=8, q=6)
    exact = net.resize(p=3, q=2)
    weight, metric = weight_of(exact, seed=2), Kronecker(*moments())
    assert fit(weight, net, metric, tol=1e-6).network.bonds == {"p": 3, "q": 2}
    sizes = [fit(noise(net.shape), net, metric, tol=tol).parameters for tol in (0.8, 0.4, 0.1)]
    assert sizes == sorted(sizes)
    assert sizes[0] < sizes[-1]


def test_coordinates_are_left_as_they_were_entered():
    net, (channels, kernel) = ALIGNED[0], moments()
    moment = Moment.of(channels, kernel)
    coordinates = Coordinates.of(net, moment)
    assert coordinates is not None
    assert coordinates.rest.identity
    cores = random_cores(net)
    back = torch.from_numpy(numpy_dense(net, coordinates.back(net, cores)))
    again = coordinates.roots.push(back)
    torch.testing.assert_close(again, torch.from_numpy(numpy_dense(net, cores)))
    full = torch.kron(channels, kernel)
    torch.testing.assert_close(moment.push(back), back @ full)
    torch.testing.assert_close(moment.dense(full), full)
    torch.testing.assert_close(
        coordinates.roots.push(coordinates.roots.push(back)), back @ full, atol=1e-8, rtol=1e-8
    )


def test_a_full_metric_on_one_core_is_taken_in_too():
    """All columns on one core: the fit is the exact one in whitened coordinates."""
    net = parse("o1 a, o2 b, a b i -> (o1 o2) (i)", o1=4, o2=2, i=12, a=2, b=2)
    weight, rows = noise(net.shape), noise((40, 12), 1)
    moment = rows.T @ rows
    white = weight @ torch.linalg.cholesky(moment)
    assert fit(weight, net, moment).error == pytest.approx(fit(white, net).error, rel=1e-6)


def test_modes_that_do_not_split_at_the_border_are_refused():
    metric = Kronecker(torch.eye(6) + 1, torch.eye(4) + 1)
    with pytest.raises(FitError, match=r"6 x 4 columns .* 4 x 6; give it modes that split at 6"):
        fit(torch.ones(4, 24), mpo((2, 2), (4, 6), 2), metric)
    with pytest.raises(FitError, match=r"6 channels x 4 taps came .* 25 columns"):
        fit(torch.ones(4, 25), lowrank(4, 25, 2), metric)
    with pytest.raises(FitError, match="symmetric"):
        Kronecker(torch.eye(6), torch.triu(torch.ones(4, 4)))


def test_identity_factors_and_scales_change_nothing():
    weight, net, (channels, kernel) = noise((OUT, IN * TAPS)), ALIGNED[0], moments()
    plain = fit(weight, net).error
    assert fit(weight, net, Kronecker(5 * torch.eye(IN), 3 * torch.eye(TAPS))).error == plain
    got = fit(weight, net, Kronecker(channels, kernel)).error
    tiny = fit(weight * 1e20, net, Kronecker(channels * 1e-30, kernel * 1e25)).error
    assert tiny == pytest.approx(got, rel=1e-6)
    eye = torch.eye(TAPS, dtype=torch.float64)
    one = fit(weight, net, Kronecker(channels, eye))
    assert one.error == pytest.approx(error_in(weight, one, channels, eye), rel=1e-6)
