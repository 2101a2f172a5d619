"""Which way of storing a weight wins, and weights that share a second core."""

import numpy as np
import pytest
import torch

import bondwise as bw
from bondwise.errors import BudgetError, FitError, ShapeError
from bondwise.gauge.compact import GaugeForm, compact, gauge_form, gauge_forms
from bondwise.gauge.storage import (
    choose_storage,
    compact_shared,
    rounding_error,
    shared_bits,
    shared_numbers,
)
from bondwise.layers.layers import TensorLinear

HALF, SINGLE = torch.bfloat16, torch.float32


def draw(net, seed=0):
    random = torch.Generator().manual_seed(seed)
    return [torch.randn(s, generator=random, dtype=torch.float64) for s in net.core_shapes]


def moment_over(size, seed=0):
    x = np.random.default_rng(seed).standard_normal((3 * size, size)) * np.geomspace(1, 0.05, size)
    return torch.from_numpy(x.T @ x / len(x))


def test_the_rounding_error_is_that_of_the_outputs():
    net, moment = bw.mpo((3, 4), (4, 5), 6), moment_over(20)
    cores = draw(net)
    stored = compact(net, cores, HALF, moment)
    one, two = (
        np.einsum("oia,apq->opiq", *[core.double().numpy() for core in own]).reshape(12, 20)
        for own in (cores, stored.cores())
    )
    half = np.linalg.cholesky(moment.numpy())
    expected = np.linalg.norm((one - two) @ half) / np.linalg.norm(one @ half)
    assert rounding_error(stored, cores, moment) == pytest.approx(expected, rel=1e-9)
    assert rounding_error(stored, [core * 0 for core in cores]) > 0


@pytest.mark.parametrize("net", [
    bw.lowrank(20, 30, 9),
    bw.mpo((4, 5), (6, 5), 7),
    bw.mpo((2, 5, 2), (3, 5, 2), (3, 4)),
    bw.btt((4, 5), (6, 5), 3),
    bw.cp((4, 5), (6, 5), 6),
    bw.ring((4, 5, 2), (3, 5, 2), 3),
], ids=str)  # fmt: skip
@pytest.mark.parametrize("dtype", [HALF, (HALF, SINGLE)])
def test_the_least_error_within_the_budget_wins(net, dtype):
    cores, moment = draw(net), moment_over(net.shape[1])
    dtypes = dtype if isinstance(dtype, tuple) else (dtype,)
    plain = GaugeForm((None,) * len(net.cores))
    ways = [compact(net, cores, d, moment, f) for d in dtypes for f in (*gauge_forms(net), plain)]
    sizes = sorted({way.bytes for way in ways})
    for budget in (None, *sizes, sizes[-1] + 99):
        best = choose_storage(net, cores, dtype, moment, budget)
        allowed = [way for way in ways if way.bytes <= (budget or sizes[0])]
        assert best.bytes <= (budget or sizes[0])
        assert rounding_error(best, cores, moment) == pytest.approx(
            min(rounding_error(way, cores, moment) for way in allowed), rel=1e-9
        )
    with pytest.raises(BudgetError, match=f"smallest way takes {sizes[0]}"):
        choose_storage(net, cores, dtype, moment, sizes[0] - 1)


def test_bytes_are_those_of_numbers_and_pivots():
    stored = compact(bw.lowrank(20, 30, 9), draw(bw.lowrank(20, 30, 9)), HALF)
    assert stored.bytes == 2 * 9 * (20 + 30 - 9) + 4  # 30 inputs: 4 bytes of bits


def test_among_equals_the_fewest_bytes_win():
    net = bw.lowrank(8, 8, 3)
    cores = [torch.eye(8, 3).double(), torch.eye(3, 8).double()]  # exact in every way
    best = choose_storage(net, cores, (SINGLE, HALF), budget=10_000)
    assert best.free[0].dtype == HALF
    assert best.form in gauge_forms(net)


