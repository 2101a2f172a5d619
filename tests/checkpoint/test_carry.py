"""What a folder held beside its weights: all of it in the copy, but no weights in another form."""

import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, BertModel

import tiny
from bondwise.checkpoint.carry import look
from bondwise.checkpoint.checkpoint import load, save
from bondwise.checkpoint.loading import load_model
from bondwise.compress.merge import merge
from verbs import edit, files

from .conftest import logits, make_llama, refused

CARRIED = {
    "1_Pooling/config.json": '{"pooling_mode_cls_token": true}',
    "2_Dense/config.json": "{}",
    "2_Dense/model.safetensors": "weights of the part",
    "2_Dense/pytorch_model.bin": "pickle of the part",
    "README.md": "# a card",
    "additional/labels/labels.txt": "yes\nno",
    "chat_template.jinja": "{{ messages }}",
    "modules.json": json.dumps(
        [
            {"idx": 0, "path": "", "type": "sentence_transformers.models.Transformer"},
            {"idx": 1, "path": "2_Dense", "type": "sentence_transformers.models.Dense"},
        ]
    ),
    "preprocessor_config.json": '{"size": 16}',
}
LEFT = (
    "pytorch_model.bin", "pytorch_model.bin.index.json", "model.gguf", "flax_model.msgpack",
    "tf_model.h5", "rust_model.ot", "model.fp16.safetensors", "optimizer.pt", "adapter_config.json",
    ".gitattributes", "other/weights.bin",
)  # fmt: skip
LEFT_FOLDERS = {
    "onnx/": "model.json", "openvino/": "m.xml", "checkpoint-20/": "config.json", ".git/": "HEAD",
    "cut/": "bondwise.json", "cut.healing/": "state.json", "other/openvino/": "x.json",
}  # fmt: skip


