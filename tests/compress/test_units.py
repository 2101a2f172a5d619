"""Layers outside all stacks of blocks are worked on as blocks are, in the order of their calls."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import bondwise as bw
from bondwise.choose.table import Line
from bondwise.compress.shown.calibrated import calibrate, held_apart
from bondwise.flow.chains.units import Calls, units
from bondwise.progress import silent


class Steps(nn.Module):
    """Layers as attributes, written down in another order than they are called in."""

    def __init__(self, width=24):
        super().__init__()
        self.out, self.norm = nn.Linear(width, 12), nn.BatchNorm1d(width)
        self.three, self.two, self.one = (nn.Linear(width, width) for _ in range(3))

    def forward(self, x):
        x = self.norm(F.relu(self.one(x)))
        x = F.relu(self.two(F.pad(x[:, 1:], (0, 1))))
        return torch.sigmoid(self.out(F.relu(self.three(x))))


class Pair(nn.Module):
    def __init__(self, width, out):
        super().__init__()
        self.a, self.b = nn.Linear(width, out), nn.Linear(out, out)

    def forward(self, x):
        return F.relu(self.b(F.relu(self.a(x))))


class Up(nn.Module):
    """Takes two tensors."""

    def __init__(self, width):
        super().__init__()
        self.lift, self.pair = nn.Linear(width, width), Pair(2 * width, width)

    def forward(self, x, beside):
        return self.pair(torch.cat([self.lift(x), beside], -1))


class Net(nn.Module):
    """A U with lists of levels, which do not run one after another."""

    def __init__(self, width=16):
        super().__init__()
        self.ups = nn.ModuleList(Up(width) for _ in range(2))
        self.downs = nn.ModuleList(Pair(width, width) for _ in range(3))

    def forward(self, x):
        a = self.downs[0](x)
        b = self.downs[1](a.flip(-1))
        c = self.downs[2](b.flip(-1))
        return {"out": self.ups[1](self.ups[0](c, b), a)}


class Shared(Steps):
    """Calls one of its layers twice, never one of the others, and one in a way of its own."""

    def forward(self, x):
        x = self.one(self.one(x)) + self.three(input=x)
        return F.linear(x, self.out.weight)


def names(model):
    return [name for name, m in model.named_modules() if isinstance(m, nn.Linear)]


def found(model, x):
    return units(model, names(model), Calls.of(model, x))


def alive(model):
    """Weights with falling singular values, the first above 1, so that errors pile up."""
    torch.manual_seed(0)
    for module in model.modules():
        if isinstance(module, nn.Linear):
            nn.init.orthogonal_(module.weight)
            left, _, right = torch.linalg.svd(module.weight.data, full_matrices=False)
            module.weight.data = left * torch.logspace(0.3, -1, len(right)) @ right
            nn.init.zeros_(module.bias)
    return model.eval()


def data(width, count=512):
    draw = torch.Generator().manual_seed(0)
    mix = torch.randn(width, width, generator=draw) * torch.logspace(0, -1.5, width)
    return torch.randn(count, width, generator=draw) @ mix.T


def test_units_are_found_in_the_order_of_their_calls():
    assert found(Steps(), data(24, 2)) == ["one", "two", "three", "out"]
    assert found(Net(), data(16, 2)) == ["downs.0", "downs.1", "downs.2", "ups.0", "ups.1"]
    assert found(Shared(), data(24, 2)) == ["three"]  # what is called twice or never is in none


def test_a_unit_is_small_and_holds_little_beside_its_weights():
    wide = nn.Sequential(nn.Sequential(*[Pair(8, 8) for _ in range(5)], nn.Linear(8, 8)))
    assert found(wide, torch.zeros(2, 8)) == [f"0.{k}" for k in range(6)]  # eleven are too many
    heavy = nn.Sequential(Pair(8, 8))
    heavy[0].table = nn.Embedding(100, 8)
    assert found(heavy, torch.zeros(2, 8)) == ["0.a", "0.b"]


def relative(model, dense, x):
    given, wanted = (m(x) for m in (model, dense))
    given, wanted = (y["out"] if isinstance(y, dict) else y for y in (given, wanted))
    return float(((given - wanted).norm() / (wanted - wanted.mean(0)).norm()).detach())


@pytest.mark.parametrize(("kind", "width", "gain"), [(Steps, 24, 1.0), (Net, 16, 0.8)])
def test_units_are_refined_on_what_the_compressed_ones_before_give(monkeypatch, kind, width, gain):
    dense = alive(kind())
    x, other = data(width, 1024).split(512)
    result = bw.tensorize(dense, 0.55, x)
    cut = [unit for unit in found(dense, x) if unit in result.blocks]
    assert list(result.blocks) == cut  # in the order in which they were worked on
    assert len(cut) > 2
    assert all(each.after <= each.before for each in result.blocks.values())
    for name in ("units", "chains"):
        monkeypatch.setattr(f"bondwise.compress.shown.calibrated.{name}", lambda *_: [])
    apart = bw.tensorize(dense, 0.55, x)
    assert not apart.blocks
    assert relative(result.model, dense, other) < gain * relative(apart.model, dense, other)


@pytest.mark.thorough
def test_streams_without_room_are_captured_again_and_the_result_is_the_same(monkeypatch):
    dense, x = alive(Steps()), data(24)
    one = bw.tensorize(dense, 0.6, x).model
    monkeypatch.setattr("bondwise.compress.shown.calibrated.ROOM", 0)
    two = bw.tensorize(dense, 0.6, x).model
    assert all(map(torch.equal, one.state_dict().values(), two.state_dict().values()))


def test_stages_of_a_stack_are_blocks_of_one_chain():
    stages = [nn.Sequential(Pair(8, 8), Pair(8, 8)), nn.Sequential(Pair(8, 8), nn.ReLU())]
    model = nn.Sequential(nn.Linear(8, 8), nn.Sequential(*stages), nn.Linear(8, 4)).eval()
    table = bw.plan_model(model, 0.5)
    lines: dict[str, Line] = {line.name: line for line in table if line.changes}
    shown = held_apart([data(8, 64)])
    (chain,) = calibrate(model, lines, shown, silent).chains
    assert chain.blocks == ("0", "1.0.0", "1.0.1", "1.1", "2")
