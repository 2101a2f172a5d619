"""Convolutional models of every build: their units are found, cut, refined, saved and loaded."""

from copy import deepcopy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import bondwise as bw
from bondwise.compress.refine import refine
from bondwise.flow.chains import blocks as rooms
from bondwise.flow.chains.blocks import Stream
from bondwise.flow.chains.calls import is_image


class Residual(nn.Module):
    """As torchvision writes it, changing tensors in place."""

    def __init__(self, inp, out, stride=1):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(inp, out, 3, stride, 1, bias=False), nn.BatchNorm2d(out)
        self.conv2, self.bn2 = nn.Conv2d(out, out, 3, 1, 1, bias=False), nn.BatchNorm2d(out)
        self.relu = nn.ReLU(inplace=True)
        short = nn.Conv2d(inp, out, 1, stride, bias=False), nn.BatchNorm2d(out)
        self.down = None if inp == out else nn.Sequential(*short)

    def forward(self, x):
        y = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))
        y += x if self.down is None else self.down(x)
        return self.relu(y)


class ResNet(nn.Module):
    units = ("conv1", "layer1.0", "layer2.0", "layer2.1")

    def __init__(self):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 16, 3, 1, 1, bias=False), nn.BatchNorm2d(16)
        self.layer2 = nn.Sequential(Residual(16, 24, 2), Residual(24, 24))
        self.layer1, self.fc = nn.Sequential(Residual(16, 16)), nn.Linear(24, 10)

    def forward(self, x):
        x = self.layer1(F.relu(self.bn1(self.conv1(x))))
        return self.fc(self.layer2(x).mean((2, 3)))


class Double(nn.Sequential):
    def __init__(self, inp, out):
        one = nn.Conv2d(inp, out, 3, padding=1), nn.BatchNorm2d(out), nn.ReLU(inplace=True)
        two = nn.Conv2d(out, out, 3, padding=1), nn.BatchNorm2d(out), nn.ReLU(inplace=True)
        super().__init__(*one, *two)


class Up(nn.Module):
    def __init__(self, inp, out):
        super().__init__()
        self.up, self.conv = nn.ConvTranspose2d(inp, out, 2, 2), Double(2 * out, out)

    def forward(self, x, beside):
        return self.conv(torch.cat([beside, self.up(x)], 1))


class UNet(nn.Module):
    units = ("first", "downs.0", "downs.1", "up1", "up2", "out")

    def __init__(self):
        super().__init__()
        self.up2, self.up1, self.out = Up(24, 16), Up(32, 24), nn.Conv2d(16, 2, 1)
        self.first = Double(3, 16)
        self.downs = nn.ModuleList([Double(16, 24), Double(24, 32)])

    def forward(self, x):
        a = self.first(x)
        b = self.downs[0](F.max_pool2d(a, 2))
        c = self.downs[1](F.max_pool2d(b, 2))
        return {"loss": None, "out": self.out(self.up2(self.up1(c, b), a))}


class Pitch(nn.Module):
    """As CREPE is: layers as attributes, and what is between them in its forward."""

    units = ("conv1", "conv2", "conv3", "classifier")

    def __init__(self):
        super().__init__()
        self.classifier, self.conv3 = nn.Linear(32 * 7, 36), nn.Conv2d(16, 32, (8, 1))
        self.conv1, self.conv2 = nn.Conv2d(1, 24, (16, 1), (4, 1)), nn.Conv2d(24, 16, (8, 1))
        self.norms = nn.ModuleList(nn.BatchNorm2d(n) for n in (24, 16, 32))

    def forward(self, x):
        x = x[:, None, :, None]
        for conv, norm in zip((self.conv1, self.conv2, self.conv3), self.norms, strict=True):
            x = norm(F.relu(conv(F.pad(x, (0, 0, 3, 4)))))
            x = F.max_pool2d(x, (2, 1))
        return torch.sigmoid(self.classifier(x.flatten(1)))