def write(folder: Path, name: str, text: str = "x") -> None:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A dense model with everything that may lie beside it."""
    folder = tiny.on_disk(tiny.llama(), tmp_path / "source")
    for name, text in CARRIED.items():
        write(folder, name, text)
    for name in (*LEFT, *(f"{at}{name}" for at, name in LEFT_FOLDERS.items())):
        write(folder, name)
    return folder


def test_all_is_found_and_weights_in_other_forms_are_named(source):
    found = look(source)
    known = {"config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json"}
    assert {str(file) for file in found.files} == {*CARRIED, *known}
    assert set(found.left) == {*LEFT, *LEFT_FOLDERS}
    assert len(found.notes) == 1
    assert "onnx/" in look(source.parent / "source").left
    assert look(tiny.on_disk(tiny.llama(), source.parent / "clean")).notes == []


@pytest.mark.parametrize("dense", [False, True])
def test_a_copy_has_them_all_and_its_own_files_are_its_own(source, tmp_path, dense):
    model = tiny.llama() if dense else make_llama()
    write(source, "generation_config.json", '{"temperature": 7.0}')
    target = save(model, tmp_path / "copy", source=source, extra=lambda _: {"README.md": "ours"})
    there = {name: value for name, value in files(target).items() if value}
    assert {n: there[n].decode() for n in CARRIED if n != "README.md"} == {
        n: text for n, text in CARRIED.items() if n != "README.md"
    }
    assert there["README.md"] == b"ours"
    assert b"7.0" not in there["generation_config.json"]
    assert not {*LEFT} & there.keys()
    assert not any(name.startswith(tuple(LEFT_FOLDERS)) for name in there)
    assert torch.equal(logits(load(target)), logits(model))


def test_nothing_is_carried_unless_asked(source, tmp_path):
    (source / "adapter_config.json").unlink()  # which transformers would read
    loaded = load_model(source)
    assert loaded.folder == source
    assert "README.md" not in files(save(loaded.model, tmp_path / "plain"))


def test_links_out_of_the_folder_are_not_followed_but_those_of_the_hub_are(tmp_path):
    secret = tmp_path / "secret.txt"
    secret.write_text("secret")
    blobs, snapshot = tmp_path / "hub" / "blobs", tmp_path / "hub" / "snapshots" / "abc"
    snapshot.mkdir(parents=True)
    for name in ("labels.txt", "1_Pooling/config.json"):
        write(blobs, Path(name).name + "-blob", name)
        (snapshot / name).parent.mkdir(exist_ok=True)
        (snapshot / name).symlink_to(
            os.path.relpath(blobs / (Path(name).name + "-blob"), (snapshot / name).parent)
        )
    (snapshot / "away.txt").symlink_to(secret)
    (snapshot / "loop").symlink_to(snapshot)
    (snapshot / "gone.txt").symlink_to(snapshot / "nowhere.txt")
    (snapshot / "outside").symlink_to(tmp_path)
    found = look(snapshot)
    assert {str(file) for file in found.files} == {"labels.txt", "1_Pooling/config.json"}
    assert set(found.left) >= {"away.txt", "loop/", "outside/"}
    copy = save(tiny.bert(), tmp_path / "copy", source=snapshot)
    assert not (copy / "labels.txt").is_symlink()
    assert (copy / "labels.txt").read_text() == "labels.txt"
    assert b"secret" not in files(copy).values()


def test_a_source_may_hold_its_copy_or_be_it(tmp_path):
    source = tiny.on_disk(tiny.llama(), tmp_path / "model")
    write(source, "labels.txt")
    inside = save(make_llama(), source / "cut", source=source)
    inside = save(make_llama(), inside, source=source, overwrite=True)
    assert (inside / "labels.txt").exists()
    assert not (inside / "cut").exists()
    save(make_llama(), inside, source=inside, overwrite=True)
    assert (inside / "labels.txt").exists()


def test_no_folder_as_source(tmp_path):
    with refused("which is no folder"):
        save(tiny.bert(), tmp_path / "copy", source=tmp_path / "nowhere")
    assert not (tmp_path / "copy").exists()


def test_a_plain_module_gets_no_config_of_transformers(tmp_path):
    source = tiny.on_disk(tiny.bert(), tmp_path / "bert")
    write(source, "labels.txt")
    net = torch.nn.Sequential(torch.nn.Linear(3, 3))
    target = save(net, tmp_path / "plain", source=source)
    assert (target / "labels.txt").exists()
    assert torch.equal(load(target, net)[0].weight, net[0].weight)


EXTRA = {
    "mtp.layers.0.weight": torch.arange(6.0).reshape(2, 3),
    "model.layers.0.self_attn.k_scale": torch.ones(1, dtype=torch.bfloat16),
    "loose": torch.tensor([3], dtype=torch.int64),
}


def tensors(folder: Path) -> dict[str, torch.Tensor]:
    return {k: v for file in folder.glob("*.safetensors") for k, v in load_file(file).items()}


@pytest.mark.parametrize("shard", ["5GB", "20KB"])
def test_tensors_that_the_class_lacks_go_on_from_copy_to_copy(tmp_path, shard):
    dense = tiny.on_disk(tiny.llama(), tmp_path / "dense")
    edit(dense / "model.safetensors", lambda found: found.update(EXTRA))
    cut = save(make_llama(), tmp_path / "cut", source=dense, max_shard_size=shard)
    loaded = AutoModelForCausalLM.from_pretrained(cut)
    assert torch.equal(logits(loaded), logits(make_llama()))
    again = save(loaded, tmp_path / "again", source=cut)
    merged = save(merge(loaded), tmp_path / "merged", source=again, max_shard_size=shard)
    for folder in (cut, again, merged):
        there = tensors(folder)
        assert {name: there[name].tolist() for name in EXTRA} == {
            name: value.tolist() for name, value in EXTRA.items()
        }
        assert {name: there[name].dtype for name in EXTRA} == {
            name: value.dtype for name, value in EXTRA.items()
        }
        index = json.loads((folder / "model.safetensors.index.json").read_text())["weight_map"]
        assert index.keys() == there.keys()
    assert tensors(merged).keys() == tensors(dense).keys()
    found = AutoModelForCausalLM.from_pretrained(merged)
    torch.testing.assert_close(logits(found), logits(loaded), rtol=1e-4, atol=1e-4)


def test_weights_under_older_names_are_not_taken_for_extra_ones(tmp_path):
    bert = tiny.bert()
    bert.save_pretrained(tmp_path / "bert")
    weights = tmp_path / "bert" / "model.safetensors"
    old = {
        "bert." + name.replace("LayerNorm.weight", "LayerNorm.gamma"): value
        for name, value in load_file(weights).items()
    }
    head = {"cls.predictions.bias": torch.ones(3)}
    save_file(old | head, weights, metadata={"format": "pt"})
    loaded = BertModel.from_pretrained(tmp_path / "bert")
    copy = tensors(save(loaded, tmp_path / "copy", source=tmp_path / "bert"))
    assert len(copy) == len(old) + len(head)
    assert "cls.predictions.bias" in copy
    again = BertModel.from_pretrained(tmp_path / "copy")
    for one, two in zip(again.parameters(), bert.parameters(), strict=True):
        assert torch.equal(one, two)


def test_a_full_disk_while_carrying_leaves_nothing(source, tmp_path, monkeypatch):
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(shutil, "copyfile", full)
    with refused("No space left on device"):
        save(tiny.llama(), tmp_path / "copy", source=source)
    assert [path.name for path in tmp_path.iterdir()] == ["source"]
