"""`bondwise bench` from end to end on tiny models; no test looks at how fast they are."""

import json
import shutil
from dataclasses import replace
from unittest.mock import Mock

import pytest
import torch
from transformers import GPT2LMHeadModel, T5Config, T5ForConditionalGeneration

import tiny
from bondwise.bench import verb
from bondwise.errors import DataError
from bondwise.layers.prepare.measurements import Measurements
from report.parts import Parts
from verbs import bondwise, documented, edit

pytestmark = pytest.mark.usefixtures("briefly")
PREPARED = ("--prompt", 16, "--tokens", 4, "--repeats", 3, "-q")
FEW = (*PREPARED[:-1], "--no-prepare", "-q")
WRITER, READER = ("decode", "prefill", "time_to_first_token"), ("forward", "batched")


@pytest.fixture
def peaks(monkeypatch):
    """Peak memory without processes: what was asked, in order."""
    asked = []
    monkeypatch.setattr(verb, "peak_bytes", lambda path, *_: asked.append(path) or 1000)
    return asked


@pytest.mark.parametrize("kind", ["llama", "gpt2", "bert"])
def test_json_has_every_number_and_nothing_else_is_printed(capsys, shelf, small, peaks, kind):
    said = bondwise(capsys, "bench", small / kind, "--vs", shelf / kind, *PREPARED, "--json")
    assert (said.code, said.err) == (0, "")
    report = said.json
    assert (report["source"], report["vs"]) == (str(small / kind), str(shelf / kind))
    assert (report["prompt"], report["tokens"], report["repeats"]) == (16, 4, 3)
    assert (report["threads"], report["device"]) == (torch.get_num_threads(), "cpu")
    assert report["kind"] == ("encoder" if kind == "bert" else "language")
    assert report["notes"] == []
    assert set(report) == documented("bench")
    made = report["prepared"]
    for name in READER if kind == "bert" else WRITER:
        for part in (report["before"], report["after"], report["ratio"], made, made["ratio"]):
            assert 0 < part[name]["low"] <= part[name]["median"] <= part[name]["high"]
    chosen, rows = made["chosen"], (16, 128) if kind == "bert" else (1, 16)
    assert chosen["layers"] == report["after"]["networks"] > 0
    assert {*rows} <= {ways["rows"] for ways in chosen["ways"]}
    for ways in chosen["ways"]:
        assert sum(count for way, count in ways.items() if way != "rows") <= chosen["layers"]
    assert made["resident_bytes"] == report["after"]["resident_bytes"] + chosen["bytes"]
    assert report["measurements"] is None
    ours, other, ratio = (report[part] for part in ("after", "before", "ratio"))
    assert (ours["networks"] > 4, other["networks"]) == (True, 0)
    assert ours["dtype"] == other["dtype"] == "float32"
    # layers this small keep whole weights ready, beside what they store: at most dense's bytes
    assert 0 < ours["resident_bytes"] < 2 * other["resident_bytes"]
    assert ratio["resident_bytes"] == ours["resident_bytes"] / other["resident_bytes"]
    assert (ours["peak_bytes"], ratio["peak_bytes"]) == (1000, 1)
    assert set(ours["macs"]) == set(READER if kind == "bert" else WRITER[:2])
    for part, count in ours["macs"].items():
        assert 0 < count <= other["macs"][part]  # some weights this small are quicker whole
        assert ratio["macs"][part] == count / other["macs"][part]
    assert peaks == [str(small / kind), str(shelf / kind)]


def test_the_model_runs_as_built_and_prepared_and_the_dense_one_in_turns(
    capsys, shelf, small, peaks, monkeypatch
):
    order, run = [], verb.run

    def noted(model, *more):
        served = any(getattr(layer, "served", None) is not None for layer in model.modules())
        order.append("P" if served else "A" if verb.networks(model) else "B")
        return run(model, *more)

    monkeypatch.setattr(verb, "run", noted)
    said = bondwise(capsys, "bench", small / "llama", "--vs", shelf / "llama", *PREPARED)
    assert said.code == 0
    assert "".join(order) == "AB" + "P" + 3 * "APB"
    lines = said.out.splitlines()
    assert max(map(len, lines)) <= 80
    assert lines[2].split() == ["llama", "as", "built", "prepared"]
    assert "Prepared in " in said.out


def test_models_run_in_turns_after_one_run_that_is_not_timed_and_no_peak_is_noted(
    capsys, shelf, small, monkeypatch
):
    order, run = [], verb.run

    def noted(model, *more):
        order.append("A" if verb.networks(model) else "B")
        return run(model, *more)

    monkeypatch.setattr(verb, "run", noted)
    monkeypatch.setattr(verb, "peak_bytes", Mock(side_effect=DataError("no memory for it")))
    said = bondwise(capsys, "bench", small / "llama", "--vs", shelf / "llama", *FEW)
    assert said.code == 0
    lines = said.out.splitlines()
    assert (lines[0], lines[2].split()) == ("llama beside llama", ["llama", "llama", "ratio"])
    assert max(map(len, lines)) <= 80
    assert "Medians of 3 runs in turns" in said.out
    assert "".join(order) == "AB" + 3 * "AB"
    assert "Note: no memory for it\n" in said.out
    row = next(line for line in lines if "peak memory" in line)
    assert row.split()[-3:] == ["-", "-", "-"]


