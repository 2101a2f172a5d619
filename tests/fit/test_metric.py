"""Moments add up to X^T X whatever comes in, and a metric is refused unless it is one."""

import numpy as np
import pytest
import torch

from bondwise.errors import DataError, FitError
from bondwise.fit.fit import fit
from bondwise.fit.metric import Metric, Moments, held_out_shrinkage
from bondwise.fit.whitened import whitened_split
from bondwise.network.network import parse
from bondwise.topology.lowrank import lowrank
from nets import noise, thorough


@pytest.mark.parametrize(
    "dtype", [torch.bfloat16, torch.float64, *thorough(torch.float16, torch.float32)]
)
def test_moments_are_the_sum_over_all_tokens(dtype: torch.dtype):
    batches = [noise((2, 5, 6)).to(dtype), noise((7, 6), 1).to(dtype), noise((6,), 2).to(dtype)]
    moments = Moments(6, dtype=torch.float64)
    for batch in batches:
        moments.add(batch)
    rows = np.concatenate([batch.double().numpy().reshape(-1, 6) for batch in batches])
    assert moments.tokens == len(rows) == 18
    np.testing.assert_allclose(moments.metric().second_moment.numpy(), rows.T @ rows, rtol=1e-12)


def test_half_inputs_are_summed_in_float32():
    moments = Moments(2)
    moments.add(torch.ones(5000, 2, dtype=torch.bfloat16))
    moments.add(torch.ones(1, 2, dtype=torch.bfloat16))
    assert moments.metric().second_moment[0, 1] == 5001  # bfloat16 has no such number


def test_shrinkage_keeps_the_variances_and_fades_and_a_metric_does_not_move():
    moments = Moments(3)
    first = noise((5, 3)).float()
    moments.add(first)
    few = moments.metric()
    moments.add(noise((995, 3)).float())
    many = moments.metric()
    assert (few.shrinkage, many.shrinkage) == (3 / (3 + 5 / 4), 3 / (3 + 1000 / 4))
    torch.testing.assert_close(few.second_moment, first.T @ first)  # more came since
    plain = few.second_moment.double() / 5
    torch.testing.assert_close(few.shrunk().diagonal(), plain.diagonal())
    torch.testing.assert_close(few.shrunk()[0, 1], plain[0, 1] * (1 - few.shrinkage))
    assert moments.metric(shrinkage=0.0).shrunk()[0, 1] == many.second_moment[0, 1].double() / 1000


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_bad_inputs_are_refused_and_not_counted(bad: float):
    moments = Moments(2)
    with pytest.raises(DataError, match="NaN or infinity"):
        moments.add(torch.tensor([[1.0, bad]]))
    with pytest.raises(DataError, match="last dimension must be 2"):
        moments.add(torch.ones(2, 3))
    with pytest.raises(DataError, match="No inputs"):
        moments.metric()
    moments.add(torch.zeros(3, 2))
    with pytest.raises(DataError, match="zero"):
        moments.metric()
    assert moments.empty
    moments.add(torch.ones(1, 2))
    assert not moments.empty


BAD_METRICS = {
    "shape (2, 3)": torch.ones(2, 3),
    "torch.int64": torch.eye(3, dtype=torch.int64),
    "NaN": torch.full((3, 3), float("nan")),
    "zeros": torch.zeros(3, 3),
    "symmetric": torch.eye(3) + torch.tensor([[0.0, 1, 0], [0, 0, 0], [0, 0, 0]]),
    "negative variance": torch.diag(torch.tensor([1.0, -1, 1])),
    "over 4 inputs": torch.eye(4),
}


@pytest.mark.parametrize("words", BAD_METRICS)
def test_what_is_no_metric_is_refused(words: str):
    with pytest.raises(FitError) as caught:
        fit(torch.eye(3), lowrank(3, 3, 1), metric=BAD_METRICS[words])
    assert words in str(caught.value)


def test_a_metric_checks_its_numbers():
    for tokens, shrinkage in [(0, 0.5), (1, -0.1), (1, 1.1)]:
        with pytest.raises(FitError, match="shrinkage"):
            Metric(torch.eye(2), tokens, shrinkage)


def test_the_moment_is_shrunk_and_stays_as_it_came():
    moment = torch.cov(torch.randn(6, 20).double())
    metric = Metric(moment.clone(), 20, 0.25)
    for _ in range(2):
        wanted = 0.75 * moment.numpy() / 20 + 0.25 * np.diag(np.diag(moment.numpy())) / 20
        np.testing.assert_allclose(metric.shrunk().numpy(), wanted)
        fit(torch.randn(4, 6), lowrank(4, 6, 2), metric)
    assert torch.equal(metric.second_moment, moment)


def white(weight: torch.Tensor, moment: torch.Tensor, rank: int) -> float:
    """The least relative error in a positive definite metric, by Cholesky and numpy alone."""
    values = np.linalg.svd(weight.numpy() @ np.linalg.cholesky(moment.numpy()), compute_uv=False)
    return float(np.sqrt((values[rank:] ** 2).sum() / (values**2).sum()))


