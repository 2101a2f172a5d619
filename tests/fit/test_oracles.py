"""No worse than the decompositions of TensorLy and quimb, on weights that nothing fits exactly."""

import numpy as np
import pytest
import quimb.tensor as qtn
import tensorly
import torch
from tensorly.decomposition import parafac, tensor_train
from tensorly.decomposition import tucker as tensorly_tucker

from bondwise import cp, mpo, ring, tucker
from bondwise.fit.fit import fit
from bondwise.network.network import Network
from bondwise.network.ranks import useful_ranks
from nets import noise, thorough, weight_of

tensorly.set_backend("numpy")


def mixed(net: Network, seed: int) -> torch.Tensor:
    """Half such a network, half noise."""
    weight, more = weight_of(net, seed), noise(net.shape, seed)
    return weight / weight.norm() + more / more.norm()


def modes(net: Network, weight: torch.Tensor) -> np.ndarray:
    return weight.numpy().reshape([index.size for index in (*net.rows, *net.cols)])


def sites(net: Network, weight: torch.Tensor) -> np.ndarray:
    """Axes (o1 i1), (o2 i2), ..: what a chain of sites sees."""
    count = len(net.rows)
    order = [k + side * count for k in range(count) for side in (0, 1)]
    tensor = modes(net, weight).transpose(order)
    return tensor.reshape([a.size * b.size for a, b in zip(net.rows, net.cols, strict=True)])


def relative(tensor: np.ndarray, near: np.ndarray) -> float:
    return float(np.linalg.norm(tensor - near) / np.linalg.norm(tensor))


@pytest.mark.parametrize("seed", [0, *thorough(1, 2)])
def test_hooi_is_no_worse_than_tensorlys(seed: int):
    net = tucker((4, 6), (5, 4), (2, 3, 2, 3))
    weight = mixed(net, seed)
    tensor = modes(net, weight)
    theirs = tensorly_tucker(tensor, rank=[2, 3, 2, 3], init="svd", n_iter_max=200, tol=1e-10)
    assert fit(weight, net).error <= relative(tensor, tensorly.tucker_to_tensor(theirs)) + 1e-6


@pytest.mark.parametrize("seed", [0, *thorough(1, 2)])
def test_a_chain_is_no_worse_than_tt_svd(seed: int):
    net = mpo((3, 4, 2, 3), (2, 3, 3, 2), (4, 6, 4))
    weight = mixed(net, seed)
    tensor = sites(net, weight)
    theirs = tensorly.tt_to_tensor(tensor_train(tensor, rank=[1, 4, 6, 4, 1]))
    quimbs = qtn.MatrixProductState.from_dense(
        tensor.reshape(-1), dims=tensor.shape, max_bond=6, cutoff=0.0
    )
    assert fit(weight, net).error <= relative(tensor, theirs) + 1e-8
    wider = fit(weight, net.resize(a=6, c=6)).error
    assert wider <= relative(tensor.reshape(-1), quimbs.to_dense().reshape(-1)) + 1e-8


@pytest.mark.parametrize("seed", [0, *thorough(1, 2)])
def test_cp_is_no_worse_than_tensorlys(seed: int):
    net = cp((4, 6), (5, 4), 4)
    weight = mixed(net, seed)
    tensor = modes(net, weight)
    theirs = parafac(tensor, rank=4, n_iter_max=500, init="svd", tol=1e-9, random_state=0)
    assert fit(weight, net).error <= 1.01 * relative(tensor, tensorly.cp_to_tensor(theirs))


@pytest.mark.parametrize("seed", [0, *thorough(1)])
def test_a_ring_is_no_worse_than_the_chain_inside_it(seed: int):
    sides = (3, 4, 3), (4, 3, 3)
    weight = noise((36, 36), seed)
    open_chain = fit(weight, mpo(*sides, 4)).error
    assert fit(weight, ring(*sides, (2, 4, 4))).error < open_chain


def test_the_kronecker_sum_is_the_rearranged_svd():
    """Van Loan and Pitsianis 1993, written out in numpy."""
    net = mpo((3, 4), (5, 2), 3)
    weight = noise(net.shape)
    blocks = weight.numpy().reshape(3, 4, 5, 2).transpose(0, 2, 1, 3).reshape(15, 8)
    values = np.linalg.svd(blocks, compute_uv=False)
    best = float(np.sqrt((values[3:] ** 2).sum() / (values**2).sum()))
    assert useful_ranks(net) == {"a": 3}
    assert fit(weight, net).error == pytest.approx(best, abs=1e-12)
