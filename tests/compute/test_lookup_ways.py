"""Every way to look rows up: those of the weight that numpy makes of the cores."""

import pytest
import torch
from torch.testing import assert_close

import bondwise as bw
from bondwise.compute.fast.lookup_ways import joined, joins, largest, lookup_ways, table_way
from nets import CANON, random_cores, reference, thorough


def ways(net, cores):
    yield table_way(lambda: reference(net, cores))
    yield from lookup_ways(net, lambda: cores)


def test_rows_are_those_of_the_weight(net):
    cores = random_cores(net)
    W = reference(net, cores)
    for way in ways(net, cores):
        ready = way.make()
        assert ready.name == way.name
        for shape in [(), (1,), (0,), (7,), (2, 3)]:
            ids = torch.randint(net.shape[0], shape)
            for dtype in (torch.int64, torch.int32):
                assert_close(ready.run(ids.to(dtype), None), W[ids])


def test_ids_out_of_range_are_refused(net):
    for way in ways(net, random_cores(net)):
        for wrong in (-1, net.shape[0], 10**6):
            with pytest.raises(IndexError, match=f"{wrong} .*from 0 to {net.shape[0] - 1}"):
                way.make().run(torch.tensor([0, wrong]), None)


@pytest.mark.parametrize("own", [CANON[2], *thorough(*CANON)], ids=str)
def test_joined_cores_are_fewer_numbers_than_dense(own):
    for groups in joins(own):
        net = joined(own, groups)
        assert net.shape == own.shape
        assert net.parameters < own.shape[0] * own.shape[1] or len(groups) == len(own.cores)
        assert sorted(k for some in groups for k in some) == list(range(len(own.cores)))


def test_a_large_vocabulary_joins_what_is_small():
    net = bw.mpo((400, 500, 500), (16, 16, 16), 4)  # 10**8 rows
    found = joins(net)
    assert all(joined(net, groups).parameters < 10**8 for groups in found)
    assert largest(net) < 10**8
    assert ((0,), (1,), (2,)) in found
