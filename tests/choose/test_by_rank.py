import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bondwise.choose.by_rank import ByRank, builder, cost, uniform
from bondwise.choose.select import Weight
from bondwise.errors import BudgetError
from bondwise.topology import registry
from nets import thorough

SHAPES = {"q": (576, 576), "k": (192, 576), "up": (1536, 576), "down": (576, 1536)}
SMOLLM2 = [
    Weight(f"layers.{k}.{name}", "Linear", shape)
    for k in range(4)
    for name, shape in SHAPES.items()
]


def kept(weights, form, keep):
    series = [ByRank(w, builder(form), 32) for w in weights]
    networks = uniform(series, keep)
    after = sum(cost(networks[w.name], 32) if w.name in networks else w.numbers for w in weights)
    return after / sum(w.numbers for w in weights), networks


@pytest.mark.parametrize("keep", [0.6, *thorough(0.95, 0.8, 0.3)])
@pytest.mark.parametrize("form", [name for name in registry.names() if name != "cp"])
def test_keep_is_met_within_two_percent_and_never_exceeded(form, keep):
    reached, _ = kept(SMOLLM2, form, keep)
    assert 0.98 * keep <= reached <= keep


def test_an_einsum_is_a_format():
    reached, networks = kept(SMOLLM2, "o1 i1 a, a o2 i2 b, b i3 -> (o1 o2) (i1 i2 i3)", 0.4)
    assert 0.98 * 0.4 <= reached <= 0.4
    assert networks["layers.0.down"].shape == (576, 1536)


def test_low_rank_ranks_are_multiples_of_eight_where_that_costs_nothing():
    _, networks = kept(SMOLLM2, "lowrank", 0.8)
    odd = [net for net in networks.values() if net.bonds["a"] % 8]
    assert len(odd) <= len(networks) // 4


@settings(deadline=None, max_examples=40)
@given(
    shapes=st.lists(st.tuples(st.integers(1, 90), st.integers(1, 90)), min_size=1, max_size=5),
    keep=st.floats(0.05, 1.0),
)
def test_never_above_the_budget_whatever_the_shapes(shapes, keep):
    weights = [Weight(f"w{k}", "Linear", shape) for k, shape in enumerate(shapes)]
    try:
        reached, networks = kept(weights, "lowrank", keep)
    except BudgetError:
        return
    assert reached <= keep
    for w in weights:
        if w.name in networks:
            assert cost(networks[w.name], 32) < w.numbers


def test_a_budget_below_rank_one_names_the_smallest_that_works():
    with pytest.raises(BudgetError, match=r"write at least 0\.\d+"):
        kept(SMOLLM2, "lowrank", 1e-4)


def test_keep_one_changes_nothing():
    assert kept(SMOLLM2, "lowrank", 1.0) == (1.0, {})
