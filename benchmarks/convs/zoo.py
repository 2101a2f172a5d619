"""Small convolutional models of each kind, at the sizes of input that such models have."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def _block(inp: int, out: int, kernel: int = 3, stride: int = 1, groups: int = 1) -> nn.Sequential:
    conv = nn.Conv2d(inp, out, kernel, stride, kernel // 2, groups=groups, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(out), nn.ReLU())


class VGG(nn.Sequential):
    """VGG-11 with batch norms and a small head (Simonyan and Zisserman 2015), for 112 x 112."""

    def __init__(self) -> None:
        steps: list[nn.Module] = []
        inp = 3
        for width in (64, 0, 128, 0, 256, 256, 0, 512, 512, 0):
            steps += [_block(inp, width)] if width else [nn.MaxPool2d(2)]
            inp = width or inp
        super().__init__(*steps, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(512, 100))


class Residual(nn.Module):
    """Two convolutions beside what goes past them (He et al. 2016)."""

    def __init__(self, inp: int, out: int, stride: int) -> None:
        super().__init__()
        self.first = _block(inp, out, stride=stride)
        self.second = nn.Sequential(*_block(out, out)[:2])
        past = nn.Sequential(*_block(inp, out, 1, stride)[:2])
        self.past = nn.Identity() if inp == out and stride == 1 else past

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.second(self.first(x)) + self.past(x))


class ResNet(nn.Sequential):
    """ResNet-18's stages, for 112 x 112."""

    def __init__(self) -> None:
        steps: list[nn.Module] = [_block(3, 64, 7, 2)]
        for inp, out, stride in ((64, 64, 1), (64, 128, 2), (128, 256, 2), (256, 512, 2)):
            steps += [Residual(inp, out, stride), Residual(out, out, 1)]
        super().__init__(*steps, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(512, 100))


class Inverted(nn.Module):
    """Wider, depthwise, narrow again (Sandler et al. 2018)."""

    def __init__(self, inp: int, out: int, stride: int, times: int = 6) -> None:
        super().__init__()
        wide = inp * times
        self.steps = nn.Sequential(
            _block(inp, wide, 1), _block(wide, wide, 3, stride, wide), *_block(wide, out, 1)[:2]
        )
        self.same = inp == out and stride == 1

    def forward(self, x: Tensor) -> Tensor:
        return x + self.steps(x) if self.same else self.steps(x)


class Mobile(nn.Sequential):
    """MobileNetV2-like, for 112 x 112."""

    def __init__(self) -> None:
        steps: list[nn.Module] = [_block(3, 32, 3, 2)]
        widths = ((32, 16, 1), (16, 24, 2), (24, 24, 1), (24, 32, 2), (32, 32, 1), (32, 64, 2))
        steps += [Inverted(*width) for width in (*widths, (64, 96, 1), (96, 160, 2))]
        head = [_block(160, 640, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(640, 100)]
        super().__init__(*steps, *head)


class UNet(nn.Module):
    """Down, up by transposed convolutions, and what was passed beside (Ronneberger et al. 2015)."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        a, b, c = width, 2 * width, 4 * width
        self.down = nn.ModuleList([self._two(1, a), self._two(a, b), self._two(b, c)])
        self.up = nn.ModuleList([nn.ConvTranspose2d(c, b, 2, 2), nn.ConvTranspose2d(b, a, 2, 2)])
        self.join = nn.ModuleList([self._two(c, b), self._two(b, a)])
        self.last = nn.Conv2d(a, 2, 1)

    @staticmethod
    def _two(inp: int, out: int) -> nn.Sequential:
        return nn.Sequential(_block(inp, out), _block(out, out))

    def forward(self, x: Tensor) -> Tensor:
        passed = list[Tensor]()
        for step in self.down:
            x = step(F.max_pool2d(x, 2) if passed else x)
            passed.append(x)
        passed.pop()
        for up, join in zip(self.up, self.join, strict=True):
            x = join(torch.cat([up(x), passed.pop()], 1))
        return self.last(x)


class SuperResolution(nn.Module):
    """Residual blocks without norms and a shuffle of pixels (EDSR: Lim et al. 2017)."""

    def __init__(self, width: int = 64, blocks: int = 4) -> None:
        super().__init__()
        self.head = nn.Conv2d(3, width, 3, padding=1)
        self.body = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(width, width, 3, padding=1), nn.ReLU(), nn.Conv2d(width, width, 3, 1, 1)
            )
            for _ in range(blocks)
        )
        self.tail = nn.Sequential(
            nn.Conv2d(width, 4 * width, 3, padding=1),
            nn.PixelShuffle(2),
            nn.Conv2d(width, 3, 3, padding=1),
        )

    def forward(self, x: Tensor) -> Tensor:
        x = self.head(x)
        for block in self.body:
            x = x + block(x)
        return self.tail(x)


@dataclass(frozen=True)
class Kind:
    """A model of a kind, and the shape of one sample."""

    label: str
    make: Callable[[], nn.Module]
    shape: tuple[int, ...]


KINDS = {
    "vgg": Kind("VGG-like", VGG, (3, 112, 112)),
    "resnet": Kind("ResNet", ResNet, (3, 112, 112)),
    "mobile": Kind("MobileNetV2-like", Mobile, (3, 112, 112)),
    "unet": Kind("U-Net", UNet, (1, 96, 96)),
    "super": Kind("super-resolution", SuperResolution, (3, 48, 48)),
}


def pictures(count: int, shape: tuple[int, ...], seed: int) -> Tensor:
    """Blurred noise: neighbours are alike, as in photographs."""
    draw = torch.Generator().manual_seed(seed)
    channels, *sides = shape
    total = torch.zeros(count, *shape)
    for scale in (1, 2, 4, 8):
        coarse = [max(1, side // scale) for side in sides]
        noise = torch.randn(count, channels, *coarse, generator=draw)
        total += scale * F.interpolate(noise, size=tuple(sides), mode="bilinear")
    return (total - total.mean()) / total.std()


def seeded(kind: Kind) -> nn.Module:
    """Random weights whose batch norms have seen pictures; spectra that fall, as trained ones do.

    Weights that were drawn at random have flat spectra, on which nothing can be cut. Each matrix
    gets its own singular vectors and singular values that fall as k^-0.7.
    """
    torch.manual_seed(0)
    model = kind.make()
    for module in model.modules():
        if isinstance(module, nn.Conv2d | nn.ConvTranspose2d | nn.Linear):
            _fall(module.weight)
    model.train()
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.momentum = None
        model(pictures(4, kind.shape, 1))
    return model.eval()


@torch.no_grad()
def _fall(weight: Tensor) -> None:
    matrix = weight.flatten(1)
    u, s, v = torch.linalg.svd(matrix, full_matrices=False)
    falling = torch.arange(1, len(s) + 1) ** -0.7
    falling = falling * (s.norm() / falling.norm())
    weight.copy_(((u * falling) @ v).view_as(weight))
