"""Losses that are not in proportion to errors: measured at several, and heeded by the budget."""

import numpy as np
import pytest
import torch
from torch import nn

from bondwise.choose.allocations import mixed
from bondwise.choose.budget import allocate
from bondwise.choose.candidates import Group, candidates
from bondwise.choose.losses.felt import Felt, lost
from bondwise.choose.losses.reference import Reference
from bondwise.choose.survey import survey, survey_groups
from bondwise.flow.chains.blocks import capture
from bondwise.flow.chains.chain import Chain
from bondwise.progress import silent

POINTS = [(0.1, 0.5), (0.003, 1e-6), (0.03, 0.02), (0.01, 1e-5)]


def test_a_loss_is_straight_between_points_and_in_proportion_beyond():
    felt = Felt.of(POINTS)
    errors, losses = np.array(sorted(POINTS)).T
    for error in np.geomspace(0.003, 0.1, 13):
        wanted = np.exp(np.interp(np.log(error), np.log(errors), np.log(losses)))
        assert felt(error) == pytest.approx(wanted, rel=1e-9)
    assert felt(0.4) == pytest.approx(4 * 0.5)
    assert felt(0.0003) == pytest.approx(1e-7)
    assert Felt.of([(0.2, 0.6)])(0.7) == pytest.approx(lost(3.0, 0.7))


def test_losses_never_fall_whatever_was_measured_and_to_whatever_power():
    felt = Felt.of([(0.01, 0.3), (0.03, 0.1), (0.1, 0.31)])
    for curve in (felt, *(mixed({"a": felt}, alpha)["a"] for alpha in (0.5, 0.75, 1.25))):
        losses = [curve(error) for error in np.geomspace(1e-4, 1, 60)]
        assert losses == sorted(losses)
    assert mixed({"a": felt}, 1.0)["a"](0.02) == pytest.approx(felt(0.02))
    half = mixed({"a": felt}, 0.5)["a"]
    assert half(0.01) == pytest.approx(0.01 * (0.3 / 0.01) ** 0.5)
    assert mixed({"a": felt}, 0.0)["a"](0.25) == pytest.approx(0.25)


class Steps(nn.Module):
    """One convolution whose output is rounded to even numbers, which it gives, and one that is not.

    Small errors of the first are hidden, large ones are not.
    """

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b = (nn.Conv1d(16, 32, 3, bias=False) for _ in range(2))
        signs = torch.zeros(32, 48)
        for row in signs:
            row[torch.randperm(48)[:8]] = torch.randn(8).sign()
        self.a.weight.data = signs.view(32, 16, 3)
        self.b.weight.data *= torch.logspace(0.8, -0.2, 32)[:, None, None]

    def forward(self, x):
        return torch.cat([(self.a(x) / 2).round() * 2, self.b(x)], 1)


def test_a_budget_keeps_what_is_felt_suddenly():
    model = Steps()
    x = torch.randn(96, 16, 12).sign()
    batches = [x[:64], x[64:]]
    reference = Reference.of(model, batches[1], ["a", "b"])
    chains = [Chain((n,), [n], capture(model, [n], batches, silent), [1]) for n in "ab"]
    found = [survey(model, c, reference, bits=32, every=1, progress=silent) for c in chains]
    both = found[0].with_rest(found[1])
    felt = both.sensitivity["a"]
    assert len(felt.points) == len(both.sensitivity["b"].points) == 5
    small, *_, large = felt.points
    assert large[1] / large[0] > 30 * small[1] / small[0]
    straight = both.sensitivity["b"]
    assert straight(0.1) / 0.1 == pytest.approx(straight(0.01) / 0.01, rel=0.3)

    constant = {n: f(0.004) / 0.004 for n, f in both.sensitivity.items()}
    curved, plain = (allocate(both.groups, 0.7, s) for s in (both.sensitivity, constant))
    assert curved["a"].error < 0.5 * plain["a"].error
    assert felt(curved["a"].error) + straight(curved["b"].error) < 0.7 * (
        felt(plain["a"].error) + straight(plain["b"].error)
    )


@pytest.mark.parametrize("curves", [False, True])
def test_no_loss_is_measured_where_it_drowns_in_rounding(curves):
    torch.manual_seed(0)
    left, _, right = torch.linalg.svd(torch.randn(32, 32))
    model = nn.Sequential(nn.Linear(32, 32, bias=False))
    model[0].weight.data = left * torch.logspace(0, -8, 32) @ right
    group = Group({"0": model[0].weight.data})
    reference = Reference.of(model, torch.randn(256, 32))
    seen = []
    object.__setattr__(reference, "distance", lambda: seen.append(far(model)) or 1.0)
    dense = model[0].weight.data.clone()

    def far(model):
        return float(((model[0].weight - dense).norm() / dense.norm()).detach() ** 2)

    survey_groups(model, [group], reference, 32, curves=curves)
    errors = [c.error for c in candidates(group) if c.format == "lowrank"]
    assert all(error > 1e-3 for error in seen)
    assert sum(error > 1e-3 for error in errors) > 3
    assert len(seen) == (5 if curves else 1)
