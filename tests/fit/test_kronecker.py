"""The Kronecker factors are those of a Kronecker product, and their roots fold into the cores."""

import numpy as np
import pytest
import torch

from bondwise import btt, mpo
from bondwise.fit.alternating.kronecker import factors_of, whitening
from bondwise.fit.alternating.starts import whitened_target
from bondwise.fit.alternating.weighted import Weighted
from bondwise.fit.fit import fit
from bondwise.fit.moment import Moment
from bondwise.fit.named import Named
from bondwise.fit.target import reach
from bondwise.network.network import Network
from nets import LOOPS, TREES, canon_first, noise, numpy_dense, random_cores


def definite(size: int, seed: int) -> torch.Tensor:
    rows = noise((3 * size, size), seed)
    return rows.T @ rows


def test_the_factors_of_a_kronecker_product_are_found():
    net = mpo((2, 2, 2), (3, 4, 2), 2)
    want = [definite(3, 1), definite(4, 2), definite(2, 3)]
    moment = torch.kron(torch.kron(want[0], want[1]), want[2])
    found = factors_of(net, Moment.of(moment))
    got = torch.kron(torch.kron(found["i1"].tensor, found["i2"].tensor), found["i3"].tensor)
    torch.testing.assert_close(got, moment)


def test_two_factors_are_the_nearest_of_van_loan_and_pitsianis():
    """The leading singular pair of the moment with its axes paired by mode."""
    net = mpo((2, 2), (3, 4), 2)
    moment = definite(12, 1)
    found = factors_of(net, Moment.of(moment))
    got = torch.kron(found["i1"].tensor, found["i2"].tensor)
    paired = moment.reshape(3, 4, 3, 4).permute(0, 2, 1, 3).reshape(9, 16)
    least = float(np.linalg.norm(np.linalg.svd(paired.numpy())[1][1:]))
    assert float((moment - got).norm()) == pytest.approx(least, rel=1e-3)
    for factor, _ in found.values():
        assert torch.linalg.eigvalsh(factor).min() > 0


def test_blocks_have_factors_of_their_own():
    net = btt((2, 3), (4, 5), 1)
    moment = definite(20, 1)
    found = factors_of(net, Moment.of(moment))
    blocks = torch.stack([moment[5 * k : 5 * k + 5, 5 * k : 5 * k + 5] for k in range(4)])
    assert list(found) == ["i2"]
    torch.testing.assert_close(found["i2"].tensor, blocks)


@pytest.mark.parametrize("net", canon_first([*TREES, *LOOPS]), ids=str)
def test_whitening_moves_into_the_cores_and_out(net: Network):
    white = whitening(factors_of(net, Moment.of(definite(net.shape[1], 1))))
    cores = random_cores(net)
    whitened = white.whiten(reach(torch.from_numpy(numpy_dense(net, cores)), net))
    back = white.unwhiten(net, cores)
    again = white.whiten(reach(torch.from_numpy(numpy_dense(net, back)), net))
    want = reach(torch.from_numpy(numpy_dense(net, cores)), net)
    torch.testing.assert_close(again.to(*want.names), want.tensor)
    assert whitened.names == want.names


def test_an_input_that_never_comes_is_floored():
    factor = Named(torch.diag(torch.tensor([1.0, 0.0], dtype=torch.float64)), ("i", "i'"))
    white = whitening({"i": factor})
    eye = white.roots["i"].tensor @ white.inverses["i"].tensor
    torch.testing.assert_close(eye, torch.eye(2, dtype=torch.float64))
    assert white.inverses["i"].tensor.max() == pytest.approx((1e-6 * 0.5) ** -0.5)


def test_in_a_kronecker_metric_the_start_is_the_end():
    """For two cores the whitened fit is then the global optimum: sweeps find nothing more."""
    net = mpo((4, 3), (3, 4), 3)
    moment = torch.kron(definite(3, 1), definite(4, 2))
    weight = noise((12, 12))
    goal = Weighted(weight, Moment.of(moment))
    near, _ = whitened_target(net, goal)
    values = np.linalg.svd(near.values.matrix([""], ["o1", "i1"], ["o2", "i2"])[0].numpy())[1]
    best = float(np.sqrt((values[3:] ** 2).sum() / (values**2).sum()))
    assert fit(weight, net, moment).error == pytest.approx(best, rel=1e-6)
