"""A budget of seconds on the command line: from a file of measurements to a folder, and again."""

import json

import pytest
import torch
import yaml
from torch import nn

import clocks
import tiny
from bondwise.checkpoint.loading import load_model
from bondwise.layers.prepare.measurements import Measurements
from verbs import bondwise, weights


@pytest.fixture
def here(shelf, tmp_path, monkeypatch, brief):
    """A folder with a text, and measurements of the tiny llama."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text.txt").write_text(tiny.text(600))
    clocks.clock(load_model(shelf / "llama").model, tmp_path / "m.json")
    return tmp_path


SECONDS = ("--unit", "seconds", "--measurements", "m.json")
SMALL = ("--windows", 8, "--length", 32, "--json", "-q")


def test_the_recipe_has_the_digest_and_repeats_the_bytes(capsys, shelf, here):
    asked = ("compress", shelf / "llama", "--data", "text.txt", "--keep", 0.7, *SECONDS, *SMALL)
    said = bondwise(capsys, *asked, "--out", "one")
    assert said.code == 0, said.err
    notes = said.json["notes"]
    (kept,) = [float(note.split()[1]) for note in notes if note.endswith("counted in seconds")]
    assert 0.68 <= kept <= 0.7
    assert any(
        note.startswith("seconds are those of prepared layers at 1 and 256") for note in notes
    )
    assert any(row["seconds"] and len(row["seconds"]) == 2 for row in said.json["weights"])
    recipe = yaml.safe_load((here / "one/recipe.yaml").read_text())
    assert recipe["measurements"] == str(here / "m.json")
    assert recipe["digest"] == Measurements.read(here / "m.json").digest
    again = bondwise(capsys, "compress", "--recipe", "one/recipe.yaml", "--out", "two", "-q")
    assert again.code == 0, again.err
    assert weights(here / "one") == weights(here / "two")
    assert (here / "one/recipe.yaml").read_text() == (here / "two/recipe.yaml").read_text()


def test_another_file_in_its_place_is_refused_and_may_be_named(capsys, shelf, here):
    asked = ("compress", shelf / "llama", "--keep", 0.7, *SECONDS, "-q")
    assert bondwise(capsys, *asked, "--out", "one").code == 0
    model = load_model(shelf / "llama").model
    clocks.clock(model, here / "m.json", rate=lambda share, _: 0.9 * share)
    said = bondwise(capsys, "compress", "--recipe", "one/recipe.yaml", "--out", "two", "-q")
    assert (said.code, said.out) == (2, "")
    assert "m.json are not those of the recipe (sha256 " in said.err
    anew = ("--recipe", "one/recipe.yaml", "--measurements", "m.json", "--out", "two", "-q")
    assert bondwise(capsys, "compress", *anew).code == 0
    digests = [
        yaml.safe_load((here / name / "recipe.yaml").read_text())["digest"]
        for name in ("one", "two")
    ]
    assert digests[0] != digests[1]


@pytest.mark.parametrize("verb", ["plan", "compress"])
@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--unit", "seconds"], "unit='seconds' came without measurements; give measurements=FILE"),
        (["--measurements", "m.json"], "came with unit='params', which counts no seconds"),
        (["--unit", "seconds", "--measurements", "gone.json"], "gone.json cannot be read (No such"),
        (["--unit", "seconds", "--measurements", "empty.json"], "empty.json is no file of"),
        (["--unit", "seconds", "--measurements", "newer.json"], "newer.json are of schema 9"),
        (
            ["--unit", "seconds", "--measurements", "nan.json"],
            "nan.json cannot be used (seconds of",
        ),
        (["--unit", "seconds", "--measurements", "other.json"], "was not measured in"),
        (["--unit", "hours"], "unit='hours' came; write one of params, bytes, macs, seconds"),
    ],
)
def test_bad_files_and_flags_are_one_sentence_and_leave_nothing(
    capsys, shelf, here, verb, flags, says
):
    good = json.loads((here / "m.json").read_text())
    (here / "empty.json").write_text("")
    (here / "newer.json").write_text(json.dumps(good | {"schema": 9}))
    spoilt = [*good["entries"][:1], good["entries"][1] | {"seconds": float("nan")}]
    (here / "nan.json").write_text(json.dumps(good | {"entries": spoilt}))
    clocks.clock(nn.Sequential(nn.Linear(7, 5)), here / "other.json")
    out = ("--out", "o") if verb == "compress" else ()
    said = bondwise(capsys, verb, shelf / "llama", *flags, *out, "-q")
    assert (said.code, said.out) == (2, "")
    assert says in said.err
    assert said.err.count("\n") == 1
    assert not (here / "o").exists()


def test_a_plan_counts_seconds(capsys, shelf, here):
    report = bondwise(capsys, "plan", shelf / "llama", "--keep", 0.6, *SECONDS, "--json", "-q").json
    (kept,) = [float(n.split()[1]) for n in report["notes"] if n.endswith("counted in seconds")]
    assert 0.58 <= kept <= 0.6


class Small(nn.Module):
    """Convolutions and a linear layer after them."""

    def __init__(self):
        super().__init__()
        self.one = nn.Conv2d(3, 16, 3, padding=1)
        self.two = nn.Conv2d(16, 24, 3, stride=2, padding=1)
        self.out = nn.Linear(24, 10)

    def forward(self, x):
        x = self.two(self.one(x).relu()).relu()
        return self.out(x.mean((2, 3)))


def test_samples_are_what_a_model_of_convolutions_is_measured_with(capsys, tmp_path, monkeypatch):
    torch.save(torch.randn(12, 3, 9, 9), tmp_path / "samples.pt")
    program = torch.export.export(
        Small().eval(), (torch.zeros(2, 3, 9, 9),), dynamic_shapes=({0: torch.export.Dim("n")},)
    )
    torch.export.save(program, tmp_path / "net.pt2")
    monkeypatch.chdir(tmp_path)
    asked = ("--data", "samples.pt", "--repeats", 1, "--json", "-q")
    report = bondwise(capsys, "bench", "net.pt2", *asked, "--measurements", "m.json").json
    assert report["prepared"] == {}
    found = Measurements.read("m.json").entries
    linear = {(entry.shape, entry.rows) for entry in found if entry.host == "linear"}
    assert linear == {((10, 24), 1), ((10, 24), 8)}
    for entry in found:
        if entry.host != "linear":
            assert entry.rows in (1, 8)
            assert entry.size == ((9, 9) if entry.shape[1] in (27, 144) else (5, 5))
