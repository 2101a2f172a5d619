"""`bondwise heal`, and `compress --heal`: folders in, a folder out, whole or not at all."""

import json
import re
import shutil
from itertools import count

import pytest
import torch

import bondwise as bw
from bondwise.checkpoint.loading import load_model
from bondwise.choices import minutes
from bondwise.cli import main
from bondwise.heal import compress_and_heal as healed
from bondwise.train import descent, loop
from tiny import bert, llama, on_disk, text, tokenizer
from verbs import bondwise, documented, files, weights

BERT = "A BertModel came as the teacher, which does not predict the next token"
QUICK = ("--length", 16, "--batch", 4, "-q")


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """A teacher, a student made from it, a teacher of one block, a text; and what is refused."""
    folder = tmp_path_factory.mktemp("heal")
    teacher = llama()
    on_disk(teacher, folder / "teacher")
    teacher.model.layers = teacher.model.layers[:1]  # nothing of it is refined: quick to cut
    teacher.config.num_hidden_layers = 1
    on_disk(teacher, folder / "short")
    (folder / "text.txt").write_text(text(3000), encoding="utf-8")
    given = [folder / "teacher", "--data", folder / "text.txt", "--out", folder / "student"]
    given += ["--keep", 0.5, "--windows", 4, "--length", 16, "--format", "lowrank", "-q"]
    with pytest.raises(SystemExit, match="0"):
        main(["compress", *map(str, given)])
    other = tokenizer()
    other.add_tokens(["gap"])
    other.save_pretrained(on_disk(llama(), folder / "other"))
    on_disk(bert(), folder / "bert")
    student = load_model(folder / "student").model
    torch.nn.init.constant_(student.model.norm.weight, float("nan"))
    bw.save(student, folder / "broken", tokenizer=tokenizer())
    (folder / "word.txt").write_text("bond")
    return folder


def heal(capsys, models, out, *more, student="student"):
    given = ("--teacher", models / "teacher", "--data", models / "text.txt", "--out", out)
    return bondwise(capsys, "heal", models / student, *given, *QUICK, *more)


def test_a_folder_is_healed(capsys, models, tmp_path):
    said = heal(capsys, models, tmp_path / "out", "--steps", 12, "--rate", 1e-3, "--json")
    assert said.code == 0, said.err
    told = said.json["healing"]
    assert told["after"] < told["before"]
    assert told["steps"] == len(told["history"]) == 12
    assert set(said.json) == documented("compress", "heal")
    assert set(told) == documented("The healing")
    assert [path.name for path in tmp_path.iterdir()] == ["out"]  # the state is gone
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
    flags = ("--steps", 16)
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


def compress(capsys, models, out, *more):
    given = ("--data", models / "text.txt", "--out", out, "--windows", 4, "--length", 16, "-q")
    given = (*given, "--format", "lowrank", "--heal", "1s")
    return bondwise(capsys, "compress", models / "short", *given, *more)


def test_compress_heals_what_it_made(capsys, models, tmp_path):
    said = compress(capsys, models, tmp_path / "out", "--keep", 0.5, "--json")
    assert said.code == 0, said.err
    assert said.json["healing"]["steps"] >= 10
    assert said.json["kept"] <= 0.5
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert said.json["source"] == str(models / "short")
    assert said.json["healing"]["student"] == str(tmp_path / "out")
    assert {"calibrate", "fit", "heal"} <= {step["name"] for step in said.json["steps"]}
    assert "Measure what it cost: bondwise eval" in said.err
    recipe = (tmp_path / "out" / "recipe.yaml").read_text()
    assert recipe.startswith("# healed, with --heal 0.0166667m\nmodel: ")


