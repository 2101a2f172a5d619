"""Shapes that win in two blocks are offered everywhere, with errors that a fit confirms."""

import pytest
import torch
from torch import nn

import bondwise as bw
from bondwise.choose.candidates import Group, candidates
from bondwise.choose.fitted import Shape, fitted, shape
from bondwise.choose.scout import Scout, heads_of
from bondwise.fit.metric import Metric
from tiny import untouched


def halves(out=32, inp=64, rank=8, seed=0):
    """A weight whose two halves of columns have a small rank each, and nothing in common."""
    torch.manual_seed(seed)
    parts = [torch.randn(out, rank) @ torch.randn(rank, inp // 2) for _ in range(2)]
    return torch.cat(parts, 1) + 0.02 * torch.randn(out, inp)


class Block(nn.Module):
    def __init__(self, seed):
        super().__init__()
        self.down = nn.Linear(64, 32, bias=False)
        self.up = nn.Linear(32, 64, bias=False)
        self.down.weight.data = halves(seed=seed)

    def forward(self, x):
        return x + self.up(self.down(torch.cat([x, x.roll(5, -1) ** 2], -1)).tanh())[..., :32] * 0.1


def site(seed=0):
    x = torch.randn(400, 64, generator=torch.Generator().manual_seed(seed))
    y = torch.randn(400, 64, generator=torch.Generator().manual_seed(seed + 1))
    return Group({"b.0.down": halves()}, Metric(x.T @ x, 400, 0.05), Metric(y.T @ y, 400, 0.0))


def test_errors_at_other_ranks_are_near_what_a_fit_gives():
    here, won = site(), Shape("btt", (32, 1), (2, 32))
    exact = candidates(here)
    found = list(Scout({".down": won}, ("b.0",), 0.5, 32).more(here, exact))
    assert found
    assert {shape(c) for c in found} == {won}
    near = min(found, key=lambda c: abs(c.numbers - 1024))
    (again,) = fitted(here, (near.numbers / 2048,), prefer="size", among={won})
    assert near.numbers == again.numbers
    assert near.error == pytest.approx(again.error, rel=0.5)


def test_a_gain_below_a_few_percent_is_not_offered():
    here, won = site(), Shape("btt", (16, 2), (1, 64))
    assert not list(Scout({".down": won}, ("b.0",), 0.5, 32).more(here, candidates(here)))
    assert not list(Scout({}, ("b.0",), 0.5, 32).more(here, candidates(here)))


def test_a_model_whose_columns_fall_in_halves_gets_block_tensor_trains():
    model = nn.Sequential(*[Block(k) for k in range(4)])
    data = [torch.randn(4, 16, 32) for _ in range(12)]
    with untouched(model):
        result = bw.tensorize(model, 0.5, data, targets="down", prefer="size")
    formats = {row.name: row.format for row in result.table if row.changes}
    assert list(formats.values()).count("btt") >= 3
    assert result.table.kept <= 0.5
    low = bw.tensorize(model, 0.5, data, targets="down", format="lowrank")
    x = torch.randn(2, 16, 32)
    wanted = model(x)
    assert (result.model(x) - wanted).norm() < (low.model(x) - wanted).norm()


def test_heads_are_known_from_the_attention_they_are_in():
    attention = nn.Module()
    attention.head_dim = 8
    attention.q_proj, attention.one = nn.Linear(32, 24), nn.Linear(32, 8)
    attention.other = nn.Linear(32, 20)
    model = nn.ModuleDict({"attention": attention, "mlp": nn.Linear(32, 24)})
    names = ("attention.q_proj", "attention.one", "attention.other", "mlp")
    assert [heads_of(model, name) for name in names] == [3, 0, 0, 0]


def test_a_tucker_network_of_heads_is_offered_at_every_rank_once_it_won(monkeypatch):
    monkeypatch.setattr(
        "bondwise.choose.scout.WORTH", float("inf")
    )  # one rank never beats low rank
    draw = torch.Generator().manual_seed(0)
    x = torch.randn(400, 64, generator=draw)
    weights = {"b.0.q": torch.randn(64, 64, generator=draw)}
    here = Group(weights, Metric(x.T @ x, 400, 0.05))
    won = Shape("tucker", (4, 16), (64,))
    found = list(Scout({".q": won}, ("b.0",), 0.5, 32).more(here, candidates(here)))
    assert len({c.numbers for c in found}) > 3
    assert {shape(c) for c in found} == {won}
