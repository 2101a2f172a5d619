"""What every topology gets for its one file: each of them, and one that a test writes."""

import sys
from importlib import invalidate_caches

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.testing import assert_close

import bondwise as bw
import bondwise.topology
from bondwise.choose.fitted import shapes
from bondwise.draw.diagram import svg
from bondwise.gauge.compact import compact, stored_numbers
from bondwise.layers.networks import compacted
from bondwise.network.ranks import capped
from bondwise.topology import registry
from nets import multiplied, random_cores, reference

HOOK = '''"""Hook: a chain whose last two cores hold the rows and the columns of one site."""

from bondwise.network.network import Network
from bondwise.network.shapes import balanced
from bondwise.topology.modes import Sizes, bonds, modes, network
from bondwise.topology.registry import register


@register(modes=lambda out, inp: (balanced(out, 2), balanced(inp, 2)), scouted="best")
def hook(rows: Sizes, cols: Sizes, rank: Sizes) -> Network:
    """``o1 i1 a, a o2 b, b i2``."""
    o, i = modes(rows, "o"), modes(cols, "i")
    a, b = bonds(rank, "ab")
    return network([(o[0], i[0], a), (a, o[1], b), (b, i[1])], o, i)
'''


@pytest.fixture(params=[*registry.names(), "hook"])
def known(request, tmp_path, monkeypatch):
    """A known topology; the last one is a file that is written now."""
    if request.param == "hook":
        (tmp_path / "hook.py").write_text(HOOK, encoding="utf-8")
        paths = [*bondwise.topology.__path__, str(tmp_path)]
        monkeypatch.setattr(bondwise.topology, "__path__", paths)
        invalidate_caches()
    yield registry.find(request.param)
    if request.param == "hook":
        del registry._known["hook"], sys.modules["bondwise.topology.hook"]


def model_of(out=12, inp=8):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(inp, out), nn.ReLU(), nn.Linear(out, inp))


def test_it_is_found_named_and_read_back(known):
    assert known.name in registry.names()
    assert getattr(bw, known.name) is known.build
    for out, inp, rank in ((12, 18, 3), (7, 5, 2), (1, 6, 1)):
        net = known.sized(out, inp, rank)
        assert net.shape == (out, inp)
        assert bw.parse(str(net), **net.sizes) == net


def test_it_is_what_numpy_says(known):
    net = known.sized(12, 18, 3)
    cores = random_cores(net)
    W = reference(net, cores)
    assert_close(bw.dense(net, cores), W)
    x = torch.randn(5, 18, dtype=torch.float64)
    for batch in (1, 4096):
        assert_close(bw.apply(bw.plan(net, batch), cores, x), x @ W.T)
    assert_close(multiplied(bw.stack(net, cores)), W)


def test_a_fit_of_full_rank_is_exact(known):
    net = capped(known.sized(6, 4, 24))
    W = torch.randn(6, 4, dtype=torch.float64)
    assert bw.fit(W, net).error < 1e-6


def test_a_layer_is_f_linear_with_and_without_the_gauge(known):
    net = known.sized(12, 18, 3)
    cores = random_cores(net)
    W = reference(net, cores)
    stored = compact(net, cores)
    assert stored.parameters == stored_numbers(net) <= net.parameters
    assert_close(stored.dense(), W)
    x = torch.randn(5, 18, dtype=torch.float64)
    for layer in (
        bw.TensorLinear(net, cores),
        bw.TensorLinear.of([compacted(stored)]),
    ):
        assert_close(layer(x), F.linear(x, W))
        assert_close(layer.as_stack()(x), F.linear(x, W))


def test_a_model_is_planned_cut_saved_and_loaded(known, tmp_path):
    model = model_of()
    table = bw.plan_model(model, keep=0.8, format=known.name)
    assert table.kept <= 0.8
    small = bw.tensorize(model, keep=0.8, format=known.name).model
    cut = [layer for layer in small if isinstance(layer, bw.TensorLinear)]
    assert len(cut) == sum(row.changes for row in table) > 0
    again = bw.load(bw.save(small, tmp_path / "saved"), model_of())
    x = torch.randn(5, 8)
    assert torch.equal(again(x), small(x))


def test_it_is_drawn(known):
    picture = svg(known.sized(12, 18, 3))
    assert picture.startswith("<svg")
    assert picture.count('class="core"') == len(known.sized(12, 18, 3).cores)


def test_what_is_scouted_has_shapes_that_fit(known):
    assert (known.name in registry.scouted("best")) == (known.scouted is not None)
    assert set(registry.scouted("fast")) <= set(registry.scouted("best"))
    for build in shapes(known.name, 24, 18, heads=4):
        assert build(24, 18, (), 2).shape == (24, 18)
