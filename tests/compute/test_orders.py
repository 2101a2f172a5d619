"""Orders against all permutations, and counts against the chromatic polynomial."""

from collections import defaultdict
from functools import reduce
from itertools import combinations, pairwise, permutations, product
from math import factorial, prod

import pytest
import torch
from torch.testing import assert_close

import bondwise as bw
from bondwise.compute.orders import orders
from bondwise.compute.stack import cheapest_order, stack
from bondwise.errors import PlanError

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


def few(net):
    if len(net.cores) > FEW:
        pytest.skip("too many orders to try each")
    return list(permutations(range(len(net.cores))))


def test_there_is_one_order_for_each_way_to_read_the_cores_and_it_is_the_cheapest(net):
    fewest = defaultdict(list)
    for order in few(net):
        fewest[reading(net, order)].append((entries(net, order), order))
    found = orders(net)
    assert found.complete
    assert {reading(net, o.order): (o.nnz, o.order) for o in found} == {
        way: min(same) for way, same in fewest.items()
    }
    assert len(found) == len(fewest)


def test_orders_are_the_same_when_swaps_of_levels_that_do_not_touch_lead_from_one_to_another(net):
    if any(len(places) > 2 for places in net.places.values()) or any(
        len(net.places[name]) > 1 for name in net.open
    ):
        pytest.skip("levels that share an index may yet not touch")
    every = few(net)
    group = {order: order for order in every}

    def leader(order):
        while group[order] != order:
            order = group[order]
        return order

    for order in every:
        for k, (one, two) in enumerate(pairwise(order)):
            if not set(net.names[one]) & set(net.names[two]):
                group[leader(order)] = leader((*order[:k], two, one, *order[k + 2 :]))
    assert len(orders(net)) == len({leader(order) for order in every})
    assert len({leader(o.order) for o in orders(net)}) == len(orders(net))


def colourings(nodes, edges, colours):
    """The chromatic polynomial, by deletion and contraction."""
    if not edges:
        return colours ** len(nodes)
    (one, two), *rest = edges
    joined = {tuple(sorted(one if end == two else end for end in edge)) for edge in rest}
    return colourings(nodes, rest, colours) - colourings(nodes - {two}, sorted(joined), colours)


def test_their_number_is_that_of_the_acyclic_orientations(net):
    """Stanley 1973: the chromatic polynomial at -1, up to its sign."""
    if any(len(net.places[name]) != (2 if name in net.bonds else 1) for name in net.sizes):
        pytest.skip("not a graph")
    edges = sorted({net.places[name] for name in net.bonds})
    nodes = frozenset(range(len(net.cores)))
    assert len(orders(net)) == abs(colourings(nodes, edges, -1))


@pytest.mark.parametrize("sites", [1, 2, 3, 5, 8, 10])
def test_a_chain_has_two_to_the_bonds(sites):
    found = orders(bw.mpo((2,) * sites, (3,) * sites, 2))
    assert (len(found), found.complete) == (2 ** (sites - 1), True)


def test_a_ring_has_all_but_the_two_that_run_round():
    assert [len(orders(bw.ring((2,) * n, (2,) * n, 2))) for n in (2, 3, 5, 9)] == [2, 6, 30, 510]


def test_on_one_shared_index_only_the_first_and_the_last_core_matter():
    assert [len(orders(bw.cp((2,) * n, 2, 2))) for n in (2, 3, 4)] == [3 * 2, 4 * 3, 5 * 4]


def test_every_one_multiplies_to_the_weight(net, reference, make_cores):
    cores = make_cores(net)
    W = reference(net, cores)
    for order in orders(net, limit=40):
        st = stack(net, cores, order.order)
        assert (order.shapes, order.nnz) == (st.shapes, st.nnz)
        assert order.levels == st.levels
        assert_close(reduce(lambda x, f: torch.sparse.mm(f, x), list(st)[1:], st[0].to_dense()), W)


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


def test_a_plan_needs_no_more_than_the_cheapest_stack(net):
    for batch in (1, 7, 64):
        assert bw.plan(net, batch).macs <= min(order.macs(batch) for order in orders(net))


def test_many_are_bounded_and_say_so():
    net = bw.mpo((2,) * 14, (2,) * 14, 3)
    found = orders(net, limit=20)
    assert (len(found), found.complete) == (20, False)
    assert len({reading(net, o.order) for o in found}) == 20
    assert "20 different stacks, there are more" in str(found)
    net = bw.mpo((2, 2, 2), (2, 2, 2), 3)
    assert (len(orders(net, limit=4)), orders(net, limit=4).complete) == (4, True)
    assert (len(orders(net, limit=3)), orders(net, limit=3).complete) == (3, False)


def test_where_every_two_cores_touch_every_order_differs():
    pairs = {pair: f"b{k}" for k, pair in enumerate(combinations(range(4), 2))}
    cores = [[name for pair, name in pairs.items() if k in pair] for k in range(4)]
    text = ", ".join(
        " ".join([*core, *ends]) for core, ends in zip(cores, ["o", "", "", "i"], strict=True)
    )
    net = bw.parse(f"{text} -> (o) (i)", **dict.fromkeys(pairs.values(), 2), o=2, i=2)
    assert len(orders(net)) == factorial(4)


def test_the_table_fits_80_columns(net):
    lines = str(orders(net, limit=8)).splitlines()
    assert max(map(len, lines)) <= 80
    assert all(line == line.rstrip() for line in lines)


@pytest.mark.parametrize("limit", [0, -3, True])
def test_a_limit_is_at_least_one(limit):
    with pytest.raises(PlanError, match=f"Limit {limit} came"):
        orders(bw.lowrank(6, 4, 2), limit)
