"""What the data carries between levels, said again in other words."""

from itertools import pairwise, permutations

import pytest

import bondwise as bw
from bondwise.network.stack import levels
from bondwise.topology import registry

NETS = [
    *(registry.find(name).sized(12, 18, 3) for name in registry.names()),
    bw.parse("b o a, b a i -> (b o) (b i)", b=3, o=2, a=2, i=4),
    bw.parse("o i z, q, b b2 -> (o b) (i b2)", o=2, i=3, z=4, q=5, b=2, b2=3),
    bw.parse("o r, i r, r -> (o) (i)", o=4, i=3, r=5),
    bw.parse("i -> () (i)", i=3),
]


@pytest.mark.parametrize("net", NETS, ids=str)
def test_every_index_is_carried_from_where_it_enters_to_where_it_leaves(net):
    rows, cols = ({index.name for index in side} for side in (net.rows, net.cols))
    for order in list(permutations(range(len(net.cores))))[:50]:
        made = levels(net, order)
        assert [level.core for level in made] == list(order)
        assert (made[0].before, made[-1].after) == (net.cols, net.rows)
        for below, above in pairwise(made):
            assert below.after == above.before
        for name, places in net.places.items():
            heights = [order.index(core) for core in places]
            start = -1 if name in cols else min(heights)
            end = len(order) if name in rows else max(heights)
            for k, level in enumerate(made):
                assert (name in [i.name for i in level.before]) == (start < k <= end)
                assert (name in [i.name for i in level.after]) == (start <= k < end)


def test_a_level_says_which_matrix_its_core_is():
    net = bw.parse("b o a, b a i z -> (b o) (b i)", b=3, o=2, a=2, i=4, z=5)
    first, second = levels(net, (1, 0))
    assert [[i.name for i in side] for side in (first.rows, first.cols)] == [["b", "a"], ["b", "i"]]
    assert [[i.name for i in side] for side in (second.rows, second.cols)] == [
        ["b", "o"],
        ["b", "a"],
    ]
    assert (first.shape, first.nnz) == ((6, 12), 24)
