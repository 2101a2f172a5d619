"""A block refined: never worse than it was, the same every time, and blind to padding."""

from copy import deepcopy

import pytest
import torch
from torch import nn

from bondwise.compress.refine import refine
from bondwise.flow.chains import blocks as rooms
from bondwise.flow.chains.blocks import Stream


def stream(count=4, dtype=torch.float32, masks=None):
    draw = torch.Generator().manual_seed(0)
    hidden = tuple(torch.randn(3, 6, 8, generator=draw, dtype=dtype) for _ in range(count))
    return Stream(hidden, (((), {}),) * count, masks or (None,) * count)


def block(dtype=torch.float32):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 16), nn.LayerNorm(16), nn.Linear(16, 8)).to(dtype)


def error(model, given, wanted):
    """Mean over tokens of ``||y~ - y||^2 / ||y||^2`` of the last batch, in plain float64."""
    with torch.no_grad():
        off = deepcopy(model).double()(given.hidden[3].double()) - wanted[3].double()
    return float((off**2).sum(-1).div((wanted[3].double() ** 2).sum(-1)).mean())


@pytest.mark.parametrize("fast", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_held_out_error_falls_and_repeats_bit_for_bit(monkeypatch, fast, dtype):
    monkeypatch.setattr(rooms, "fast_bfloat16", lambda _: fast)
    given = stream(dtype=dtype)
    wanted = [x.flip(-1) * 0.5 for x in given.hidden]
    one, two, other = block(dtype), block(dtype), block(dtype)
    random = torch.get_rng_state()
    found = refine(one, given, wanted, [3], steps=60, rate=0.01, seed=1)
    assert refine(two, given, wanted, [3], steps=60, rate=0.01, seed=1) == found
    refine(other, given, wanted, [3], steps=60, rate=0.01, seed=2)
    assert torch.equal(torch.get_rng_state(), random)
    assert all(map(torch.equal, one.parameters(), two.parameters()))
    assert not all(map(torch.equal, one.parameters(), other.parameters()))
    rel = 1e-2 if fast else 1e-3
    assert found.before == pytest.approx(error(block(dtype), given, wanted), rel=rel)
    assert found.after == pytest.approx(error(one, given, wanted), rel=rel)
    assert found.after < 0.7 * found.before


@pytest.mark.parametrize("spoil", ["rate", "nan", "infinity", "perfect"])
def test_a_block_that_gets_no_better_stays_to_the_bit(spoil):
    given, model = stream(), block()
    with torch.no_grad():
        wanted = [model(x) for x in given.hidden]
    if spoil in ("nan", "infinity"):
        wanted[0] = wanted[0] * float("nan" if spoil == "nan" else "inf")
    rate = 1e4 if spoil == "rate" else 1e-3
    model[0].weight.requires_grad_(False)
    if spoil == "rate":
        with torch.no_grad():
            model[0].weight.mul_(1.001)
    before = deepcopy(model.state_dict())
    found = refine(model, given, wanted, [3], steps=30, rate=rate)
    assert found.after <= found.before
    if found.after == found.before:
        assert all(map(torch.equal, before.values(), model.state_dict().values()))
    assert all(torch.isfinite(p).all() for p in model.parameters())
    assert not model[0].weight.requires_grad
    assert model[2].weight.requires_grad
    assert all(p.grad is None for p in model.parameters())


def test_padding_is_not_learnt():
    mask = torch.ones(3, 6, dtype=torch.bool)
    mask[:, 4:] = False
    given = stream(masks=(mask,) * 4)
    wanted = [x.flip(-1) for x in given.hidden]
    spoiled = [torch.where(mask[..., None], y, y + 50) for y in wanted]
    entered = tuple(torch.where(mask[..., None], x, 9 * x) for x in given.hidden)
    other = Stream(entered, given.calls, given.masks)
    one, two = block(), block()
    first = refine(one, given, wanted, [3], steps=20)
    second = refine(two, other, spoiled, [3], steps=20)
    assert first.after < first.before
    assert second.before == pytest.approx(first.before, rel=1e-3)
    assert second.after == pytest.approx(first.after, rel=1e-2)