def pictures(seed, count=24):
    draw = torch.Generator().manual_seed(seed)
    smooth = F.interpolate(torch.randn(count, 3, 4, 4, generator=draw), scale_factor=4)
    return smooth + 0.2 * torch.randn(count, 3, 16, 16, generator=draw)


def tones(seed, count=128):
    draw = torch.Generator().manual_seed(seed)
    pitch = torch.rand(count, 1, generator=draw) * 0.5 + 0.02
    return torch.sin(pitch * torch.arange(256)) + 0.2 * torch.randn(count, 256, generator=draw)


def lived(model, x):
    """Weights with falling singular values, and norms that have seen data."""
    torch.manual_seed(0)
    for module in model.modules():
        if isinstance(module, nn.Conv2d | nn.ConvTranspose2d | nn.Linear):
            left, _, right = torch.linalg.svd(torch.randn_like(module.weight.flatten(1)), False)
            weight = left * torch.logspace(0.3, -1.3, len(right)) @ right
            module.weight.data = weight.view_as(module.weight)
    with torch.no_grad():
        for _ in range(10):
            model.train()(x)
    return model.eval()


def far(model, dense, x):
    with torch.no_grad():
        given, wanted = model(x), dense(x)
    given, wanted = (y["out"] if isinstance(y, dict) else y for y in (given, wanted))
    return float((given - wanted).norm() / (wanted - wanted.mean(0)).norm())


@pytest.mark.parametrize(
    ("kind", "data"),
    [(Pitch, tones), (UNet, pictures), pytest.param(ResNet, pictures, marks=pytest.mark.thorough)],
)
def test_a_model_of_any_build_is_cut_unit_by_unit(tmp_path, kind, data):
    dense = lived(kind(), data(0))
    before = deepcopy(dense.state_dict())
    result = bw.tensorize(dense, 0.45, data(0), targets="auto")
    assert all(map(torch.equal, before.values(), dense.state_dict().values()))
    assert 0.4 < result.table.kept <= 0.45
    assert list(result.blocks) == [unit for unit in kind.units if unit in result.blocks]
    assert len(result.blocks) > 2
    assert all(each.after <= each.before for each in result.blocks.values())
    folder = bw.save(result.model, tmp_path / "small")
    assert far(bw.load(folder, kind()).eval(), result.model, data(1)) < 1e-6


@pytest.mark.parametrize(
    ("module", "shape", "said"),
    [
        (nn.Conv1d(4, 6, 3), (2, 6, 9), True),
        (nn.Conv2d(4, 6, 3), (2, 6, 9, 9), True),
        (nn.Sequential(nn.Conv2d(4, 12, 3), nn.PixelShuffle(2)), (2, 3, 9, 9), True),
        (nn.Sequential(nn.Conv2d(4, 6, 3), nn.Flatten()), (2, 54), False),
        (nn.Sequential(nn.Conv2d(3, 9, 4, 4), nn.Flatten(2)), (2, 16, 9), False),  # as in ViT
        (nn.Sequential(nn.Conv1d(9, 9, 3), nn.Linear(9, 9)), (2, 7, 9), False),  # as in Conformer
        (nn.Linear(4, 6), (2, 3, 3, 6), False),
    ],
)
def test_images_are_told_from_tokens(module, shape, said):
    assert is_image(module, torch.zeros(shape)) is said


def test_every_number_of_an_image_weighs_alike_in_a_refinement(monkeypatch):
    monkeypatch.setattr(rooms, "fast_bfloat16", lambda _: False)
    torch.manual_seed(0)
    block = nn.Conv2d(3, 4, 3, padding=1)
    x = [torch.randn(4, 3, 6, 6) for _ in range(3)]
    wanted = [block(each).detach() for each in x]
    for y in wanted:
        y[:, :, :3] *= 1e-4  # in the dark
    found = refine(block, Stream(tuple(x), (((), {}),) * 3, (None,) * 3), wanted, [2], steps=0)
    scale = torch.stack(wanted).double().square().mean()
    with torch.no_grad():
        error = (block(x[2]) - wanted[2]).double().square().mean() / scale
    assert found.before == pytest.approx(float(error), rel=1e-5)
