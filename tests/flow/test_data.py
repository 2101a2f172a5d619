"""Data that cannot teach much, or anything: a fallback that is said, or one sentence."""

import pytest
import torch
from torch import nn

import bondwise as bw
import tiny
from bondwise.errors import BondwiseError


def chain():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(24, 32), nn.GELU(), nn.Linear(32, 24))


def draw(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


POOR = {
    "one vector": draw(1, 24),
    "two vectors": draw(2, 24),
    "constant": torch.full((64, 24), 0.3),
    "the same vector": draw(1, 24).expand(64, 24).contiguous(),
    "dead inputs": draw(64, 24) * (torch.arange(24) >= 5),
    "two directions": draw(64, 2) @ draw(2, 24),
    "all zero": torch.zeros(64, 24),
    "tiny": draw(64, 24) * 1e-18,
    "huge": draw(64, 24) * 1e15,
    "uneven": draw(64, 24) * torch.logspace(-8, 8, 24),
}


@pytest.mark.parametrize("kind", POOR)
@pytest.mark.parametrize("keep", [0.4, 0.8])
def test_poor_data_gives_a_finite_model_within_the_budget(kind, keep, brief):
    result = bw.tensorize(chain(), keep, data=POOR[kind])
    assert result.table.kept <= keep
    assert all(torch.isfinite(p).all() for p in result.model.parameters())
    assert torch.isfinite(result.model(draw(7, 24))).all()
    errors = [e for row in result.table for e in (row.error, row.held_out) if e is not None]
    assert all(0 <= e < 10 for e in errors), errors


def test_one_sequence_is_enough_and_is_said(brief):
    result = bw.tensorize(tiny.llama(), 0.6, data=tiny.tokens(1))
    assert any("one sample" in note for note in result.table.notes)


def test_a_block_of_another_width_before_the_last(brief):
    model = nn.Sequential(nn.Linear(24, 32), nn.Linear(32, 24), nn.Linear(24, 24))
    assert bw.tensorize(model, 0.6, data=draw(64, 24)).blocks


ONE_NAN = draw(64, 24).put(torch.tensor(963), torch.tensor(torch.nan))
REFUSED = {
    "NaN in data": (chain, ONE_NAN, 0.6, "Inputs of 0"),
    "a number": (chain, 7, 0.6, "type int"),
    "no batch at all": (chain, torch.tensor(1.0), 0.6, "shape"),
    "an empty list": (chain, [], 0.6, "empty list"),
    "an empty tensor": (chain, torch.zeros(0, 24), 0.6, "shape"),
    "nothing to draw from": (chain, iter(()), 0.6, "no batch"),
    "unknown tokens": (tiny.llama, tiny.tokens() + 100, 0.6, "model lacks"),
    "long windows": (tiny.gpt2, tiny.tokens(4, 80), 0.6, "model lacks"),
    "a budget below the least": (chain, draw(64, 24), 0.001, "keep"),
    "fused attention": (
        lambda: nn.TransformerEncoder(
            nn.TransformerEncoderLayer(24, 4, 48, batch_first=True), 2, enable_nested_tensor=False
        ),
        draw(4, 6, 24),
        0.6,
        "MultiheadAttention",
    ),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_what_cannot_be_used_ends_in_one_sentence(kind):
    make, data, keep, says = REFUSED[kind]
    model = make()
    with tiny.untouched(model), pytest.raises(BondwiseError, match=says) as error:
        bw.tensorize(model, keep, data=data)
    assert str(error.value).endswith(".")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("call", [3, 7, 12])
def test_a_module_that_fails_on_the_way_leaves_the_model_as_it_was(call):
    class Failing(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear, self.count = nn.Linear(24, 24), [0]

        def forward(self, x):
            self.count[0] += 1
            if self.count[0] == call:
                raise RuntimeError("out of luck")
            return x + self.linear(x)

    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(24, 24), Failing(), nn.Linear(24, 24)).train()
    with tiny.untouched(model), pytest.raises(RuntimeError, match="out of luck"):
        bw.tensorize(model, 0.6, data=[draw(8, 24) for _ in range(4)])
