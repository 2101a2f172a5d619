"""Weights that share a second core store it once, and run as they are stored."""

import numpy as np
import pytest
import torch

import bondwise as bw
from bondwise.errors import FitError, ShapeError
from bondwise.gauge.compact import gauge_form, pivot_bits
from bondwise.gauge.shared import compact_shared
from bondwise.layers.linear import TensorLinear
from nets import random_cores

HALF = torch.bfloat16


@pytest.mark.parametrize("rank", [1, 5, 9])
@pytest.mark.parametrize("dtype", [torch.float64, HALF])
def test_weights_share_their_second_core(rank, dtype):
    outs, inp = [12, 6, 7], 9
    nets = [bw.lowrank(out, inp, rank) for out in outs]
    V, scale = random_cores(nets[0])[1], torch.linspace(0.5, 2, inp, dtype=torch.float64)
    cores = [[random_cores(net, seed)[0], V] for seed, net in enumerate(nets)]
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
    assert numbers == rank * (sum(outs) + inp - rank)
    assert shared[0].bits == pivot_bits(nets[0])


def test_modes_of_a_shared_weight_stay():
    nets = [bw.lowrank((3, 4), (2, 4), 3), bw.lowrank(5, 8, 3)]
    V = torch.randn(3, 8, dtype=torch.float64)
    U = [torch.randn(12, 3, dtype=torch.float64), torch.randn(5, 3, dtype=torch.float64)]
    cores = [[U[0].reshape(3, 4, 3), V.reshape(3, 2, 4)], [U[1], V]]
    for u, stored in zip(U, compact_shared(nets, cores), strict=True):
        np.testing.assert_allclose(stored.dense(), u.numpy() @ V.numpy(), rtol=1e-10, atol=1e-10)


def test_a_shared_core_is_pinned_on_the_input_side_alone():
    net = bw.lowrank(9, 6, 6)
    (stored,) = compact_shared([net], [random_cores(net)])
    assert stored.form.pinned == (None, "a") == gauge_form(net).pinned
    wide = bw.lowrank(9, 4, 5)  # no identity block of 5 in 4 inputs
    assert gauge_form(wide).pinned == ("a", None)
    with pytest.raises(ShapeError):
        compact_shared([wide], [random_cores(wide)])


def test_what_cannot_be_shared():
    net = bw.lowrank(6, 8, 3)
    cores = random_cores(net)
    with pytest.raises(ShapeError, match="No networks"):
        compact_shared([], [])
    with pytest.raises(ShapeError, match="other values"):
        compact_shared([net, net], [cores, random_cores(net, 1)])
    with pytest.raises(ShapeError, match="share equal ones"):
        compact_shared([net, bw.lowrank(6, 8, 2)], [cores, random_cores(bw.lowrank(6, 8, 2))])
    with pytest.raises(ShapeError, match="give low rank"):
        compact_shared([bw.mpo((2, 3), (2, 4), 3)], [random_cores(bw.mpo((2, 3), (2, 4), 3))])
    with pytest.raises(FitError, match="not finite"):
        compact_shared([net], [[cores[0] * float("nan"), cores[1]]])
