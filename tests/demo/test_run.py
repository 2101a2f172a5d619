"""The demo: on tiny models with its files faked, and once for real with the small model."""

import json
import re

import numpy as np
import pytest
from transformers import AutoModel, AutoModelForCausalLM

import tiny
from bondwise.demo import assets, run
from bondwise.demo.assets import DocumentRatings, PairRatings
from bondwise.demo.wikitext import Article
from verbs import bondwise, documented, files, process, weights

PITCH = ("pitch", "healing")  # of the other demo


@pytest.fixture
def faked(shelf, brief, monkeypatch):
    """Tiny models and texts in the place of those that are fetched."""

    def articles(first, count):
        return [Article(f"a{k}", tiny.text(2000, seed=k)) for k in range(first, first + count)]

    texts = [tiny.text(20, seed=k) for k in range(6)]
    pairs = [(a, b) for a in tiny.WORDS[:4] for b in tiny.WORDS[4:]]
    alike = np.random.default_rng(0)
    words = PairRatings(pairs, alike.random(len(pairs)))
    faces = {
        "smollm2": shelf / "llama",
        "minilm": shelf / "bert",
        "calibration_articles": articles(0, 3),
        "held_out_articles": articles(10, 1),
        "lee_news": [tiny.text(60, seed=k) for k in range(20, 40)],
        "lee_ratings": DocumentRatings(texts, alike.random((6, 6))),
        "wordsim353": words,
        "simlex": words,
    }
    for name, value in faces.items():
        monkeypatch.setattr(assets, name, lambda value=value: value)
    monkeypatch.setattr(run, "WINDOWS", 8)
    monkeypatch.setattr(run, "LENGTH", 32)
    monkeypatch.setattr(run, "PROMPT", "bond core rank")


def check_folder(capsys, out, tmp_path):
    """Everything is there, and the recipe repeats the weights bit for bit."""
    assert {"recipe.yaml", "report.json", "report.html", "calibration.txt"} < set(files(out))
    again = ("--recipe", out / "recipe.yaml", "--out", tmp_path / "again", "-q")
    assert bondwise(capsys, "compress", *again).code == 0
    assert weights(tmp_path / "again") == weights(out)


def test_the_language_demo(capsys, faked, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    said = bondwise(capsys, "demo", "--lm")
    assert said.code == 0
    assert max(map(len, said.out.splitlines())) <= 80
    lines = said.out.splitlines()
    assert lines[0] == "SmolLM2-135M-Instruct"
    assert lines[1].endswith(" of 21 weights as tensor networks")
    wrote = "Wrote bondwise-demo-lm: checkpoint, recipe.yaml, report.json and report.html."
    assert lines[-1] == wrote
    shown = ["targeted numbers (asked to keep 0.8)", "in domain: Wikipedia", "out of domain: news"]
    shown += ["KL divergence", "top-1", "perplexity (8 windows of 32 tokens)", "peak memory"]
    for part in (*shown, "calibrate", "fit", "save", "prompt", "before", "after", "bond core rank"):
        assert part in said.out
    stages = [line.partition(":")[0] for line in said.err.splitlines()]
    assert stages == [
        "fetch model and text", "load", "draw", "calibrate", "survey", "fit",
        "evaluate in domain", "evaluate out of domain", "write a sentence",
    ]  # fmt: skip

    out = tmp_path / "bondwise-demo-lm"
    report = json.loads((out / "report.json").read_text())
    assert 0.784 <= report["kept"] <= 0.8
    assert set(report) == documented("compress", "demo") - {"similarity", *PITCH}
    texts = [entry["text"].partition(":")[0] for entry in report["evaluation"]]
    assert texts == ["in domain", "out of domain"]
    for entry in report["evaluation"]:
        after, before = entry["after"], entry["before"]
        assert entry["ratio"] == pytest.approx(after["perplexity"] / before["perplexity"])
        assert after["kl"] > 0
    held_out = assets.held_out_articles()[0].text
    assert held_out not in (out / "calibration.txt").read_text()
    model = AutoModelForCausalLM.from_pretrained(out, dtype="auto")
    assert str(model.dtype) == "torch.bfloat16"
    command = "bondwise compress --recipe bondwise-demo-lm/recipe.yaml --out DIR"
    assert report["commands"][0] == command
    check_folder(capsys, out, tmp_path)


def test_the_similarity_demo(capsys, faked, tmp_path):
    out = tmp_path / "demo"
    said = bondwise(capsys, "demo", "--text", "--out", out, "--keep", 0.7, "--seed", 5, "-q")
    assert (said.code, said.err) == (0, "")
    assert re.match(r"all-MiniLM-L6-v2\n\d+ of 39 weights", said.out)
    assert "agreement with human ratings" in said.out
    assert "perplexity" not in said.out
    report = json.loads((out / "report.json").read_text())
    assert (report["keep"], report["seed"]) == (0.7, 5)
    names = [entry["name"].partition(",")[0] for entry in report["similarity"]]
    assert names == ["Lee 2005", "WordSim-353", "SimLex-999"]
    assert all(-1 <= entry["after"] <= 1 for entry in report["similarity"])
    assert any(entry["after"] != entry["before"] for entry in report["similarity"])
    assert AutoModel.from_pretrained(out, dtype="auto").dtype.itemsize == 4
    check_folder(capsys, out, tmp_path)


def test_json_of_the_demo(capsys, faked, tmp_path):
    out = tmp_path / "demo"
    said = bondwise(capsys, "demo", "--text", "--out", out, "--json", "--dtype", "float16", "-q")
    assert [step["name"] for step in said.json["steps"]] == [
        "fetch", "load", "draw", "calibrate", "survey", "fit", "evaluate", "save",
    ]  # fmt: skip
    assert said.json["recipe"]["dtype"] == "float16"
    assert set(said.json) == documented("compress", "demo") - {"evaluation", "samples", *PITCH}
    written = json.loads((out / "report.json").read_text())
    assert {**said.json, "steps": []} == {**written, "steps": []}
    assert bondwise(capsys, "demo", "--text", "--out", out, "-q").code == 1
    assert bondwise(capsys, "demo", "--text", "--out", out, "-q", "--force").code == 0


@pytest.mark.thorough
@pytest.mark.timeout(1200)  # 80 s on a fast machine, minutes on a slow one
def test_the_small_demo_for_real(tmp_path):
    done = process("-m", "bondwise.cli", "demo", "--text", "--out", tmp_path / "demo")
    assert done.returncode == 0, done.stderr[-1000:]
    lines = done.stdout.splitlines()
    assert lines[0] == "all-MiniLM-L6-v2"
    assert max(map(len, lines)) <= 80 + len(str(tmp_path))
    ratings = re.findall(r"(?:Pearson|Spearman)\) +(0\.\d+) +(0\.\d+)", done.stdout)
    before, after = (tuple(float(pair[k]) for pair in ratings) for k in (0, 1))
    assert before[:2] == pytest.approx((0.656, 0.729), abs=0.001)  # as published
    assert len(after) == 3
    assert min(np.array(after) / before) > 0.9  # a fit blind to its inputs loses far more
