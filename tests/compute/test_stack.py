import re
from itertools import permutations

import numpy as np
import pytest
import torch
from torch.testing import assert_close

import bondwise as bw
from bondwise.compute.stack import checked_order, stack
from bondwise.errors import PlanError, ShapeError
from nets import multiplied, random_cores, reference

LARGE = 300  # values of a state, for a dense gauge on it
ORDERS = 60  # of a network, spread over all of them


def orders(net):
    every = list(permutations(range(len(net.cores))))
    return every[:: max(1, len(every) // ORDERS)]


def test_every_order_multiplies_to_the_weight(net):
    cores = random_cores(net)
    W = reference(net, cores)
    for order in [None, *orders(net)]:
        st = stack(net, cores, order)
        assert_close(multiplied(st), W)
        assert len(st) == len(net.cores)
        inputs, outputs = ([shape[side] for shape in st.shapes] for side in (1, 0))
        assert [net.shape[1], *outputs] == [*inputs, net.shape[0]]
        assert torch.equal(st[-1].to_dense(), st[len(st) - 1].to_dense())


def test_factors_are_sparse_and_sorted_without_repeats(net):
    st = stack(net, random_cores(net))
    for factor in st:
        assert factor.is_sparse
        assert factor.is_coalesced()
        rows, cols = factor.indices()
        place = rows * factor.shape[1] + cols
        assert torch.all(place[1:] > place[:-1])
        assert place.numel() == 0 or int(place[-1]) < factor.shape[0] * factor.shape[1]
    assert st.nnz == sum(factor._nnz() for factor in st)


@pytest.mark.parametrize(
    "order", [(), (0,), (0, 0), (0, 2), (0, 1, 1), (-1, 0), (1.0, 0.0), "10", (None, 0), (True, 0)]
)
def test_an_impossible_order_is_refused(order):
    said = f"{tuple(order)} came for 2 cores; write each of 0 to 1 once"
    with pytest.raises(PlanError, match=re.escape(said)):
        checked_order(bw.lowrank(6, 4, 2), order)


def test_an_order_may_come_as_any_whole_numbers():
    for order in (np.array([1, 0]), torch.tensor([1, 0])):
        assert checked_order(bw.lowrank(6, 4, 2), order) == (1, 0)


def gauge(size, seed=0):
    """Far from the identity, and well conditioned."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(size, size, generator=generator, dtype=torch.float64) + 3 * torch.eye(size)


def test_a_gauge_between_any_two_levels_keeps_the_product(net):
    cores = random_cores(net)
    W = reference(net, cores)
    for order in orders(net)[:4]:
        st = stack(net, cores, order)
        for at in (at for at in range(len(st) - 1) if st.shapes[at][0] <= LARGE):
            X = gauge(st.shapes[at][0])
            other = st.with_gauge(at, X)
            assert_close(multiplied(other), W)
            assert_close(other[at].to_dense(), X @ st[at].to_dense())
            assert (other.order, other.shapes) == (st.order, st.shapes)
            assert all(factor.is_coalesced() for factor in other)
            for k in set(range(len(st))) - {at, at + 1}:
                assert other[k] is st[k]


def test_a_gauge_on_a_bond_is_one_on_the_state_beside_identities():
    net = bw.mpo((2, 3), (4, 5), 6)
    cores = random_cores(net)
    st = stack(net, cores, (1, 0))
    assert [index.name for index in st.levels[0].after] == ["i1", "a", "o2"]
    X = gauge(6)
    on_bond = stack(net, bw.insert_gauge(net, cores, "a", X), (1, 0))
    eyes = [torch.eye(size, dtype=torch.float64) for size in (4, 3)]
    whole = torch.kron(eyes[0], torch.kron(torch.linalg.inv(X).contiguous(), eyes[1]))
    on_state = st.with_gauge(0, whole)
    for one, two in zip(on_bond, on_state, strict=True):
        assert_close(one.to_dense(), two.to_dense())


def test_a_gauge_keeps_the_dtype_and_passes_gradients_on():
    net = bw.lowrank(6, 4, 2)
    cores = [core.float().requires_grad_() for core in random_cores(net)]
    st = stack(net, cores).with_gauge(0, gauge(2))
    assert all(factor.dtype == torch.float32 for factor in st)
    grads = torch.autograd.grad(multiplied(st).sum(), cores)
    expected = torch.autograd.grad((cores[0] @ cores[1]).sum(), cores)
    assert_close(grads, expected)


@pytest.mark.parametrize("at", [-1, 1, 2, True])
def test_a_gauge_needs_two_levels(at):
    net = bw.lowrank(6, 4, 2)
    with pytest.raises(PlanError, match=f"after level {at} of 2; write at = 0 to 0"):
        stack(net, random_cores(net)).with_gauge(at, torch.eye(2))
    with pytest.raises(PlanError, match="network of two cores"):
        stack(bw.mpo(3, 4, 1), [torch.ones(3, 4)]).with_gauge(0, torch.eye(3))


@pytest.mark.parametrize(
    ("X", "says"),
    [
        (torch.eye(3), r"X of shape (3, 3) came; .* state (a) has 2 values, so write (2, 2)"),
        (torch.ones(2, 3), r"X of shape (2, 3) came"),
        (torch.ones(2, 2), r"the state (a) of size 2, 2 x 2, has condition number"),
        (torch.zeros(2, 2), r"condition number"),
        (torch.diag(torch.tensor([1.0, 1e-9])), r"condition number 1e+09"),
        (torch.full((2, 2), torch.inf), r"not finite"),
    ],
)
def test_a_bad_gauge_is_refused(X, says):
    net = bw.lowrank(6, 4, 2)
    with pytest.raises(ShapeError, match=re.escape(says).replace(r"\.\*", ".*")):
        stack(net, random_cores(net)).with_gauge(0, X)
