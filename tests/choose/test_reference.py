"""Outputs of units that are given again while a later weight is probed."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from bondwise.choose.losses import reference as module
from bondwise.choose.losses.reference import Reference

UNITS = ("one", "greedy", "pair", "two", "out")


class Pair(nn.Module):
    def __init__(self, writes):
        super().__init__()
        self.conv, self.writes = nn.Conv2d(6, 6, 3, padding=1), writes

    def forward(self, x):
        return self.conv(F.relu_(x) if self.writes else x), x.mean()


class Net(nn.Module):
    """A skip around everything, outputs that are written into, and a unit that writes into x."""

    def __init__(self):
        super().__init__()
        self.out, self.two = nn.Linear(6, 5), nn.Conv2d(6, 6, 3, padding=1)
        self.pair, self.greedy = Pair(False), Pair(True)
        self.one = nn.Conv2d(3, 6, 3, padding=1)

    def forward(self, x):
        x = self.one(x)
        y, mean = self.greedy(x)
        z, more = self.pair(F.relu_(y))
        z += x * mean
        return self.out((F.relu_(self.two(z)) + y + more).mean((2, 3)))


def setting(units=UNITS):
    torch.manual_seed(0)
    model = Net().eval()
    return model, Reference.of(model, torch.randn(4, 3, 8, 8), units)


@pytest.mark.parametrize(
    ("probed", "expected"),
    [
        ("one", ["one", "greedy", "pair", "two", "out"]),
        ("pair.conv", ["greedy", "pair", "two", "out"]),
        ("two", ["greedy", "two", "out"]),
        ("out", ["greedy", "out"]),
    ],
)
def test_distances_are_the_same_and_what_came_before_does_not_run(probed, expected):
    model, reference = setting()
    weight = model.get_submodule(probed).weight
    weight.data = weight.data + 0.1 * torch.randn_like(weight)
    wanted = reference.distance()
    assert wanted > 0
    names = []
    for name in UNITS:  # of a unit that is given again only the outside is called
        inner = model.get_submodule(name)
        own = inner.forward
        inner.forward = lambda *a, name=name, own=own: (names.append(name), own(*a))[1]
    for _ in range(2):
        names.clear()
        with reference.replay.before(model, probed):
            assert reference.distance() == wanted
        assert names == expected
    names.clear()
    assert reference.distance() == wanted
    assert names == list(UNITS)


def test_nothing_is_kept_without_room_or_where_nobody_asks(monkeypatch):
    assert setting(())[1].replay is None
    monkeypatch.setattr(module, "ROOM", 1000)
    assert setting()[1].replay is None


def test_in_another_precision_units_run():
    model, reference = setting()
    reference.replay.given["one"].zero_()
    with reference.replay.before(model, "out"):
        assert reference.distance() > 0
        reference.products.fast = not reference.replay.fast
        reference.products.asked = False
        again = Reference(model, reference.batch, reference.output, False, reference.products)
        assert again.distance() < 1e-3
