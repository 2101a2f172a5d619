"""What lies beside a model goes with it from verb to verb; what may be dense weights is named."""

import json
import re
import shutil
from pathlib import Path

import pytest
import torch
from peft import LoraConfig
from safetensors.torch import load_file
from transformers import BertModel

import tiny
from bondwise.checkpoint import loading
from verbs import bondwise, edit, files

QUICK = ("--windows", 4, "--length", 16, "-q")
POOLING = {"word_embedding_dimension": 32, "pooling_mode_cls_token": True}
BESIDE = {
    "1_Pooling/config.json": json.dumps(POOLING),
    "sentence_bert_config.json": '{"max_seq_length": 64}',
    "preprocessor_config.json": "{}",
    "vocab.txt": "[UNK]",
}
LEFT = ("onnx/model.onnx", "pytorch_model.bin", "model.gguf", ".cache/x")
NOTE = "left out, as weights in another form, hidden or not of the folder: .cache/, model.gguf, "
NOTE += "onnx/, pytorch_model.bin"


def furnished(folder):
    """A model with files, folders and a tensor that its class does not know."""
    for name in (*BESIDE, *LEFT):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(BESIDE.get(name, "x"))
    edit(folder / "model.safetensors", lambda found: found.update(mtp=torch.ones(3)))
    return folder


def carried(folder):
    there = {name: value.decode() for name, value in files(folder).items() if name in BESIDE}
    found = {k: v for p in folder.glob("*.safetensors") for k, v in load_file(p).items()}
    return there == BESIDE and not any((folder / n).exists() for n in LEFT) and "mtp" in found


def test_from_verb_to_verb(capsys, shelf, brief, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    source = furnished(shutil.copytree(shelf / "llama", tmp_path / "model"))
    text = ("--data", shelf / "text.txt")
    cut = bondwise(
        capsys, "compress", source, "--out", "cut", *text, *QUICK, "--format", "lowrank", "--json"
    )
    assert cut.code == 0, cut.err
    assert NOTE in cut.json["notes"]
    assert NOTE in json.loads((tmp_path / "cut" / "report.json").read_text())["notes"]
    assert cut.json["bytes"]["after"] == sum(
        f.stat().st_size for f in (tmp_path / "cut").glob("*.safetensors")
    )
    again = bondwise(
        capsys, "heal", "cut", "--teacher", source, *text, "--out", "healed", "--steps", 2,
        "--length", 16, "--batch", 2, "-q",
    )  # fmt: skip
    assert again.code == 0, again.err
    merged = bondwise(capsys, "merge", "healed", "--out", "merged", "-q", "--json")
    assert merged.json["notes"] == []
    assert all(carried(tmp_path / name) for name in ("cut", "healed", "merged"))
    assert not {"recipe.yaml", "report.json", "report.html"} & set(files(tmp_path / "merged"))
    names = load_file(source / "model.safetensors").keys()
    assert (
        names
        == json.loads((tmp_path / "merged" / "model.safetensors.index.json").read_text())[
            "weight_map"
        ].keys()
    )
    named = bondwise(capsys, "merge", "cut", "--out", "merged", "-q", "--force")
    assert "Wrote merged" in named.out


def test_an_encoder_keeps_how_its_vectors_are_pooled(capsys, shelf, tmp_path):
    source = furnished(shutil.copytree(shelf / "bert", tmp_path / "model"))
    said = bondwise(capsys, "compress", source, "--out", tmp_path / "cut", "--keep", 0.9, "-q")
    assert said.code == 0, said.err
    pooling = json.loads((tmp_path / "cut" / "1_Pooling" / "config.json").read_text())
    assert pooling["pooling_mode_cls_token"]
    assert isinstance(BertModel.from_pretrained(tmp_path / "cut"), BertModel)
    assert "Note: left out" in said.out


@pytest.fixture
def never_read(monkeypatch):
    def read(*_: object) -> None:
        raise AssertionError("a model was read")

    monkeypatch.setattr(loading, "_read_model", read)


@pytest.mark.usefixtures("never_read")
@pytest.mark.parametrize(
    ("call", "said"),
    [
        ("merge {0}/llama --out o", "holds no tensor networks"),
        ("heal {0}/llama --teacher {0}/bert --data {0}/text.txt --out o", "holds no tensor netw"),
        ("heal {1} --teacher {0}/none/at/all --data {0}/text.txt --out o", "no folder or file"),
        ("heal {1} --teacher {0}/text.txt --data {0}/text.txt --out o", "is a .txt file"),
        ("compress {1} --data {0}/text.txt --out o", "has no tokenizer"),
    ],
)
def test_paths_are_looked_at_before_a_model_is_read(
    capsys, shelf, tmp_path, monkeypatch, call, said
):
    monkeypatch.chdir(tmp_path)
    student = tmp_path / "student"
    tiny.llama().save_pretrained(student)
    if "heal" in call:
        tiny.tokenizer().save_pretrained(student)
    path, spec = "model.layers.0.mlp.up_proj", {"network": "o a, a i -> (o) (i)"}
    manifest = {"quant_method": "bondwise", "schema": 1, "modules": {path: spec}}
    edit(student / "config.json", quantization_config=manifest)
    found = bondwise(capsys, *call.format(shelf, student).split(), "-q")
    assert found.code in (1, 2)
    assert said in found.err
    assert not (tmp_path / "o").exists()


def test_an_adapter_in_the_folder_is_refused_before_the_work(capsys, shelf, tmp_path):
    model = tiny.llama()
    model.add_adapter(LoraConfig(r=2, target_modules=["q_proj"]))
    source = shutil.copytree(shelf / "llama", tmp_path / "model")
    model.save_pretrained(tmp_path / "adapter")
    for file in ("adapter_config.json", "adapter_model.safetensors"):
        shutil.copy(tmp_path / "adapter" / file, source / file)
    said = bondwise(capsys, "compress", source, "--out", tmp_path / "cut", "-q")
    assert said.code != 0
    assert "merge_and_unload()" in said.err
    assert not (tmp_path / "cut").exists()


def test_the_hub_is_asked_for_all_but_other_weights(shelf, monkeypatch):
    asked = {}

    def download(name, **how):
        asked.update(how)
        return str(shelf / "llama")

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    loading.load_model("some/name")
    from huggingface_hub.utils import filter_repo_objects

    there = ["1_Pooling/config.json", "model.safetensors", "preprocessor_config.json", "README.md"]
    left = ["onnx/model.onnx_data", "pytorch_model.bin", "original/consolidated.00.pth", "a.gguf"]
    assert list(filter_repo_objects(there + left, **asked)) == there


def test_a_text_that_is_the_name_of_a_file_is_a_text(capsys, shelf, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("long.txt").write_text("bond core rank " * 400, encoding="utf-8")
    Path("name.txt").write_text("long.txt", encoding="utf-8")
    said = bondwise(capsys, "compress", shelf / "llama", "--data", "name.txt", "--out", "cut")
    assert said.code != 0
    assert re.search(r"The text has \d+ tokens", said.err)
    assert not Path("cut").exists()