@pytest.mark.parametrize("kind", ["llama", "bert"])
def test_alone_it_has_no_ratio_and_fits_80_columns(capsys, small, peaks, kind):
    said = bondwise(capsys, "bench", small / kind, *FEW)
    assert (said.code, said.err) == (0, "")
    lines = said.out.splitlines()
    assert max(map(len, lines)) <= 80
    assert lines[0] == kind
    assert "ratio" not in said.out
    assert "in turns" not in said.out
    report = bondwise(capsys, "bench", small / kind, *FEW, "--json").json
    assert (report["vs"], report["before"], report["ratio"]) == (None, {}, {})


def test_dtype_is_what_both_run_in(capsys, shelf, small, peaks):
    args = ("bench", small / "llama", "--vs", shelf / "tied", *FEW, "--json")
    report = bondwise(capsys, *args).json
    assert (report["after"]["dtype"], report["before"]["dtype"]) == ("float32", "bfloat16")
    assert report["notes"] == [
        "the models run in float32 and bfloat16; --dtype gives both the same"
    ]
    report = bondwise(capsys, *args, "--dtype", "bfloat16").json
    assert report["after"]["dtype"] == report["before"]["dtype"] == "bfloat16"
    assert report["notes"] == []


def test_a_dense_model_is_not_prepared(capsys, shelf, peaks):
    report = bondwise(capsys, "bench", shelf / "llama", *PREPARED, "--json").json
    assert (report["prepared"], report["measurements"]) == ({}, None)


def test_measurements_of_a_dense_model_serve_a_budget_of_seconds(capsys, shelf, peaks, tmp_path):
    file = tmp_path / "m.json"
    args = ("bench", shelf / "llama", *PREPARED, "--measurements", file, "--json")
    told = bondwise(capsys, *args).json["measurements"]
    found = Measurements.read(file)
    assert told == {"file": str(file), "entries": len(found.entries), "machine": found.machine}
    assert {entry.rows for entry in found.entries} == {1, 16}
    assert {entry.shape for entry in found.entries} == {(48, 48), (24, 48), (96, 48), (48, 96)}
    half = [replace(e, seconds=e.dense_seconds / 2) if e.network else e for e in found.entries]
    Measurements.here(half).write(file)  # what was measured of layers so small is chance
    (tmp_path / "text.txt").write_text(tiny.text())
    usual = ("--unit", "seconds", "--measurements", file, "--keep", 0.99, "--format", "lowrank")
    said = bondwise(capsys, "plan", shelf / "llama", *usual, "--json", "-q")
    assert said.code == 0, said.err
    assert any(note.endswith("counted in seconds") for note in said.json["notes"])


def test_measurements_of_a_compressed_model_are_those_of_its_layers(capsys, small, peaks, tmp_path):
    file = tmp_path / "m.json"
    args = ("bench", small / "bert", *PREPARED, "--measurements", file, "--json")
    report = bondwise(capsys, *args).json
    found = Measurements.read(file).entries
    assert report["measurements"]["entries"] == len(found) > 0
    assert all(entry.network is not None and any(entry.pinned) for entry in found)
    assert {16, 128} <= {entry.rows for entry in found}


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--measurements", "gone/m.json"], "gone/m.json cannot be written (there is no such"),
        (["--measurements", "note.txt"], "note.txt is no file of measurements"),
        (["--measurements", "m.json", "--no-prepare"], "they are of prepared layers"),
    ],
)
def test_a_file_that_cannot_take_measurements_is_refused_before_anything_is_loaded(
    capsys, small, monkeypatch, tmp_path, flags, says
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "note.txt").write_text("mine")
    never = Mock(side_effect=AssertionError("looked at the model before the file"))
    monkeypatch.setattr(verb, "subject", never)
    refused(capsys, small / "llama", *flags, code=2, says=says)


def test_threads_are_set_for_the_measurement_alone(capsys, small, peaks, monkeypatch):
    monkeypatch.setattr(verb.os, "cpu_count", lambda: 4)
    before = torch.get_num_threads()
    report = bondwise(capsys, "bench", small / "llama", *FEW, "--threads", 2, "--json").json
    assert report["threads"] == 2
    assert torch.get_num_threads() == before


