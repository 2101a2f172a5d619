"""Convolutional models are healed by their outputs: frames of sound, images, endless samples."""

from itertools import count

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from bondwise import heal, tensorize
from bondwise.flow.forms.door import ENDLESS, batches


class Pitch(nn.Module):
    """As CREPE is: frames of sound, layers as attributes, a sigmoid at the end."""

    def __init__(self):
        super().__init__()
        self.conv1, self.norm = nn.Conv2d(1, 24, (16, 1), (4, 1)), nn.BatchNorm2d(24)
        self.conv2, self.classifier = nn.Conv2d(24, 16, (8, 1)), nn.Linear(16 * 8, 36)
        self.calls = 0

    def forward(self, x):
        self.calls += 1
        x = self.norm(F.relu(self.conv1(x[:, None, :, None])))
        x = F.max_pool2d(F.relu(self.conv2(F.pad(x, (0, 0, 3, 4)))), (7, 1))
        return torch.sigmoid(self.classifier(x.flatten(1)))


class Picture(nn.Module):
    """An image to an image, by pixels that are shuffled at the end."""

    def __init__(self):
        super().__init__()
        self.one, self.two = nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(16, 12, 3, padding=1)

    def forward(self, x):
        return F.pixel_shuffle(self.two(F.relu(self.one(x))), 2)


def tones(seed=0, rows=32):
    """Sound without end."""
    for k in count(seed):
        draw = torch.Generator().manual_seed(k)
        pitch = torch.rand(rows, 1, generator=draw) * 0.5
        yield torch.sin(pitch * torch.arange(256)) + 0.1 * torch.randn(rows, 256, generator=draw)


def cut(dense, keep):
    torch.manual_seed(1)
    for p in dense.parameters():
        if p.ndim > 1:
            nn.init.kaiming_normal_(p)
    return tensorize(dense.eval(), keep, targets="auto").model


def far(model, dense, x):
    with torch.no_grad():
        given, wanted = model(x), dense(x)
    return float((given - wanted).norm() / wanted.norm())


def test_sound_without_end_heals_a_convolutional_model_in_some_steps():
    dense = Pitch()
    student = cut(dense, 0.4)
    other = next(tones(10_000))
    healed = heal(student, dense, tones(), steps=60, rate=1e-3)
    assert healed.measured == "error"
    assert healed.recipe.batch == healed.recipe.micro == 64  # frames are small: all at once
    assert far(healed.model, dense, other) < 0.7 * far(student, dense, other)
    assert not healed.model.norm.training
    assert torch.equal(healed.model.norm.running_mean, dense.norm.running_mean)


@pytest.mark.parametrize("time", [{"steps": 3}, {"minutes": 0.001}])
def test_the_teacher_is_asked_for_what_is_needed(time):
    dense = Pitch()
    student = cut(dense, 0.5)
    dense.calls = 0
    healed = heal(student, dense, next(tones(rows=640)), batch=16, validate=16, **time)
    assert dense.calls == min(healed.steps, 39) + 1  # what is held out, too


def test_every_number_of_an_image_weighs_alike():
    dense = Picture()
    student = cut(dense, 0.5)
    x = torch.randn(40, 3, 8, 8)
    x[:, :, :4] *= 1e-3  # the upper half is dark, where a relative error would be all
    healed = heal(student, dense, x, steps=20, validate=8, batch=8)
    with torch.no_grad():
        given, wanted = student(x[-8:]), dense(x[-8:])
    error = float((given - wanted).square().sum() / wanted.square().sum())
    assert healed.before == pytest.approx(error, rel=1e-2)  # bfloat16
    assert healed.after < healed.before


def test_a_generator_of_pairs_is_read_no_further_than_is_needed():
    read = []

    def pairs():
        for x in tones(rows=64):
            read.append(len(x))
            yield x, x[:, 0]

    assert sum(map(len, batches(pairs(), count=None))) == ENDLESS == sum(read)
