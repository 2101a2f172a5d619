from dataclasses import replace
from itertools import product

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bondwise.choose.allocations import mixed
from bondwise.choose.budget import UNITS, allocate
from bondwise.choose.candidates import Candidate, Group, candidates
from bondwise.errors import BudgetError


def plain(weight, numbers, error, form="lowrank"):
    return Candidate(weight, form, (), numbers, 4 * numbers, numbers, 4 * numbers, error)


def curve(name, steps, dense):
    """A made-up weight: (numbers, error) pairs and its dense form."""
    found = [plain(name, n, e) for n, e in steps]
    return [*found, plain(name, dense, 0.0, "dense")]


def total(chosen):
    return sum(c.numbers for c in chosen.values())


def loss(chosen, sensitivity):
    return sum(sensitivity[w] * c.error for w, c in chosen.items())


def by_force(curves, sensitivity, budget):
    """The least loss over all combinations of single weights."""
    return min(
        sum(sensitivity[c.weight] * c.error for c in picks)
        for picks in product(*curves)
        if sum(c.numbers for c in picks) <= budget
    )


WEIGHTS = st.lists(
    st.tuples(st.lists(st.floats(0.01, 1.0), min_size=2, max_size=4), st.floats(0.1, 10.0)),
    min_size=1,
    max_size=4,
)


def problem(weights, convex):
    """Curves whose errors drop by the given amounts (in order of size where convex)."""
    curves, sensitivity = [], {}
    for k, (drops, weight) in enumerate(weights):
        drops = sorted(drops, reverse=True) if convex else drops
        left = [sum(drops[j:]) / sum(drops) for j in range(1, len(drops))]
        steps = [(10 * (j + 1), e) for j, e in enumerate(left)]
        curves.append(curve(f"w{k}", steps, 10 * len(drops)))
        sensitivity[f"w{k}"] = weight
    return curves, sensitivity


@pytest.mark.parametrize("convex", [True, False])
@settings(deadline=None, max_examples=40)
@given(WEIGHTS, st.floats(0.3, 1.0))
def test_convex_curves_get_the_best_of_all_and_any_the_best_of_one_step_less(convex, weights, keep):
    curves, sensitivity = problem(weights, convex)
    budget = keep * sum(c.numbers for site in curves for c in site if c.format == "dense")
    sizes = [[c.numbers for c in site] for site in curves]
    least = sum(map(min, sizes))
    try:
        chosen = allocate(curves, keep, sensitivity)
    except BudgetError:
        assert least > budget
        return
    assert total(chosen) <= budget
    lost = loss(chosen, sensitivity)
    if convex:
        assert lost == pytest.approx(by_force(curves, sensitivity, budget), abs=1e-9)
    largest = max(max(each) - min(each) for each in sizes)
    assert lost <= by_force(curves, sensitivity, max(least, budget - largest)) + 1e-9


def random_sites(shapes, seed=0):
    torch.manual_seed(seed)
    return [
        candidates(Group({f"w{k}": torch.randn(out, inp) * torch.logspace(0, -2, inp)}))
        for k, (out, inp) in enumerate(shapes)
    ]


def timed(c):
    """Seconds of a machine that waits for memory with one row, and computes with many."""
    return replace(c, seconds=(1e-6 + 1e-9 * c.numbers, 1e-5 + 2e-9 * c.macs))


@settings(deadline=None, max_examples=25)
@given(
    shapes=st.lists(st.tuples(st.integers(1, 40), st.integers(1, 40)), min_size=1, max_size=4),
    keep=st.floats(0.05, 1.0),
    floor=st.floats(0.0, 0.5),
    unit=st.sampled_from(UNITS),
)
def test_no_budget_is_ever_exceeded(shapes, keep, floor, unit):
    sites = [[timed(c) for c in site] for site in random_sites(shapes)]
    try:
        chosen = allocate(sites, keep, unit=unit, floor=floor)
    except BudgetError:
        return
    assert set(chosen) == {f"w{k}" for k in range(len(shapes))}

    def spent(picks):
        value = {"params": "numbers"}.get(unit, unit)
        values = [getattr(c, value) for c in picks]
        return torch.tensor(values, dtype=torch.float64).reshape(len(values), -1).sum(0)

    dense = spent([next(c for c in site if c.format == "dense") for site in sites])
    assert float((spent(chosen.values()) / dense).mean()) <= keep * (1 + 1e-9)
    for name, c in chosen.items():
        out, inp = shapes[int(name[1:])]
        assert unit != "params" or c.numbers >= floor * out * inp


