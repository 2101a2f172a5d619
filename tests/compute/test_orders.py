"""Orders and levels against all permutations of the cores."""

from collections import defaultdict
from itertools import permutations, product
from math import prod

import pytest

import bondwise as bw
from bondwise.compute.orders import orders
from bondwise.compute.stack import cheapest_order, stack
from bondwise.errors import PlanError
from bondwise.network.stack import levels
from nets import random_cores

FEW = 6  # cores; all permutations of them are tried


def spans(net, order):
    """Name -> the levels after which it is carried: from where it enters to where it is summed."""
    rows, cols = ({index.name for index in side} for side in (net.rows, net.cols))
    heights = {name: [order.index(k) for k in places] for name, places in net.places.items()}
    return {
        name: range(-1 if name in cols else min(at), len(order) if name in rows else max(at))
        for name, at in heights.items()
    }


def reading(net, order):
    """How every core is read: for each index, whether it comes in, and whether it goes out."""
    carried = spans(net, order)
    return tuple(
        tuple((order.index(k) - 1 in carried[n], order.index(k) in carried[n]) for n in names)
        for k, names in enumerate(net.names)
    )


def entries(net, order):
    carried = spans(net, order)
    return sum(
        prod(size for n, size in net.sizes.items() if k - 1 in carried[n] or k in carried[n])
        for k in range(len(order))
    )


def test_there_is_one_order_for_each_way_to_read_the_cores_and_it_is_the_cheapest(net):
    if len(net.cores) > FEW:
        pytest.skip("too many orders to try each")
    fewest = defaultdict(list)
    for order in permutations(range(len(net.cores))):
        fewest[reading(net, order)].append((entries(net, order), order))
    found = orders(net)
    assert found.complete
    assert {reading(net, o.order): (o.nnz, o.order) for o in found} == {
        way: min(same) for way, same in fewest.items()
    }
    assert len(found) == len(fewest)


@pytest.mark.parametrize(
    ("build", "numbers"),
    [
        (bw.mpo, {1: 1, 2: 2, 3: 4, 5: 16, 8: 128, 10: 512}),  # which end of each bond is first
        (bw.ring, {2: 2, 3: 6, 5: 30, 9: 510}),  # all but the two that run round
        (bw.cp, {1: 2 * 1, 2: 4 * 3, 3: 6 * 5}),  # only the first and the last core matter
    ],
)
def test_their_number_follows_from_the_kind_of_network(build, numbers):
    for modes, number in numbers.items():
        found = orders(build((2,) * modes, (3,) * modes, 2))
        assert (len(found), found.complete) == (number, True)


def test_they_are_those_of_the_stacks(net):
    cores = random_cores(net)
    for order in orders(net, limit=40):
        st = stack(net, cores, order.order)
        assert (order.shapes, order.nnz, order.levels) == (st.shapes, st.nnz, st.levels)


def test_every_index_is_carried_from_where_it_enters_to_where_it_leaves(net):
    for order in list(permutations(range(len(net.cores))))[:50]:
        made, carried = levels(net, order), spans(net, order)
        assert [level.core for level in made] == list(order)
        assert (made[0].before, made[-1].after) == (net.cols, net.rows)
        for k, level in enumerate(made):
            assert level.before == (made[k - 1].after if k else net.cols)
            assert {i.name for i in level.before} == {n for n in carried if k - 1 in carried[n]}
            assert {i.name for i in level.after} == {n for n in carried if k in carried[n]}


def test_a_level_says_which_matrix_its_core_is():
    net = bw.parse("b o a, b a i z -> (b o) (b i)", b=3, o=2, a=2, i=4, z=5)
    first, second = levels(net, (1, 0))
    assert [[i.name for i in side] for side in (first.rows, first.cols)] == [["b", "a"], ["b", "i"]]
    sides = [[i.name for i in side] for side in (second.rows, second.cols)]
    assert sides == [["b", "o"], ["b", "a"]]
    assert (first.shape, first.nnz) == ((6, 12), 24)


def test_the_first_is_the_default_order(net):
    assert orders(net)[0].order == cheapest_order(net)
    assert [o.nnz for o in orders(net)] == sorted(o.nnz for o in orders(net))


def test_pushing_dense_tensors_multiplies_as_often(net):
    for order, batch in product(orders(net, limit=40), (1, 7)):
        macs, carried = 0, {index.name for index in net.cols}
        for level in order.levels:
            known = carried | {index.name for index in level.after}
            core = {index.name for index in level.indices} & known  # others are summed beforehand
            macs += batch * prod(net.sizes[name] for name in carried | core)
            carried = {index.name for index in level.after}
        assert order.macs(batch) == macs


def test_many_are_bounded_and_say_so():
    net = bw.mpo((2,) * 14, (2,) * 14, 3)
    found = orders(net, limit=20)
    assert (len(found), found.complete) == (20, False)
    assert len({reading(net, o.order) for o in found}) == 20
    assert "20 different stacks, there are more" in str(found)
    net = bw.mpo((2, 2, 2), (2, 2, 2), 3)
    assert (len(orders(net, limit=4)), orders(net, limit=4).complete) == (4, True)
    assert (len(orders(net, limit=3)), orders(net, limit=3).complete) == (3, False)


def test_the_table_fits_80_columns(net):
    lines = str(orders(net, limit=8)).splitlines()
    assert max(map(len, lines)) <= 80
    assert all(line == line.rstrip() for line in lines)


@pytest.mark.parametrize("limit", [0, -3, True])
def test_a_limit_is_at_least_one(limit):
    with pytest.raises(PlanError, match=f"Limit {limit} came"):
        orders(bw.lowrank(6, 4, 2), limit)
