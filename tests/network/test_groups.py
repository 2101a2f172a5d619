"""Groups: a network for each block on the diagonal, and the network of one block."""

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from bondwise import lowrank, parse, tucker2
from bondwise.network.groups import group_count, group_indices, grouped_network, one_group
from bondwise.topology import registry
from nets import random_cores, reference

NETS = [registry.find(name).convolution(4, 6, (3, 2), 2) for name in registry.names(kernels=True)]


@pytest.mark.parametrize("net", NETS, ids=str)
def test_a_grouped_network_is_its_blocks_on_the_diagonal(net):
    whole = grouped_network(net, 3)
    assert whole.shape == (12, 3 * 36)
    assert (group_count(whole), group_indices(whole)) == (3, (whole.rows[0].name,))
    assert whole.rows[0] == whole.cols[0]
    each = [random_cores(net, seed) for seed in range(3)]
    cores = [torch.stack(parts) for parts in zip(*each, strict=True)]
    assert_close(reference(whole, cores), torch.block_diag(*(reference(net, c) for c in each)))
    assert one_group(whole) == net
    assert whole.parameters == 3 * net.parameters


def test_a_name_that_is_taken_is_another():
    net = parse("g a, a i -> (g) (i)", g=2, a=2, i=3)
    assert str(grouped_network(net, 2)) == "g_ g a, g_ a i -> (g_ g) (g_ i)"
    assert grouped_network(net, 1) is net
    assert one_group(net) is net
    assert group_count(net) == 1


def test_cores_that_groups_share_have_no_network_of_one():
    shared = parse("g o a, a i -> (g o) (g i)", g=2, o=3, a=2, i=4)
    assert group_count(shared) == 2
    assert one_group(shared) is None
    two = parse("g h o i -> (g h o) (g h i)", g=2, h=3, o=3, i=4)
    assert (group_count(two), one_group(two)) == (6, None)
    alone = parse("g -> (g) (g)", g=2)
    assert one_group(alone) is None
    assert np.prod(grouped_network(lowrank(3, 4, 1), 2).shape) == 48
    assert one_group(grouped_network(tucker2(3, 4, 5, 2), 4)) == tucker2(3, 4, 5, 2)