def test_room_is_used_for_precision():
    net = bw.lowrank(30, 40, 10)
    cores = draw(net)
    small = choose_storage(net, cores, (HALF, SINGLE))
    large = choose_storage(net, cores, (HALF, SINGLE), budget=4 * small.bytes)
    assert (small.free[0].dtype, large.free[0].dtype) == (HALF, SINGLE)
    assert rounding_error(large, cores) < 1e-3 * rounding_error(small, cores)


@pytest.mark.parametrize("rank", [1, 5, 9])
@pytest.mark.parametrize("dtype", [torch.float64, HALF])
def test_weights_share_their_second_core(rank, dtype):
    outs, inp = [12, 6, 7], 9
    nets = [bw.lowrank(out, inp, rank) for out in outs]
    V, scale = draw(nets[0])[1], torch.linspace(0.5, 2, inp, dtype=torch.float64)
    cores = [[draw(net, seed)[0], V] for seed, net in enumerate(nets)]
    shared = compact_shared(nets, cores, dtype, scale)
    for net, own, stored in zip(nets, cores, shared, strict=True):
        assert stored.free[1] is shared[0].free[1]
        assert stored.pivots[1] is shared[0].pivots[1]
        expected = own[0].numpy() @ V.numpy()
        tol = 1e-10 if dtype == torch.float64 else 0.02
        U, F = (core.double().numpy() for core in stored.cores())
        missed = np.abs(U @ F - expected)
        assert missed.max() <= tol * np.abs(expected).max()
        layer = TensorLinear(net, stored.free, form=stored.form, pivots=stored.pivots)
        x = torch.randn(4, inp, dtype=dtype)
        assert layer._runs_compact
        torch.testing.assert_close(layer(x), x @ stored.dense().T, rtol=0.02, atol=0.1)
    numbers = sum(stored.free[0].numel() for stored in shared) + shared[0].free[1].numel()
    assert numbers == shared_numbers(outs, inp, rank) == rank * (sum(outs) + inp - rank)
    assert shared[0].bits == shared_bits(inp, rank)


def test_modes_of_a_shared_weight_stay():
    nets = [bw.lowrank((3, 4), (2, 4), 3), bw.lowrank(5, 8, 3)]
    V = torch.randn(3, 8, dtype=torch.float64)
    U = [torch.randn(12, 3, dtype=torch.float64), torch.randn(5, 3, dtype=torch.float64)]
    cores = [[U[0].reshape(3, 4, 3), V.reshape(3, 2, 4)], [U[1], V]]
    for u, stored in zip(U, compact_shared(nets, cores), strict=True):
        np.testing.assert_allclose(stored.dense(), u.numpy() @ V.numpy(), rtol=1e-10, atol=1e-10)


def test_a_shared_core_is_pinned_on_the_input_side_alone():
    net = bw.lowrank(9, 6, 6)
    (stored,) = compact_shared([net], [draw(net)])
    assert stored.form.pinned == (None, "a") == gauge_form(net).pinned
    wide = bw.lowrank(9, 4, 5)  # no identity block of 5 in 4 inputs
    assert gauge_form(wide).pinned == ("a", None)
    with pytest.raises(ShapeError):
        compact_shared([wide], [draw(wide)])


def test_what_cannot_be_shared():
    net = bw.lowrank(6, 8, 3)
    cores = draw(net)
    with pytest.raises(ShapeError, match="No networks"):
        compact_shared([], [])
    with pytest.raises(ShapeError, match="other values"):
        compact_shared([net, net], [cores, draw(net, 1)])
    with pytest.raises(ShapeError, match="share equal ones"):
        compact_shared([net, bw.lowrank(6, 8, 2)], [cores, draw(bw.lowrank(6, 8, 2))])
    with pytest.raises(ShapeError, match="give low rank"):
        compact_shared([bw.mpo((2, 3), (2, 4), 3)], [draw(bw.mpo((2, 3), (2, 4), 3))])
    with pytest.raises(FitError, match="not finite"):
        compact_shared([net], [[cores[0] * float("nan"), cores[1]]])
