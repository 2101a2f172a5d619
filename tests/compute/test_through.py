"""Data through levels against the sparse matrices of the stack."""

import pytest
import torch
from torch.testing import assert_close

import bondwise as bw
from bondwise.compute.orders import orders
from bondwise.compute.stack import stack
from bondwise.compute.through import passage, through
from bondwise.errors import ShapeError
from nets import random_cores


def test_a_level_is_its_sparse_matrix(net):
    cores = random_cores(net)
    for order in orders(net, limit=12):
        st = stack(net, cores, order.order)
        for factor, level in zip(st, st.levels, strict=True):
            how, W = passage(level), factor.to_dense().T
            for batch in [(), (1,), (5,), (2, 3), (0,), (2, 0)]:
                x = torch.randn(*batch, factor.shape[1], dtype=torch.float64)
                assert_close(through(how, cores[level.core], x), x @ W)


def test_gradients_are_those_of_the_sparse_matrix(net):
    cores = [core.requires_grad_() for core in random_cores(net)]
    st = stack(net, cores)
    for factor, level in zip(st, st.levels, strict=True):
        x = torch.randn(4, factor.shape[1], dtype=torch.float64, requires_grad=True)
        towards = torch.randn(4, factor.shape[0], dtype=torch.float64)
        leaves = [x, cores[level.core]]
        ours = torch.autograd.grad(through(passage(level), leaves[1], x), leaves, towards)
        theirs = torch.autograd.grad(x @ factor.to_dense().T, leaves, towards, retain_graph=True)
        assert_close(ours, theirs)


@pytest.mark.parametrize(
    ("x", "says"), [(torch.zeros(3, 5), "width 5 came.*takes 4"), (torch.tensor(1.0), "width none")]
)
def test_inputs_of_another_width_are_refused(x, says):
    level = stack(bw.lowrank(6, 4, 2), [torch.ones(6, 2), torch.ones(2, 4)]).levels[0]
    with pytest.raises(ShapeError, match=says):
        through(passage(level), torch.ones(2, 4), x)
