import pytest
import torch
from torch.func import vmap
from torch.testing import assert_close

import bondwise as bw
from bondwise.compute.lookup import lookup
from bondwise.compute.run import dense
from nets import random_cores, reference


def test_rows_are_those_of_the_weight(net):
    cores = random_cores(net)
    W = reference(net, cores)
    assert_close(lookup(net, cores, torch.arange(net.shape[0])), W)
    for shape in [(), (1,), (0,), (7,), (2, 3), (0, 2)]:
        ids = torch.randint(net.shape[0], shape)
        for dtype in (torch.int64, torch.int32):
            rows = lookup(net, cores, ids.to(dtype))
            assert rows.shape == (*shape, net.shape[1])
            assert_close(rows, W[ids])


def test_gradients_are_those_through_dense(net):
    cores = [core.requires_grad_() for core in random_cores(net)]
    ids = torch.randint(net.shape[0], (5,))
    towards = torch.randn(5, net.shape[1], dtype=torch.float64)
    ours = torch.autograd.grad(lookup(net, cores, ids), cores, towards)
    theirs = torch.autograd.grad(dense(net, cores)[ids], cores, towards)
    assert_close(ours, theirs)


def test_under_vmap(net):
    cores = random_cores(net)
    ids = torch.randint(net.shape[0], (4, 3))
    assert_close(vmap(lambda ids: lookup(net, cores, ids))(ids), reference(net, cores)[ids])


def test_ids_out_of_range_are_refused_as_by_an_embedding(net):
    for wrong in (-1, net.shape[0], 10**6):
        with pytest.raises(IndexError, match=rf"{wrong} .*write ids from 0 to {net.shape[0] - 1}"):
            lookup(net, random_cores(net), torch.tensor([0, wrong]))


def test_a_large_vocabulary_is_never_built():
    net = bw.mpo((400, 500, 500), (16, 16, 16), 4)  # 10**8 rows
    cores = random_cores(net)
    (row,) = lookup(net, cores, torch.tensor([12_345_678]))
    a, b, c = 12_345_678 // 250_000, 12_345_678 // 500 % 500, 12_345_678 % 500
    by_hand = torch.einsum("ia,ajb,bk->ijk", cores[0][a], cores[1][:, b], cores[2][:, c])
    assert_close(row, by_hand.flatten())