@pytest.mark.parametrize("keep", [0.95, 0.8, 0.6, 0.3])
@pytest.mark.parametrize("shapes", [[(400, 400)], [(256, 64), (64, 256)], [(96, 64)] * 8])
def test_keep_is_met_within_two_percent(keep, shapes):
    chosen = allocate(random_sites(shapes), keep)
    numbers = sum(out * inp for out, inp in shapes)
    assert 0.98 * keep * numbers <= total(chosen) <= keep * numbers


def test_keep_is_met_where_more_numbers_lower_no_error():
    exact = torch.outer(torch.ones(64), torch.ones(64))
    chosen = allocate([candidates(Group({"a": exact}))], 0.9)
    assert 0.98 * 0.9 * 4096 <= total(chosen) <= 0.9 * 4096


def test_ranks_are_multiples_of_eight_but_for_the_last_of_the_budget():
    chosen = allocate(random_sites([(96, 128)] * 12), 0.6)
    assert sum(not c.aligned for c in chosen.values()) <= 2


def test_a_sensitive_weight_keeps_more():
    sites = random_sites([(64, 64)] * 2)
    chosen = allocate(sites, 0.6, {"w0": 10.0, "w1": 0.1})
    assert chosen["w0"].numbers > 1.5 * chosen["w1"].numbers
    floored = allocate(sites, 0.6, {"w0": 10.0, "w1": 0.1}, floor=0.5)
    assert floored["w1"].numbers >= 0.5 * 4096 > chosen["w1"].numbers


def test_never_worse_than_one_fraction_for_all():
    sites = random_sites([(64, 48), (48, 64), (80, 80)])
    shapes = {"w0": 3072, "w1": 3072, "w2": 6400}
    uniform = {
        name: min((c for c in site if c.numbers <= 0.6 * shapes[name]), key=lambda c: c.error)
        for name, site in zip(shapes, sites, strict=True)
    }
    even = dict.fromkeys(shapes, 1.0)
    assert loss(allocate(sites, 0.6), even) <= loss(uniform, even)


def test_what_cannot_be_reached_names_what_can():
    sites = random_sites([(64, 64)] * 2)
    with pytest.raises(BudgetError, match=r"write at least 0\.(\d+)") as caught:
        allocate(sites, 0.5, protect=["w0"], floor=0.3)
    least = float(str(caught.value).split()[-1].rstrip("."))
    assert 0.65 <= least < 0.67
    assert total(allocate(sites, least, protect=["w0"], floor=0.3)) <= least * 8192


def test_another_unit_is_refused():
    with pytest.raises(BudgetError, match="write one of params, bytes"):
        allocate(random_sites([(8, 8)]), 0.5, unit="flops")


def test_sensitivities_are_mixed_by_powers():
    assert mixed({"a": 16.0, "b": 0.25}, 0.0) == {"a": 1.0, "b": 1.0}
    assert mixed({"a": 16.0, "b": 0.25}, 0.5) == {"a": 4.0, "b": 0.5}


@pytest.mark.parametrize("macs", [100, 101, 5000])
def test_speed_leaves_out_what_needs_as_many_multiplications_as_dense(macs):
    dense = plain("a", 100, 0.0, "dense")
    slow = replace(plain("a", 50, 0.1, "mpo"), macs=macs)
    quick = replace(plain("a", 50, 0.3), macs=99)
    site = [dense, slow, quick]
    assert allocate([site], 0.5)["a"] is slow
    assert allocate([site], 0.5, prefer="speed")["a"] is quick
    with pytest.raises(BudgetError, match="at least 1"):
        allocate([[dense, slow]], 0.5, prefer="speed")


def test_each_number_of_rows_counts_alike_in_seconds():
    whole = [replace(plain(w, 100, 0.0, "dense"), seconds=(1.0, 100.0)) for w in "ab"]
    once = replace(plain("a", 10, 0.1), seconds=(0.2, 100.0))  # much faster, for one row alone
    many = replace(plain("b", 10, 0.1), seconds=(1.0, 20.0))  # as much faster for many
    chosen = allocate([[whole[0], once], [whole[1], many]], 0.6, unit="seconds")
    assert (chosen["a"], chosen["b"]) == (once, many)  # (1.2/2 + 120/200) / 2
    with pytest.raises(BudgetError, match=r"write at least 0\.6"):
        allocate([[whole[0], once], [whole[1], many]], 0.599, unit="seconds")


def test_seconds_that_nobody_measured_are_refused():
    with pytest.raises(BudgetError, match="candidates without seconds"):
        allocate(random_sites([(8, 8)]), 0.5, unit="seconds")
