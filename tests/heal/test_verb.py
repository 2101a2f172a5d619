"""`bondwise heal`, and `compress --heal`: folders in, a folder out, whole or not at all."""

import json
from itertools import count

import pytest
import torch

import bondwise as bw
from bondwise.cli import main
from bondwise.flags import minutes
from bondwise.heal import descent, loop
from bondwise.huggingface.loading import load_model
from bondwise.rounds import Rounds
from tiny import llama, on_disk, text, tokenizer
from verbs import bondwise, files, weights

QUICK = ("--length", 16, "--batch", 4, "-q")


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """A teacher, a student that was made from it, and a text."""
    folder = tmp_path_factory.mktemp("heal")
    on_disk(llama(), folder / "teacher")
    (folder / "text.txt").write_text(text(3000), encoding="utf-8")
    given = [folder / "teacher", "--data", folder / "text.txt", "--out", folder / "student"]
    given += ["--keep", 0.5, "--windows", 4, "--length", 16, "--format", "lowrank", "-q"]
    with pytest.raises(SystemExit, match="0"):
        main(["compress", *map(str, given)])
    return folder


def heal(capsys, models, out, *more):
    given = ("--teacher", models / "teacher", "--data", models / "text.txt", "--out", out)
    return bondwise(capsys, "heal", models / "student", *given, *QUICK, *more)


def test_a_folder_is_healed(capsys, models, tmp_path):
    said = heal(capsys, models, tmp_path / "out", "--steps", 30, "--local", 0.3, "--json")
    assert said.code == 0, said.err
    told = said.json["healing"]
    assert told["after"] < told["before"]
    assert told["steps"] == {"local": 9, "global": 21}
    assert len(told["history"]) == 21
    made = sorted(path.name for path in tmp_path.iterdir())
    assert made == ["out"]  # the state is gone
    page = (tmp_path / "out" / "report.html").read_text("utf-8")
    assert "Perplexity held out" in page
    assert "Loss while training" in page
    report = json.loads((tmp_path / "out" / "report.json").read_text("utf-8"))
    assert report["healing"]["history"] == told["history"]
    healed = load_model(tmp_path / "out").model
    before = load_model(models / "student").model
    assert any(isinstance(m, bw.TensorLinear) for m in healed.modules())
    assert not torch.equal(healed.lm_head.weight, before.lm_head.weight)
    assert {p.dtype for p in healed.parameters()} == {p.dtype for p in before.parameters()}


def test_it_says_what_it_did(capsys, models, tmp_path):
    said = heal(capsys, models, tmp_path / "out", "--steps", 4)
    assert said.code == 0, said.err
    assert "perplexity, held out" in said.out
    assert "bondwise eval" in said.out
    assert max(map(len, said.out.splitlines()[:-2])) <= 80


def test_a_run_that_was_cut_off_goes_on_and_ends_with_the_same_bits(
    capsys, models, tmp_path, monkeypatch
):
    flags = ("--steps", 20, "--local", 0.2)
    assert heal(capsys, models, tmp_path / "whole", *flags).code == 0
    monkeypatch.setattr(loop.time, "monotonic", count(0, 100).__next__)  # a minute, every time
    calls = []
    descend = descent.Descent.__call__

    def stops(moves, step, risen):
        calls.append(step)
        if len(calls) == 7:  # a run can end early after 8: four looks without a better one
            raise KeyboardInterrupt
        return descend(moves, step, risen)

    monkeypatch.setattr(descent.Descent, "__call__", stops)
    said = heal(capsys, models, tmp_path / "cut", *flags)
    assert said.code == 1
    assert not (tmp_path / "cut").exists()
    assert (tmp_path / "cut.healing").is_dir()
    monkeypatch.setattr(descent.Descent, "__call__", descend)
    assert heal(capsys, models, tmp_path / "cut", *flags).code == 0
    assert weights(tmp_path / "cut") == weights(tmp_path / "whole")
    assert not (tmp_path / "cut.healing").exists()


