from functools import reduce
from itertools import islice, permutations

import pytest
import torch
from torch.testing import assert_close

import bondwise as bw
from bondwise.compute.stack import stack
from bondwise.errors import PlanError

ORDERS = 60  # of a network, spread over all of them


def product(st):
    return reduce(lambda below, factor: torch.sparse.mm(factor, below), st[1:], st[0].to_dense())


def orders(net):
    every = list(permutations(range(len(net.cores))))
    return every[:: max(1, len(every) // ORDERS)]


def test_every_order_multiplies_to_the_weight(net, reference, make_cores):
    cores = make_cores(net)
    W = reference(net, cores)
    for order in [None, *orders(net)]:
        st = stack(net, cores, order)
        assert_close(product(list(st)), W)
        assert len(st) == len(net.cores)
        assert st.shapes[0][1] == net.shape[1]
        assert st.shapes[-1][0] == net.shape[0]
        assert all(one[0] == two[1] for one, two in zip(st.shapes, st.shapes[1:], strict=False))


def test_factors_are_sparse_and_sorted_without_repeats(net, make_cores):
    st = stack(net, make_cores(net))
    for factor in st:
        assert factor.is_sparse
        assert factor.is_coalesced()
        rows, cols = factor.indices()
        place = rows * factor.shape[1] + cols
        assert torch.all(place[1:] > place[:-1])
        assert place.numel() == 0 or int(place[-1]) < factor.shape[0] * factor.shape[1]
    assert st.nnz == sum(factor._nnz() for factor in st)


def test_the_default_order_has_the_fewest_entries(net, make_cores):
    if len(net.cores) > 6:
        pytest.skip("too many orders to try each")
    cores = make_cores(net)
    fewest = min(stack(net, cores, order).nnz for order in permutations(range(len(cores))))
    assert stack(net, cores).nnz == fewest


def test_low_rank_is_its_two_matrices(make_cores):
    net = bw.lowrank(6, 4, 2)
    left, right = make_cores(net)
    st = stack(net, [left, right])
    assert st.order == (1, 0)
    assert torch.equal(st[0].to_dense(), right)
    assert torch.equal(st[1].to_dense(), left)
    assert torch.equal(st[-1].to_dense(), left)


def test_a_factor_is_its_core_beside_identities(make_cores):
    net = bw.mpo((2, 3), (4, 5), 1)
    one, two = make_cores(net)
    st = stack(net, [one, two], order=(1, 0))
    assert_close(st[0].to_dense().abs().sum(), 4 * two.abs().sum())
    assert st.nnz == 4 * two.numel() + 3 * one.numel()


def test_gradients_reach_the_cores(make_cores):
    net = bw.mpo((2, 3), (4, 5), 2)
    cores = [core.requires_grad_() for core in make_cores(net)]
    st = stack(net, cores)
    y = torch.sparse.mm(st[1], torch.sparse.mm(st[0], torch.eye(20, dtype=torch.float64)))
    grads = torch.autograd.grad(y.sum(), cores)
    assert all(float(grad.abs().sum()) > 0 for grad in grads)


@pytest.mark.parametrize("order", [(), (0,), (0, 0), (0, 2), (0, 1, 1), (-1, 0)])
def test_an_impossible_order_is_refused(order, make_cores):
    net = bw.lowrank(6, 4, 2)
    with pytest.raises(PlanError, match="each of 0 to 1 once"):
        stack(net, make_cores(net), order)


def test_many_cores_stack_too(make_cores):
    net = bw.mpo((2,) * 12, (1,) * 12, 2)
    cores = [core / 2 for core in make_cores(net)]
    W = cores[0]
    for core in cores[1:-1]:
        W = torch.einsum("oia,apqb->opiqb", W, core).flatten(0, 1).flatten(1, 2)
    W = torch.einsum("oia,apq->opiq", W, cores[-1]).flatten(0, 1).flatten(1, 2)
    assert_close(product(list(stack(net, cores))), W)
    assert_close(product(list(islice(stack(net, cores, range(12)), 12))), W)
