"""`bondwise read`: a page from a folder and a text, or one sentence that says why not."""

import json
import sys

import torch

import bondwise as bw
import tiny
from bondwise.checkpoint.loading import load_model
from bondwise.errors import (
    BudgetError,
    CheckpointError,
    DataError,
    MissingExtraError,
    SelectionError,
)
from bondwise.flow.text import corpus
from bondwise.read.reading import unembedding, why_not
from bondwise.read.verb import Reader, check_page
from read.planted import refused
from verbs import bondwise, documented


def test_a_reading_has_every_bond_with_its_controls(report, model):
    expected = [(b.layer, b.name, b.size) for b in bw.read.bonds(model)]
    found = [(la["name"], b["name"], b["size"]) for la in report["layers"] for b in la["bonds"]]
    assert found == expected
    json.dumps(report, allow_nan=False)
    places = report["corpus"]["ids"]
    assert len(places) == 8 * 32 == report["corpus"]["windows"] * report["corpus"]["length"]
    measured = []
    for layer in report["layers"]:
        for bond in layer["bonds"]:
            measured += [v for v in bond["importance"]["measured"] if v is not None]
            assert len(bond["values"]) == bond["size"]
            assert {n["name"] for n in bond["nulls"]} >= {"shuffled", "signs", "noise", "gauge"}
            assert bond["gauge"] == "canonical"
            assert len(bond["features"]) == min(6, bond["size"])
            shares = [f["share"] for f in bond["features"]]
            assert shares == sorted(shares, reverse=True)
            for feature in bond["features"]:
                values = [v for _, v in feature["examples"]]
                assert values == sorted(values, reverse=True)
                assert all(0 <= at < len(places) for at, _ in feature["examples"])
                assert (feature["logits"] is None) == (feature["why_no_logits"] is not None)
                writes = layer["kind"] in ("o_proj", "down_proj")
                assert (feature["logits"] is not None) == writes
    assert len(measured) == report["measured"] == 10


def test_the_same_seed_gives_the_same_reading(reader):
    one, two = (reader(names=("o_proj",)).run() for _ in range(2))
    assert json.dumps(one) == json.dumps(two)
    assert {layer["kind"] for layer in one["layers"]} == {"o_proj"}


def test_features_in_a_gauge_that_data_chooses(reader):
    few = reader(names=("o_proj",), kind="varimax", windows=4).run()
    assert few["notes"]
    assert all("canonical gauge, for want of tokens" in note for note in few["notes"])
    report = reader(names=("o_proj",), kind="varimax", windows=32).run()
    kinds = {bond["gauge"] for layer in report["layers"] for bond in layer["bonds"]}
    assert kinds == {"varimax"}
    stable = [f["stability"] for la in report["layers"] for f in la["bonds"][0]["features"]]
    assert all(0 <= s <= 1 for s in stable)


def test_the_command_writes_a_page_and_says_what_it_found(capsys, folder, shelf, tmp_path):
    page = tmp_path / "page.html"
    given = ["read", folder, "--data", shelf / "text.txt", "--out", page, "-q", "--windows", 8]
    given += ["--length", 32, "--draws", 3, "--measure", 0, "--layer", "o_proj"]
    said = bondwise(capsys, *given)
    assert said.code == 0
    assert "bonds of" in said.out
    assert page.read_text("utf-8").startswith("<!doctype html>")
    again = bondwise(capsys, *given)
    assert again.code == 1
    assert "--force" in again.err
    said = bondwise(capsys, *given, "--force", "--json")
    assert said.code == 0
    assert said.json["layers"]
    assert set(said.json) == documented("read")


def test_what_cannot_be_read_is_said_in_a_sentence(reader, folder, shelf, tmp_path):
    short, few = tmp_path / "short.txt", tmp_path / "few.txt"
    short.write_text("bond core rank", encoding="utf-8")
    few.write_text(tiny.text()[:300], encoding="utf-8")
    little = {"length": 8, "draws": 2, "windows": 4, "measure": 0}
    for kind, said, made in (
        (SelectionError, "no bond to read", Reader(str(shelf / "llama"), str(shelf / "text.txt"))),
        (SelectionError, r"nearest are .*o_proj", reader(names=("o_prj",))),
        (SelectionError, "write one of raw", reader(kind="svd")),
        (BudgetError, "draws=1 came", reader(draws=1)),
        (DataError, "tokens", Reader(str(folder), str(short), length=32)),
        (DataError, "need at least", Reader(str(folder), str(few), **little)),
    ):
        refused(kind, said, made.run)
    nowhere = tmp_path / "nowhere" / "page.html"
    refused(CheckpointError, "cannot be written", check_page, nowhere, False)
    refused(CheckpointError, "is a folder", check_page, tmp_path, False)


def test_what_the_extra_brings_is_asked_for_before_anything_is_read(reader, monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn", None)
    refused(MissingExtraError, r"pip install 'bondwise\[read\]'", reader().run)


def test_the_straight_way_to_the_logits_is_that_of_the_model(shelf):
    model = load_model(shelf / "llama", torch.float32, task="causal").model
    head = unembedding(model)
    direction = torch.randn(3, model.config.hidden_size)
    expected = (direction * model.model.norm.weight) @ model.lm_head.weight.T
    found = head.effects(direction)
    torch.testing.assert_close(found, expected - expected.mean(1, keepdim=True))
    up, up_at, down, down_at = head.extremes(direction, 2)
    torch.testing.assert_close(up[:, 0], found.max(1).values)
    torch.testing.assert_close(down[:, 0], found.min(1).values)
    assert up_at.shape == down_at.shape == (3, 2)
    assert why_not("model.layers.0.mlp.down_proj", 48, head) is None
    assert "residual stream" in why_not("model.layers.0.mlp.up_proj", 96, head)
    assert "no head" in why_not("mlp.down_proj", 48, None)
    assert unembedding(torch.nn.Linear(3, 3)) is None


def test_a_corpus_keeps_each_text_once(shelf):
    loaded = load_model(shelf / "llama", task="causal")
    found = corpus(loaded.model, loaded.tokenizer, tiny.text(), 4, 16)
    assert found.ids.shape == (4, 16)
    assert set(found.pieces) == set(found.ids.flatten().tolist())
    plain = found.to_json()
    again = [plain["pieces"][place] for place in plain["ids"]]
    assert again == [found.pieces[token] for token in found.ids.flatten().tolist()]
    assert found.piece(5) == again[5]
