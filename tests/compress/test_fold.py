"""The scale of a norm goes into the layer before it, and the model computes what it did."""

from copy import deepcopy

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import parametrizations

import bondwise as bw
from bondwise.compress.fold import Pair, folded, pairs
from bondwise.compress.swap import with_modules


def lived(norm):
    """A norm as training leaves it, one channel all but switched off."""
    draw = torch.Generator().manual_seed(norm.num_features)
    size = torch.randn(norm.num_features, generator=draw, dtype=torch.float64)
    size[0] = 1e-4
    with torch.no_grad():
        if norm.affine:
            norm.weight.copy_(size)
            norm.bias.copy_(size.flip(0))
        norm.running_mean.copy_(size.roll(1))
        norm.running_var.copy_(size.square().flip(0) + 0.1)
    return norm


KINDS = {
    "conv1d": (nn.Conv1d(4, 6, 3, bias=False), nn.BatchNorm1d(6), (5, 4, 9)),
    "grouped": (nn.Conv2d(4, 6, 3, groups=2), nn.BatchNorm2d(6), (5, 4, 9, 9)),
    "3d": (nn.Conv3d(4, 6, 2), nn.BatchNorm3d(6, affine=False), (5, 4, 5, 4, 3)),
    "transposed": (nn.ConvTranspose1d(4, 6, 3, groups=2), nn.BatchNorm1d(6), (5, 4, 9)),
    "linear": (nn.Linear(4, 6), nn.SyncBatchNorm(6), (5, 4)),
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_folded_pair_gives_what_it_gave_and_its_norm_has_scale_one(kind):
    layer, norm, shape = deepcopy(KINDS[kind])
    model = nn.Sequential(layer, lived(norm)).double().eval()
    x = torch.randn(shape, dtype=torch.float64)
    assert pairs(model, x) == [Pair("0", "1")]
    before = deepcopy(model.state_dict())
    new = with_modules(model, folded(model, [Pair("0", "1")]))
    assert all(map(torch.equal, before.values(), model.state_dict().values()))
    assert before.keys() == new.state_dict().keys()  # any architecture loads it
    wanted = model(x)
    assert torch.allclose(new(x), wanted, rtol=0, atol=1e-10)
    y = new[0](x)  # all that the norm still does is to add numbers
    moved = new[1](y) - y
    assert torch.allclose(moved, moved[:1].mean((0, *range(2, y.ndim)), keepdim=True), atol=1e-10)


def test_in_training_mode_a_folded_pair_gives_what_it_gave_too():
    layer, norm, shape = deepcopy(KINDS["grouped"])
    model = nn.Sequential(layer, lived(norm)).double()
    nn.init.constant_(norm.weight[:1], 0.2)
    norm.eps = 1e-12
    new = with_modules(model, folded(model, [Pair("0", "1")]))
    x = torch.randn(shape, dtype=torch.float64)
    assert torch.allclose(new.train()(x), model.train()(x), atol=1e-8)
    assert torch.allclose(new.eval()(x), model.eval()(x), atol=1e-8)  # statistics moved alike


class Net(nn.Module):
    """A convolution, a norm, and something that makes them no pair."""

    def __init__(self, way):
        super().__init__()
        self.conv, self.norm, self.way = nn.Conv2d(3, 3, 3, padding=1), nn.BatchNorm2d(3), way

    def forward(self, x):
        return self.way(self, x)


def skips(net, x):
    y = net.conv(x)
    return net.norm(y) + y


def gives(net, x):
    y = net.conv(x)
    return {"out": net.norm(y), "features": [y]}


WAYS = {
    "relu before": lambda net, x: net.norm(F.relu(net.conv(x))),
    "changed in place": lambda net, x: net.norm(net.conv(x).mul_(2)),
    "a skip": skips,
    "given too": gives,
    "twice": lambda net, x: net.norm(net.conv(net.norm(net.conv(x)))),
    "a layer twice": lambda net, x: net.norm(net.conv(net.conv(x))),
    "no norm": lambda net, x: net.conv(x),
    "another order": lambda net, x: net.conv(net.norm(x)),
    "pair": lambda net, x: F.relu(net.norm(net.conv(x))),
}


@pytest.mark.parametrize("way", WAYS)
def test_only_what_goes_straight_into_a_norm_is_a_pair(way):
    found = pairs(Net(WAYS[way]), torch.randn(2, 3, 6, 6))
    assert found == ([Pair("conv", "norm")] if way == "pair" else [])


def computed(net):
    parametrizations.weight_norm(net.conv)


def stateless(net):
    net.norm = nn.BatchNorm2d(3, track_running_stats=False)


def hooked(net):
    net.conv.register_forward_hook(lambda _m, _args, output: output * 2)


def own_forward(net):
    class Twice(nn.Conv2d):
        def forward(self, x):
            return 2 * super().forward(x)

    net.conv = Twice(3, 3, 3)


def tied(net):
    net.other = nn.Conv2d(3, 3, 3)
    net.other.weight = net.conv.weight


@pytest.mark.parametrize("spoil", [computed, stateless, hooked, own_forward, tied])
def test_what_computes_otherwise_is_no_pair(spoil):
    net = Net(WAYS["pair"])
    spoil(net)
    assert pairs(net, torch.randn(2, 3, 6, 6)) == []
    assert not net.norm._forward_pre_hooks


class Rows(nn.Module):
    def __init__(self):
        super().__init__()
        self.one, self.norm, self.two = nn.Linear(24, 32), nn.BatchNorm1d(32), nn.Linear(32, 8)

    def forward(self, x):
        return self.two(F.relu(self.norm(self.one(x))))


@pytest.mark.parametrize("inplace", [False, True])
@torch.no_grad()
def test_a_result_is_folded_and_loads_into_the_architecture_as_it_is(tmp_path, inplace):
    torch.manual_seed(0)
    dense, x = Rows().eval(), torch.randn(256, 24) @ torch.randn(24, 24)
    lived(dense.norm)
    kept = deepcopy(dense)
    result = bw.tensorize(dense, 0.7, x, inplace=inplace)
    assert "1 norms have their scale in the layer before them" in result.table.notes
    assert (result.model is dense) is inplace
    weight = kept.norm.weight / (kept.norm.running_var + kept.norm.eps).sqrt()
    one = result.model.one
    new = one.dense() if isinstance(one, bw.TensorLinear) else one.weight
    near = weight[:, None] * kept.one.weight
    assert float((new - near).norm() / near.norm()) < 0.6  # the scaled weight, not the given one
    assert result.model.norm.running_var[0] == 0  # of a channel that is all but off
    folder = bw.save(result.model, tmp_path / "small")
    again = bw.load(folder, kept)
    assert torch.equal(again(x), result.model(x))
    assert float((again(x) - kept(x)).norm() / kept(x).norm()) < 0.5
    plain = bw.tensorize(kept, 0.7, x, fold=False)
    assert torch.equal(plain.model.norm.running_var, kept.norm.running_var)