def test_a_compression_that_was_cut_off_while_it_healed_goes_on(
    capsys, models, tmp_path, monkeypatch
):
    cuts, cut, run = [], healed.compress, healed.Healer.run

    def notes(recipe, *others, **more):
        cuts.append(recipe.keep)
        return cut(recipe, *others, **more)

    def stops(self, *others, **more):
        (self.state / "state").mkdir(parents=True)
        raise KeyboardInterrupt

    monkeypatch.setattr(healed, "compress", notes)
    monkeypatch.setattr(healed.Healer, "run", stops)
    said = compress(capsys, models, tmp_path / "out", "--keep", 0.5)
    assert (said.code, said.err.count("\n")) == (1, 1)
    assert "run the same command again to go on" in said.err
    assert not (tmp_path / "out").exists()

    def goes_on(self, *others, **more):
        assert (self.state / "state").exists() == (cuts == [0.5])
        shutil.rmtree(self.state, ignore_errors=True)
        return run(self, *others, **more)

    monkeypatch.setattr(healed.Healer, "run", goes_on)
    shutil.copytree(tmp_path, tmp_path.with_name("also"))
    assert compress(capsys, models, tmp_path / "out", "--keep", 0.5).code == 0
    assert cuts == [0.5]
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    also = tmp_path.with_name("also")  # another call begins anew
    assert compress(capsys, models, also / "out", "--keep", 0.6).code == 0
    assert cuts == [0.5, 0.6]
    assert [path.name for path in also.iterdir()] == ["out"]


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (("--heal", "0"), "minutes=0.0 came; write a time above 0"),
        (("--heal", "3x"), "option '--heal': '3x' came; write a time such as 15m or 1h30m; see"),
        (("--heal", "1m", "--keep", -0.5), "keep=-0.5 came"),
        (("--heal", "1m", "--data", "nosuch.txt"), "There is no text file nosuch.txt"),
    ],
)
def test_times_to_heal_that_are_none(capsys, models, tmp_path, more, said):
    found = compress(capsys, models, tmp_path / "out", *more)
    assert (found.code, files(tmp_path)) == (2, {})
    assert said in found.err


def test_a_state_that_another_healing_left_is_said_before_anything_is_cut(capsys, models, tmp_path):
    (tmp_path / "out.healing").mkdir()
    found = compress(capsys, models, tmp_path / "out")
    assert found.code == 1
    assert "out.healing holds what another healing left" in found.err
    assert files(tmp_path) == {"out.healing": b""}


def test_the_curve_for_tensorboard(capsys, models, tmp_path):
    pytest.importorskip("tensorboard")
    track = ("--track", tmp_path / "curves")
    assert heal(capsys, models, tmp_path / "out", "--steps", 3, *track).code == 0
    assert list((tmp_path / "curves").rglob("events.out.tfevents*"))


@pytest.mark.parametrize(
    ("student", "flags", "said"),
    [
        ("student", "--time 1m", "give one of the two"),
        ("student", "--time soon", "write a time such as 15m"),
        ("student", "--train nothing", "nothing trains"),
        ("student", "--rate nan", "rate=nan came"),
        ("student", "--batch 0", "batch=0 came"),
        ("student", "--train re:(", "'re:(' is no regular expression"),
        ("student", "--data nosuch.txt --track curves", "There is no text file"),
        ("student", "--data {}/word.txt", "The text has 1 tokens"),
        ("student", "--teacher {}/other", "not the same ones"),
        ("student", "--teacher {}/bert", BERT),
        ("broken", "", "check its weights for NaN"),
        ("student", "--teacher {}/student", "came as student and as teacher"),
        ("teacher", "--teacher {}/student", "holds no tensor networks"),
    ],
)
def test_what_is_refused_writes_nothing(
    capsys, models, tmp_path, monkeypatch, student, flags, said
):
    monkeypatch.chdir(tmp_path)
    given = flags.format(models).split()
    found = heal(capsys, models, tmp_path / "out", "--steps", 3, *given, student=student)
    assert found.code == 2
    assert said in found.err
    assert found.err.count("\n") == 1 or "--time" in given
    assert files(tmp_path) == {}


@pytest.mark.parametrize("out", [".", "", "/"])
def test_a_folder_without_a_name(capsys, models, tmp_path, monkeypatch, out):
    monkeypatch.chdir(tmp_path)
    found = heal(capsys, models, out, "--steps", 3)
    assert found.code == 1
    assert "came as a folder to write; name a new one" in found.err
    assert files(tmp_path) == {}


@pytest.mark.parametrize("report", ['{"a": ', "[1]", '{"targeted": 3}'])
def test_a_report_that_is_none_costs_no_weights(capsys, models, tmp_path, report):
    student = shutil.copytree(models / "student", tmp_path / "student")
    (student / "report.json").write_text(report)
    found = heal(capsys, models, tmp_path / "out", "--steps", 2, student=student)
    assert found.code == 0, found.err
    assert "report.json is no report of a compression, and is left out" in found.out
    assert load_model(tmp_path / "out").model is not None
    assert not (tmp_path / "out.healing").exists()


def test_why_a_run_ended_is_said(capsys, models, tmp_path):
    flags = ("--steps", 30, "--rate", 1, "--train", "lm_head", "--task", 1e38)
    found = heal(capsys, models, tmp_path / "out", *flags)
    assert found.code == 0
    assert "Note: ended early: the" in found.out
    assert re.search(r"steps of the whole model +\d+ of 30", found.out)


def test_times():
    wanted = {"15m": 15.0, "90s": 1.5, "1h": 60.0, "1h30m": 90.0, "2": 2.0}
    assert {written: minutes(written) for written in wanted} == wanted
