"""Plans: truly the cheapest, the same every time, and readable."""

from dataclasses import replace
from functools import cache
from itertools import combinations
from math import prod

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.testing import assert_close

import bondwise as bw
from bondwise.compute.lookup import lookup
from bondwise.compute.machine import Rates
from bondwise.compute.plan import plan, timed
from bondwise.compute.run import apply, dense
from bondwise.compute.stack import stack
from bondwise.errors import PlanError
from nets import multiplied, random_cores, reference


def cheapest(net, batch):
    """The fewest multiplications, by walking through every order of pairwise products."""
    sizes = net.sizes | {"n": batch}
    output = frozenset(["n", *(index.name for index in net.rows)])
    operands = [frozenset(names) for names in net.names]
    operands.append(frozenset(["n", *(index.name for index in net.cols)]))

    def reduced(operands):
        left = [
            names & output.union(*(other for j, other in enumerate(operands) if j != k))
            for k, names in enumerate(operands)
        ]
        return tuple(sorted(left, key=sorted))

    @cache
    def walk(operands):
        if len(operands) == 1:
            return 0
        costs = []
        for a, b in combinations(range(len(operands)), 2):
            rest = [names for k, names in enumerate(operands) if k not in (a, b)]
            both = operands[a] | operands[b]
            costs.append(prod(sizes[name] for name in both) + walk(reduced([*rest, both])))
        return min(costs)

    return walk(reduced(operands))


def test_no_order_needs_fewer_multiplications(net):
    for batch in (1, 7, 64, 4096):
        made = plan(net, batch)
        assert made.macs == cheapest(net, batch) == sum(step.macs for step in made.steps)


def test_the_batch_decides_between_rebuilding_and_pushing_through():
    net = bw.lowrank(64, 64, 60)
    assert plan(net, 8).macs == 8 * 64 * 60 * 2
    assert plan(net, 512).macs == 64 * 60 * 64 + 512 * 64 * 64
    assert [step.kind for step in plan(net, 8).steps] == ["linear", "linear"]


def test_the_same_arguments_give_the_same_plan():
    big = bw.mpo((2,) * 12, (2,) * 12, 3)
    for net in (bw.btt((4, 6), (6, 4), 3), big):
        again = bw.parse(str(net), **net.sizes)
        assert plan(net, 32) == plan(again, 32)
        assert hash(plan(net, 32)) == hash(plan(again, 32))


def test_many_cores_are_planned_well():
    net = bw.mpo((2,) * 12, (2,) * 12, 2)
    # one core after another, the largest values at most batch x 2**12 x rank
    assert plan(net, 64).macs <= 12 * 64 * 2**12 * 2 * 2 * 2


@pytest.mark.parametrize(
    ("batch", "goal"), [(0, "macs"), (-1, "macs"), (True, "macs"), (8, "speed")]
)
def test_what_cannot_be_planned_is_refused(batch, goal):
    with pytest.raises(PlanError, match=str(batch) if goal == "macs" else goal):
        plan(bw.lowrank(4, 6, 2), batch, goal)


def test_time_picks_another_order_where_multiplications_mislead():
    # rank 32 of 768 x 768 has 64 times fewer numbers and needs twice dense's multiplications
    net = bw.mpo((32, 24), (24, 32), 32)
    ready = timed(net, 4096, Rates(), 4, ready=True)
    assert [step.kind for step in ready.path] == ["linear"]
    assert ready.path[0].extents == (1, 4096, 768, 768)
    low = bw.lowrank(768, 768, 96)
    assert [step.kind for step in timed(low, 4096, Rates(), 4, ready=True).path] == ["linear"] * 2


def test_a_weight_made_whole_is_made_as_it_should_lie(net):
    if any(index in net.cols for index in net.rows) or 1 in net.shape:
        pytest.skip("not one matrix over all rows and columns")
    slow = replace(Rates(), call=1.0)  # one product is then best
    made = timed(net, 64, slow, 4, ready=True)
    assert made.whole
    assert made.path[0].right_view is None or made.path[0].extents[1:] == (64, *net.shape)


def test_large_batches_go_in_chunks_where_what_lies_between_is_large():
    net = bw.mpo((64, 64), (64, 64), 16)  # 65,536 numbers between the products, for each row
    made = timed(net, 4096, Rates(), 4, ready=True)
    assert made.chunk is not None
    assert f", {made.chunk} rows at a time" in str(made)
    assert timed(net, 1, Rates(), 4, ready=True).chunk is None


def test_slower_rates_never_make_a_plan_faster(net):
    slow = replace(Rates(), call=1e-5, peak=1e9, batch_peak=1e9)
    for batch in (1, 300):
        quick = timed(net, batch, Rates(), 4, ready=False).seconds
        assert 0 < quick < timed(net, batch, slow, 4, ready=False).seconds
        assert timed(net, batch, Rates(), 4, ready=True).seconds <= quick


def test_plans_for_time_repeat_and_are_right(net):
    cores = random_cores(net)
    W = reference(net, cores)
    for batch in (1, 40, 5000):
        made = plan(net, batch, "time")
        assert made == plan(bw.parse(str(net), **net.sizes), batch, "time")
        assert made.macs == sum(step.macs for step in made.steps) >= plan(net, batch).macs
        for rows in (0, 3, 40):
            x = torch.randn(rows, net.shape[1], dtype=torch.float64)
            assert_close(apply(made, cores, x), x @ W.T)
            assert_close(apply(replace(made, chunk=7), cores, x), x @ W.T)


def test_a_plan_reads_as_a_table(net):
    made = plan(net)
    text = str(made)
    assert max(len(line) for line in text.splitlines()) <= 80
    assert f"{made.macs:,} macs" in text
    assert f"{64 * prod(net.shape):,}" in text
    assert sum(" = " in line for line in text.splitlines()) == len(made.steps) == len(net.cores)


def network(cores, indices):
    """Each index is (the cores it is on, as bits; where it is open; its size)."""
    named = [
        ({k for k in range(cores) if places >> k & 1} or {0}, role, bw.Index(f"x{k}", size))
        for k, (places, role, size) in enumerate(indices)
    ]
    return bw.Network(
        tuple(tuple(i for places, _, i in named if k in places) for k in range(cores)),
        tuple(i for _, role, i in named if role in ("row", "both")),
        tuple(i for _, role, i in reversed(named) if role in ("col", "both")),
    )


INDEX = st.tuples(
    st.integers(1, 15), st.sampled_from(["bond", "row", "col", "both"]), st.integers(1, 3)
)


@given(
    cores=st.integers(1, 4),
    indices=st.lists(INDEX, min_size=1, max_size=6),
    batch=st.integers(1, 300),
    n=st.integers(0, 3),
)
def test_any_einsum_works_everywhere(cores, indices, batch, n):
    net = network(cores, indices)
    made, cores = plan(net, batch), random_cores(net)
    assert made.macs == cheapest(net, batch)
    W = reference(net, cores)
    x = torch.randn(n, net.shape[1], dtype=torch.float64)
    assert_close(apply(made, cores, x), x @ W.T)
    assert_close(dense(net, cores), W)
    assert_close(lookup(net, cores, torch.arange(net.shape[0])), W)
    for order in (None, range(len(cores))):
        assert_close(multiplied(stack(net, cores, order)), W)
