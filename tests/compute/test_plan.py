"""Plans: truly the cheapest, the same every time, and readable."""

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
from bondwise.compute.plan import plan
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
    ("batch", "goal"), [(0, "macs"), (-1, "macs"), (True, "macs"), (8, "time")]
)
def test_what_cannot_be_planned_is_refused(batch, goal):
    with pytest.raises(PlanError, match=str(batch) if goal == "macs" else "bw.prepare"):
        plan(bw.lowrank(4, 6, 2), batch, goal)


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