def error_in(weight: torch.Tensor, cores: tuple[torch.Tensor, ...], moment: torch.Tensor) -> float:
    off = (weight - cores[0].double() @ cores[1].double()).numpy()
    total = np.trace(weight.numpy() @ moment.numpy() @ weight.numpy().T)
    return float(np.sqrt(np.trace(off @ moment.numpy() @ off.T) / total))


@pytest.mark.parametrize(("out", "inp"), [(8, 12), (12, 8), (9, 9), (1, 5), (5, 1)])
@pytest.mark.parametrize("rank", [1, 3, 5])
def test_low_rank_in_a_metric_is_the_whitened_svd(out: int, inp: int, rank: int):
    weight, inputs = noise((out, inp)), noise((40, inp), 1) * torch.arange(1, inp + 1)
    moment = inputs.T @ inputs
    got = fit(weight, lowrank(out, inp, rank), metric=moment)
    kept = got.network.bonds["a"]
    assert got.error == pytest.approx(white(weight, moment, kept), abs=1e-9)
    assert got.error == pytest.approx(error_in(weight, got.cores, moment), abs=1e-9)
    plain = fit(weight, lowrank(out, inp, rank))
    assert got.error <= error_in(weight, plain.cores, moment) + 1e-12


@pytest.mark.parametrize(("out", "inp"), [(8, 12), (12, 8)])
def test_dead_inputs_do_no_harm(out: int, inp: int):
    weight, inputs = noise((out, inp)), noise((40, inp), 1)
    inputs[:, ::2] = 0
    moment = inputs.T @ inputs
    live = weight[:, 1::2]
    alive = moment[1::2, 1::2]
    got = fit(weight, lowrank(out, inp, 2), metric=moment)
    assert all(torch.isfinite(core).all() for core in got.cores)
    assert got.error == pytest.approx(white(live, alive, 2), abs=1e-9)
    enough = fit(weight, lowrank(out, inp, inp // 2), metric=moment)
    assert enough.error < 1e-9


def test_tol_in_a_metric_takes_the_smallest_rank():
    weight, inputs = noise((10, 14)), noise((60, 14), 1) * torch.logspace(0, -1, 14)
    moment = inputs.T @ inputs
    for tol in (0.7, 0.3, 0.05, 1e-7):
        got = fit(weight, lowrank(10, 14, 10), metric=moment, tol=tol)
        rank = got.network.bonds["a"]
        assert got.error <= tol
        assert rank == 1 or white(weight, moment, rank - 1) > tol
    limit = fit(weight, lowrank(10, 14, 3), metric=moment, tol=1e-3)
    assert limit.network.bonds == {"a": 3}
    assert limit.error == pytest.approx(white(weight, moment, 3))


def test_exact_rank_is_found_in_a_metric_to_rounding():
    weight, inputs = noise((12, 3)) @ noise((3, 20), 4), noise((60, 20), 1)
    got = fit(weight, lowrank(12, 20, 3), metric=inputs.T @ inputs)
    assert got.error < 1e-10


@pytest.mark.parametrize("reverse", [False, True])
def test_low_rank_is_told_by_structure(reverse: bool):
    """Core order, names, axes and more modes change nothing."""
    weight, inputs = noise((6, 8)), noise((30, 8), 1)
    moment = inputs.T @ inputs
    text = "i2 x i1, q x p" if reverse else "p q x, i1 i2 x"
    net = parse(f"{text} -> (p q) (i1 i2)", p=2, q=3, x=2, i1=4, i2=2)
    got = fit(weight, net, metric=moment)
    assert got.error == pytest.approx(white(weight, moment, 2), abs=1e-9)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_shrinkage_chosen_is_the_best_on_held_out_tokens(dtype: torch.dtype):
    mix = noise((16, 16)) * torch.logspace(0, -1, 16, dtype=torch.float64)
    few, many = noise((24, 16), 1) @ mix.T, noise((4000, 16), 2) @ mix.T
    weight = noise((12, 16), 3).to(dtype)
    fitting, held = Metric(few.T @ few, 24, 0.3), Metric(many.T @ many, 4000, 0.0)
    candidates = (0.0, 0.1, 0.3, 0.6, 1.0)
    got = held_out_shrinkage(weight, fitting, held, rank=4, candidates=candidates)
    errors = [
        fit(weight.double(), lowrank(12, 16, 4), Metric(few.T @ few, 24, s), held_out=held).held_out
        for s in candidates
    ]
    assert got.shrinkage == candidates[int(np.argmin(errors))]
    assert 0 < got.shrinkage < 1
    assert got.second_moment is fitting.second_moment


@pytest.mark.parametrize(("out", "inp"), [(8, 12), (12, 8)])
def test_low_rank_in_float32_is_that_of_float64(out: int, inp: int):
    weight, inputs = noise((out, inp)), noise((40, inp), 1)
    moment = inputs.T @ inputs / 40
    for rank in (2, 5):
        single = whitened_split(weight.float(), moment.float(), rank)
        got = error_in(weight, (single.left, single.right), moment)
        assert got == pytest.approx(white(weight, moment, rank), rel=1e-5)
