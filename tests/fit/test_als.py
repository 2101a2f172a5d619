"""Alternating least squares: the error never rises, each half-step is exact least squares."""

from itertools import pairwise

import pytest
import torch

from bondwise.fit.alternating import als
from bondwise.fit.named import Named, balance, contract
from bondwise.fit.target import core_names, target
from bondwise.network.network import Network
from bondwise.topology.cp import cp
from nets import LOOPS, canon_first, noise


def start(net: Network, seed: int) -> list[Named]:
    random = torch.Generator().manual_seed(seed)
    blocks = target(noise(net.shape), net).values.tensor.shape[0]
    sizes = net.sizes | {"": blocks}
    return [
        Named(torch.randn([sizes[n] for n in names], generator=random, dtype=torch.float64), names)
        for names in core_names(net, target(noise(net.shape), net))
    ]


@pytest.mark.parametrize("net", canon_first(LOOPS), ids=str)
def test_the_error_never_rises(net: Network):
    goal = target(noise(net.shape), net)
    states = als.sweep_many(goal, als._state(goal, start(net, 0)), 30)
    errors = [state.error for state in states]
    assert len(errors) > 3
    assert all(after < before for before, after in pairwise(errors))
    for state in states:
        product = contract(state.parts, goal.values.names)
        off = float((goal.values.tensor - product).square().sum())
        assert state.error == pytest.approx(off, rel=1e-12)


def test_the_error_never_rises_where_only_rounding_is_left_to_gain():
    net = cp((4, 3), (3, 4), 1)
    goal = target(noise(net.shape), net)
    states = [als._state(goal, start(net, 0))]
    for _ in range(12):
        more = als.sweep_many(goal, states[-1], 9)
        assert all(after.error < before.error for before, after in pairwise(more))
        states += more[1:]


def test_a_singular_environment_does_no_harm():
    """Two equal components make the normal equations singular: the step stays finite and helps."""
    net = cp((4, 3), (3, 4), 2)
    goal = target(noise(net.shape), net)
    parts = [
        Named(part.tensor[..., :1].expand_as(part.tensor), part.names) for part in start(net, 0)
    ]
    before = als._state(goal, parts)
    after = als._state(goal, als._sweep(goal, parts))
    assert after.error <= before.error
    assert all(torch.isfinite(part.tensor).all() for part in after.parts)
    zero = [Named(torch.zeros_like(part.tensor), part.names) for part in parts]
    assert all(torch.isfinite(part.tensor).all() for part in als._sweep(goal, zero))
    assert not any(part.tensor.any() for part in balance(zero, goal.open))


@pytest.mark.parametrize("net", canon_first(LOOPS), ids=str)
def test_balance_keeps_the_product_and_evens_the_norms(net: Network):
    goal = target(noise(net.shape), net)
    parts = [Named(p.tensor * 10.0 ** (3 * k), p.names) for k, p in enumerate(start(net, 0))]
    even = balance(parts, goal.open)
    torch.testing.assert_close(
        contract(even, goal.values.names), contract(parts, goal.values.names)
    )
    norms = [float(part.tensor.norm()) for part in even]
    assert max(norms) == pytest.approx(min(norms))