@pytest.mark.parametrize("known", [50, 3])
def test_a_dense_model_and_another_vocabulary_are_noted(capsys, shelf, peaks, tmp_path, known):
    config = tiny.gpt2().config
    config.update({"vocab_size": known, "bos_token_id": 1, "eos_token_id": 1})
    GPT2LMHeadModel(config).save_pretrained(tmp_path / "other")
    said = bondwise(capsys, "bench", shelf / "llama", "--vs", tmp_path / "other", *FEW)
    assert said.code == 0  # the tokens of the prompt are known to both
    assert f"Note: {shelf / 'llama'} has no layer that is a tensor network\n" in said.out
    assert f"Note: the models know 128 and {known} tokens: their heads" in said.out


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--prompt", 0], "prompt=0 came; write a whole number of 1 or more"),
        (["--tokens", -3], "tokens=-3 came"),
        (["--repeats", 0], "repeats=0 came"),
        (["--threads", 0], "threads=0 came"),
        (["--threads", 10**9], "threads=1000000000 came; this machine has"),
        (["--prompt", 2**80], "fits 64 bits"),
        (["--dtype", "int8"], "dtype='int8' came"),
        (["--device", "nosuch"], "device='nosuch' came"),
        (["another"], "unexpected extra argument"),
    ],
)
def test_bad_numbers_are_refused_before_anything_is_loaded(capsys, small, monkeypatch, flags, says):
    never = Mock(side_effect=AssertionError("looked at the model before the numbers"))
    monkeypatch.setattr(verb, "subject", never)
    refused(capsys, small / "llama", *flags, code=2, says=says)


def refused(capsys, *arguments, code, says):
    said = bondwise(capsys, "bench", *arguments, "-q")
    assert (said.code, said.out) == (code, "")
    assert said.err.startswith("bondwise: ")
    assert said.err.endswith(".\n")
    assert said.err.count("\n") == 1
    assert says in said.err


def test_what_a_model_cannot_do_is_one_sentence(capsys, shelf, small, peaks, tmp_path):
    llama, bert, none = small / "llama", shelf / "bert", tmp_path / "none"
    long = (
        f"A run of 92 tokens came, prompt and written ones together, and {llama} has 64 positions"
    )
    kinds = f"{llama} continues a text and {bert} only reads one; give two models of one kind"
    for code, arguments, says in (
        (2, (llama, "--prompt", 60), long),
        (2, (bert, "--prompt", 65), "has 64 positions; write a smaller --prompt"),
        (2, (llama, "--vs", bert, *FEW[:-1]), kinds),
        (2, (bert, "--vs", llama, *FEW[:-1]), kinds),
        (1, (tmp_path,), "has no config.json"),
        (1, (llama, "--vs", none, *FEW[:-1]), "There is no folder or file"),
    ):
        refused(capsys, *arguments, code=code, says=says)
    assert peaks == []


def test_models_that_want_more_than_token_ids(capsys, tmp_path):
    T5ForConditionalGeneration(
        T5Config(d_model=16, d_kv=4, d_ff=16, num_layers=1, num_heads=2, vocab_size=64)
    ).save_pretrained(tmp_path)
    refused(capsys, tmp_path, *FEW[:-1], code=2, says="does not run on token ids alone (You ")


def test_a_prompt_longer_than_any_memory_is_one_sentence(capsys, shelf, tmp_path, peaks):
    folder = shutil.copytree(shelf / "llama", tmp_path / "endless")
    edit(folder / "config.json", max_position_embeddings=2**62)
    refused(capsys, folder, "--prompt", 2**50, code=2, says="came, which memory does not hold")


def test_what_was_measured_stands_on_the_page_of_the_folder(capsys, shelf, peaks, tmp_path):
    made = tmp_path / "made"
    assert not bondwise(
        capsys, "compress", shelf / "llama", "--out", made, "--keep", 0.6, "-q"
    ).code
    before = json.loads((made / "report.json").read_text())
    said = bondwise(capsys, "bench", made, "--vs", shelf / "llama", *PREPARED, "--page", "--json")
    assert said.code == 0, said.err
    after = json.loads((made / "report.json").read_text())
    assert after.pop("speed") == said.json
    assert after == before
    texts = Parts((made / "report.html").read_text()).texts
    groups = said.json["prepared"]["chosen"]["groups"]
    assert {"Speed", "prepared", *(f"{g['shape'][0]}x{g['shape'][1]}" for g in groups)} <= {*texts}
    assert {group["rows"] for group in groups} == {1, 16}
    assert sum(g["layers"] for g in groups if g["rows"] == 1) == said.json["after"]["networks"]


@pytest.mark.parametrize("report", [None, "{", '{"weights": []}'])
def test_a_folder_without_a_page_is_refused_before_anything_is_loaded(
    capsys, small, tmp_path, report
):
    folder = shutil.copytree(small / "llama", tmp_path / "llama")
    if report is not None:
        (folder / "report.json").write_text(report)
    said = bondwise(capsys, "bench", folder, *PREPARED, "--page")
    assert said.code == 2
    assert said.err.endswith("llama has no page of bondwise compress; leave --page out.\n")