def test_compress_heals_what_it_made(capsys, models, tmp_path):
    given = ("--data", models / "text.txt", "--out", tmp_path / "out", "--keep", 0.5, "-q")
    more = ("--windows", 4, "--length", 16, "--format", "lowrank", "--heal", "2s", "--json")
    said = bondwise(capsys, "compress", models / "teacher", *given, *more)
    assert said.code == 0, said.err
    assert said.json["healing"]["steps"]["global"] >= 10
    assert said.json["kept"] <= 0.5
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_rounds_of_smaller_cuts(capsys, models, tmp_path):
    given = ("--data", models / "text.txt", "--out", tmp_path / "out", "--keep", 0.5, "-q")
    more = ("--windows", 4, "--length", 16, "--format", "lowrank", "--heal", "2s", "--rounds", 2)
    said = bondwise(capsys, "compress", models / "teacher", *given, *more, "--json")
    assert said.code == 0, said.err
    assert 0.45 < said.json["kept"] <= 0.5
    assert said.json["healing"]["teacher"] == str(models / "teacher")
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    model = load_model(tmp_path / "out").model
    assert any(isinstance(m, bw.TensorLinear) for m in model.modules())


def test_rounds_of_another_call_are_made_anew(capsys, models, tmp_path, monkeypatch):
    def rounds(keep):
        given = ("--data", models / "text.txt", "--out", tmp_path / "out", "--keep", keep, "-q")
        more = ("--windows", 4, "--length", 16, "--format", "lowrank")
        more += ("--heal", "2s", "--rounds", 2)
        return bondwise(capsys, "compress", models / "teacher", *given, *more)

    started, one = [], Rounds._round

    def stops(self, at, recipe, *others):
        started.append((at, round(recipe.keep, 3)))
        if len(started) in (2, 4):
            raise KeyboardInterrupt
        return one(self, at, recipe, *others)

    monkeypatch.setattr(Rounds, "_round", stops)
    assert rounds(0.25).code == 1  # in the second round
    assert rounds(0.36).code == 1  # begins anew, and is cut off there too
    assert rounds(0.36).code == 0
    assert started == [(0, 0.5), (1, 0.25), (0, 0.6), (1, 0.36), (1, 0.36)]
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (("--rounds", 2), "rounds=2 came without a time"),
        (("--rounds", 0, "--heal", "1m"), "rounds=0 came"),
    ],
)
def test_rounds_that_are_none(capsys, models, tmp_path, more, said):
    given = ("--data", models / "text.txt", "--out", tmp_path / "out")
    found = bondwise(capsys, "compress", models / "teacher", *given, *more)
    assert (found.code, files(tmp_path)) == (2, {})
    assert said in found.err


def test_the_curve_for_tensorboard(capsys, models, tmp_path):
    pytest.importorskip("tensorboard")
    track = ("--track", tmp_path / "curves")
    assert heal(capsys, models, tmp_path / "out", "--steps", 3, "--local", 0, *track).code == 0
    assert list((tmp_path / "curves").rglob("events.out.tfevents*"))


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (("--steps", 3, "--time", "1m"), "give one of the two"),
        (("--time", "soon"), "write a time such as 15m"),
        (("--steps", 3, "--train", "nothing"), "nothing trains"),
        (("--steps", 3, "--rate", "nan"), "rate=nan came"),
        (("--steps", 3, "--local", 2), "local=2.0 came"),
        (("--steps", 3, "--batch", 0), "batch=0 came"),
    ],
)
def test_bad_choices_write_nothing(capsys, models, tmp_path, flags, said):
    found = heal(capsys, models, tmp_path / "out", *flags)
    assert found.code == 2
    assert said in found.err
    assert found.err.count("\n") == 1 or "--time" in flags
    assert files(tmp_path) == {}


def test_a_teacher_of_other_words(capsys, models, tmp_path):
    other = tokenizer()
    other.add_tokens(["gap"])
    other.save_pretrained(on_disk(llama(), tmp_path / "other"))
    given = (
        "--teacher",
        tmp_path / "other",
        "--data",
        models / "text.txt",
        "--out",
        tmp_path / "out",
    )
    found = bondwise(capsys, "heal", models / "student", *given, *QUICK, "--steps", 3)
    assert found.code == 2
    assert "not the same ones" in found.err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("written", "found"), [("15m", 15.0), ("90s", 1.5), ("1h", 60.0), ("1h30m", 90.0), ("2", 2.0)]
)
def test_times(written, found):
    assert minutes(written) == found
