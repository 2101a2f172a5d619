"""The first demo: on tiny stand-ins for CREPE, offline, and once for real."""

import json
import re

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

import bondwise as bw
from bondwise.demo import crepe, hearing, pitch
from bondwise.demo.hearing import suite
from demo.test_wav import write
from report.parts import Parts
from verbs import bondwise, documented, files, process


class Small(nn.Module):
    """CREPE's make in small: columns as kernels, padding and normalisation by hand."""

    def __init__(self, width):
        super().__init__()
        self.conv1 = nn.Conv2d(1, width, (64, 1), (16, 1))
        self.conv1_BN = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, (8, 1))
        self.conv2_BN = nn.BatchNorm2d(width)
        self.classifier = nn.Linear(16 * width, 360)

    def forward(self, x):
        x = F.pad(x[:, None, :, None], (0, 0, 24, 24))
        x = F.max_pool2d(self.conv1_BN(F.relu(self.conv1(x))), (2, 1))
        x = self.conv2(F.pad(x, (0, 0, 3, 4)))
        x = F.max_pool2d(self.conv2_BN(F.relu(x)), (2, 1))
        return torch.sigmoid(self.classifier(x.permute(0, 2, 1, 3).flatten(1)))


@pytest.fixture
def faked(monkeypatch):
    """Stand-ins that are made here, and little of everything."""

    def made(width):
        torch.manual_seed(width)
        return Small(width).eval()

    monkeypatch.setattr(crepe, "full", lambda: made(24))
    monkeypatch.setattr(crepe, "tiny", lambda: made(8))
    few = {"CALIBRATED": 64, "LESSONS": 64, "MINUTES": 1e-4, "TESTED": 12, "BATCH": 16}
    for name, value in few.items():
        monkeypatch.setattr(hearing, name, value)


def test_the_demo_prints_one_table_and_leaves_a_checkpoint(capsys, faked, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    said = bondwise(capsys, "demo", "--keep", 0.5)
    assert (said.code, said.out.count("CREPE, the pitch tracker")) == (0, 1), said.err
    lines = said.out.splitlines()
    assert max(map(len, lines)) <= 80
    names = [line[:10].strip() for line in lines if re.search(r"\d %.*\d %.*\d %", line)]
    assert names == ["CREPE", "ours", "CREPE tiny"]
    wrote = "Wrote bondwise-demo: checkpoint, recipe.yaml, report.json and report.html."
    assert lines[-1] == wrote

    out = tmp_path / "bondwise-demo"
    assert {"recipe.yaml", "report.json", "report.html", "calibration.npy"} < set(files(out))
    report = json.loads((out / "report.json").read_text())
    assert set(report) == documented("compress", "demo") - {"evaluation", "samples", "similarity"}
    dense, ours, tiny = report["pitch"]["models"]
    assert [m["numbers"] for m in (dense, tiny)] == [
        sum(p.numel() for p in model.parameters()) for model in (crepe.full(), crepe.tiny())
    ]
    assert ours["numbers"] == report["parameters"]["after"] < dense["numbers"]
    assert dense["differences"]["clean"][0] == 0
    assert all(model["seconds"] > 0 for model in (dense, ours, tiny))

    loaded = bw.load(out, model=crepe.full())
    assert sum(p.numel() for p in loaded.parameters()) == ours["numbers"]
    test = suite(12)["clean"][1]
    assert pitch.share(pitch.errors(loaded, test)) == ours["shares"]["clean"]
    with pytest.raises(ValueError, match=r"model=.bondwise\.demo\.crepe:full. if you trust it"):
        bw.load(out)
    again = bondwise(
        capsys, "compress", "--recipe", out / "recipe.yaml", "--out", "again", "--json", "-q"
    )
    assert again.code == 0, again.err
    assert again.json["parameters"] == report["parameters"]
    assert again.json["weights"] == report["weights"]
    ids = set(Parts((out / "report.html").read_text()).ids)
    assert {"cost", "pitch", "track", "healing", "weights"} <= ids


def test_a_wav_is_drawn_and_what_is_none_is_said_at_once(capsys, faked, tmp_path):
    at = np.arange(11 * 8000) / 8000
    heard = write(tmp_path / "a<b>.wav", 0.5 * np.sin(2 * np.pi * 220 * at), 8000)
    out = tmp_path / "demo"
    said = bondwise(capsys, "demo", "--wav", heard, "--out", out, "-q", "--keep", 0.6)
    assert (said.code, said.err) == (0, "")
    assert "Note: only the first 10 of the 11 s of a<b>.wav were heard" in said.out
    track = json.loads((out / "report.json").read_text())["pitch"]["track"]
    assert track["file"] == "a<b>.wav"
    assert [len(line["cents"]) for line in track["models"]] == [1001, 1001]
    assert "a&lt;b&gt;.wav, 10.0 s" in (out / "report.html").read_text()
    for words, code, says in [
        (("--wav", tmp_path / "none.wav"), 2, "There is no file"),
        (("--wav", heard, "--lm"), 2, "--wav came with --lm"),
        (("--lm", "--text"), 2, "--lm and --text came; write one"),
    ]:
        refused = bondwise(capsys, "demo", *words, "--out", tmp_path / "no")
        assert (refused.code, refused.err.count("\n")) == (code, 1)
        assert says in refused.err
    assert not (tmp_path / "no").exists()


def test_the_suite_is_of_what_nothing_is_healed_on():
    given = suite(30)
    assert [len(test.hertz) for _, test in given.values()] == [30, 30, 30]
    frames = torch.cat([test.frames for _, test in given.values()])
    assert len(frames.unique(dim=0)) == 90
    assert torch.equal(suite(30)["others"][1].frames, given["others"][1].frames)
    shown = hearing.lessons(hearing.CALIBRATED, 0)
    assert not (frames[:, None, :8] == shown[None, :, :8]).all(-1).any()


@pytest.mark.thorough
@pytest.mark.timeout(1800)  # four minutes on two quiet cores
def test_the_demo_for_real(tmp_path):
    done = process("-m", "bondwise.cli", "demo", "--out", tmp_path / "demo", "--json", "-q")
    assert done.returncode == 0, done.stderr[-1000:]
    report = json.loads(done.stdout)
    dense, ours, tiny = report["pitch"]["models"]
    assert dense["shares"]["clean"] == pytest.approx(0.9925, abs=0.018)
    assert ours["numbers"] < 0.11 * dense["numbers"]
    for test in ("clean", "0 dB", "others"):
        assert ours["shares"][test] > dense["shares"][test] - 0.03
    assert ours["shares"]["clean"] > tiny["shares"]["clean"]
    assert ours["seconds"] < dense["seconds"] / 3
