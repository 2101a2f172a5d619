"""Checkpoints of plain modules, and everything that keeps a folder whole."""

import os
import resource
import sys
from unittest.mock import Mock

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from bondwise.checkpoint import checkpoint, plain
from bondwise.checkpoint.checkpoint import load, save
from bondwise.checkpoint.hub import attach, detach
from bondwise.errors import MissingExtraError
from bondwise.layers.embedding import TensorEmbedding
from bondwise.layers.linear import TensorLinear
from bondwise.topology.lowrank import lowrank
from bondwise.topology.mpo import mpo
from bondwise.topology.ring import ring
from verbs import edit, files

from .conftest import gauge_free, manifest_of, pop, refused


class Toy(nn.Module):
    """Layers under a shared name, a tied table, a buffer: what a skeleton may hold."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(20, 12)
        self.first = nn.Linear(12, 16)
        self.body = nn.ModuleList([nn.Linear(16, 16, bias=False), nn.Linear(16, 12)])
        self.again = self.first  # one module under two names
        self.head = nn.Linear(12, 20, bias=False)
        self.head.weight = self.table.weight
        self.register_buffer("scale", torch.tensor([2.0]))

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        x = self.first(self.table(ids)) + self.again(self.table(ids))
        return self.head(self.body[1](self.body[0](x).relu())) * self.scale


IDS = torch.tensor([[1, 2, 19]])


@pytest.fixture
def toy() -> Toy:
    torch.manual_seed(3)
    toy = Toy()
    toy.first = toy.again = gauge_free(toy.first, 4)
    toy.body[0] = TensorLinear.from_linear(toy.body[0], ring((4, 4), (4, 4), 2))
    toy.body[1] = TensorLinear.from_linear(toy.body[1], mpo((3, 4), (4, 4), 3))
    return toy


@pytest.fixture
def folder(toy, tmp_path):
    return save(toy, tmp_path / "toy")


def test_a_dense_model_is_saved_as_it_is(tmp_path):
    dense = Toy()
    assert torch.equal(load(save(dense, tmp_path / "dense"), model=Toy())(IDS), dense(IDS))


def test_a_skeleton_takes_the_saved_layers_and_stays_as_it_was(toy, folder):
    skeleton = Toy()
    before = {name: value.clone() for name, value in skeleton.state_dict().items()}
    loaded = load(folder, model=skeleton)
    assert torch.equal(loaded(IDS), toy(IDS))
    assert type(skeleton.first) is nn.Linear
    torch.testing.assert_close(dict(skeleton.state_dict()), before, rtol=0, atol=0)
    assert type(loaded) is Toy
    assert loaded.state_dict().keys() == toy.state_dict().keys()


def test_the_files_are_json_and_safetensors_and_what_is_shared_or_tied_stays_so(folder):
    assert set(files(folder)) == {"bondwise.json", "model.safetensors"}
    manifest, loaded = manifest_of(folder, "bondwise.json"), load(folder, model=Toy())
    assert (manifest["schema"], manifest["layout"]) == (3, "matrices")
    assert set(manifest["modules"]) == {"first", "again", "body.0", "body.1"}
    assert all(len(spec["terms"]) == 1 for spec in manifest["modules"].values())
    assert loaded.first is loaded.again
    assert loaded.head.weight is loaded.table.weight
    saved = load_file(folder / "model.safetensors")
    assert ("first.core_0" in saved) != ("again.core_0" in saved)


def test_dtypes_are_those_that_were_saved(toy, tmp_path):
    toy.to(torch.bfloat16)
    loaded = load(save(toy, tmp_path / "half"), model=Toy())
    assert {p.dtype for p in loaded.parameters()} == {torch.bfloat16}
    assert loaded.head.weight is loaded.table.weight
    assert torch.equal(loaded(IDS), toy(IDS))


def test_an_embedding_keeps_its_padding(tmp_path):
    embedding = nn.Sequential(TensorEmbedding(lowrank(20, 12, 3), padding_idx=4))
    loaded = load(save(embedding, tmp_path / "e"), model=nn.Sequential(nn.Embedding(20, 12)))
    assert loaded[0].padding_idx == 4
    assert torch.equal(loaded(IDS), embedding(IDS))


class More(Toy):
    def __init__(self) -> None:
        super().__init__()
        self.more = nn.Linear(2, 2)


def changed(index: int, layer: nn.Module) -> Toy:
    toy = Toy()
    toy.body[index] = layer
    return toy


@pytest.mark.parametrize(
    ("skeleton", "says"),
    [
        (None, r"load\(directory, model="),
        (nn.Sequential(nn.Linear(3, 3)), "which Sequential lacks"),
        (More(), r"does not fit More: .*more\.weight"),
        (changed(1, nn.Linear(16, 24)), r"'body.1' is linear \(12, 16\) .* linear \(24, 16\)"),
        (changed(0, nn.Identity()), "the model a Identity"),
    ],
)
def test_a_skeleton_that_does_not_fit(folder, skeleton, says):
    with refused(says):
        load(folder, model=skeleton)


@pytest.mark.parametrize("text", ["{", "[1]", '"x"', "", "{}", '{"schema": "one"}'])
def test_a_manifest_that_is_none(folder, text):
    (folder / "bondwise.json").write_text(text)
    with refused(r"\."):
        load(folder, model=Toy())


def network(manifest):
    """What it says of one network."""
    return manifest["modules"]["body.1"]["terms"][0]


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda m: m.update(schema=4), "schema version 4, this bondwise reads up to 3"),
        (lambda m: m["modules"]["body.1"].update(host="hologram"), "Host 'hologram' came"),
        (lambda m: network(m).update(kind="hologram"), "term 'hologram' came"),
        (lambda m: m["modules"]["body.1"].update(terms=[]), "'body.1' cannot be read"),
        (lambda m: m["modules"]["body.1"].update(terms=3), "'body.1' cannot be read"),
        (lambda m: m["modules"]["body.1"].update(terms=[3]), "'body.1' cannot be read"),
        (lambda m: m["modules"]["body.1"].update(host="embedding"), "'body.1'"),
        (lambda m: network(m).update(network="o a"), "'body.1' cannot be read"),
        (lambda m: network(m).update(sizes=[1]), "'body.1' cannot be read"),
        (lambda m: network(m).update(pinned=["z", "z"]), "'body.1' cannot be read"),
        (lambda m: network(m)["sizes"].update(a=-1), "'body.1' cannot be read"),
        (lambda m: network(m)["sizes"].update(a=10**15), "'body.1' cannot be read"),
        (lambda m: m["modules"].update(first=1), "no table of modules"),
        (lambda m: m["modules"].update(nowhere=m["modules"]["first"]), "'nowhere'"),
    ],
)
def test_bad_manifests(folder, change, says):
    edit(folder / "bondwise.json", change)
    with refused(says):
        load(folder, model=Toy())


def test_bad_tensors(folder):
    weights = folder / "model.safetensors"
    good = weights.read_bytes()
    for change, says in (
        (pop("body.1.core_1"), r"lacks 'body\.1\.core_1'"),
        (lambda t: t.update({"body.1.core_0": torch.zeros(2, 2)}), r"core_0' of shape \(2, 2\)"),
    ):
        edit(weights, change)
        with refused(says):
            load(folder, model=Toy())
        weights.write_bytes(good)
    torch.save({"x": torch.zeros(1)}, folder / "pickle")  # which is never read
    pickled = (folder / "pickle").read_bytes()
    for content in (*(good[:size] for size in (0, 4, 100, len(good) - 1)), pickled):
        weights.write_bytes(content)
        with refused("truncated or corrupt"):
            load(folder, model=Toy())
    weights.unlink()
    with refused(r"has no model\.safetensors"):
        load(folder, model=Toy())


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("nowhere", None, "is no folder"),
        ("file", "x", "is no folder"),
        ("", None, r"neither config\.json nor bondwise\.json"),
        ("config.json", '{"architectures": ["MyOwnForCausalLM"]}', "remote code is not run"),
        ("config.json", "{", r"config\.json is no JSON"),
    ],
)
def test_no_folder_and_no_checkpoint(tmp_path, name, content, says):
    if content is not None:
        (tmp_path / name).write_text(content)
    with refused(says):
        load(tmp_path if name == "config.json" else tmp_path / name)


def test_only_ours_is_overwritten_and_only_when_told(toy, folder, tmp_path):
    with refused("holds a checkpoint already"):
        save(toy, folder)
    (folder / "stale.txt").write_text("x")
    with torch.no_grad():
        toy.scale.fill_(5.0)
    save(toy, folder, overwrite=True, extra=lambda _: {"recipe.yaml": "keep: 0.5\n"})
    assert set(files(folder)) == {"bondwise.json", "model.safetensors", "recipe.yaml"}
    assert torch.equal(load(folder, model=Toy())(IDS), toy(IDS))
    for name in ("foreign", "other"):
        (tmp_path / name).mkdir()
    save(toy, tmp_path / "foreign")  # an empty folder is free
    thesis = tmp_path / "other" / "thesis.txt"
    thesis.write_text("mine")
    for target in (thesis.parent, thesis):
        with refused("no checkpoint of ours"):
            save(toy, target, overwrite=True)
    assert thesis.read_text() == "mine"


@pytest.fixture
def left_alone(folder, tmp_path):
    """Nothing half-written beside the checkpoint, and the checkpoint as it was."""
    before = files(tmp_path)
    yield
    assert files(tmp_path) == before


@pytest.mark.usefixtures("left_alone")
@pytest.mark.parametrize("step", ["save_model", "write_json", "_replace"])
def test_a_full_disk_leaves_what_was_there(toy, folder, tmp_path, monkeypatch, step):
    full = Mock(side_effect=OSError(28, "No space left on device"))
    monkeypatch.setattr(checkpoint if step == "_replace" else plain, step, full)
    for target in (folder, tmp_path / "new"):
        with refused("No space left on device"):
            save(toy, target, overwrite=True)


@pytest.mark.usefixtures("left_alone")
def test_a_file_that_the_system_refuses_to_grow(toy, folder):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, hard))
    try:
        with refused("cannot be written"):
            save(toy, folder, overwrite=True)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.usefixtures("left_alone")
def test_an_interrupt_leaves_what_was_there(toy, folder, monkeypatch):
    monkeypatch.setattr(plain, "save_model", Mock(side_effect=KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        save(toy, folder, overwrite=True)


@pytest.mark.usefixtures("left_alone")
def test_when_the_last_step_fails_the_old_checkpoint_comes_back(toy, folder, monkeypatch):
    rename, calls = os.rename, []

    def second_fails(self, target):
        calls.append(self)
        if len(calls) == 2:
            raise OSError(5, "Input/output error")
        rename(self, target)

    monkeypatch.setattr("pathlib.Path.rename", second_fails)
    with refused("Input/output error"):
        save(toy, folder, overwrite=True)


def test_new_folders_have_ordinary_rights_and_parents_are_made(toy, folder, tmp_path):
    (tmp_path / "plain").mkdir()
    assert folder.stat().st_mode == (tmp_path / "plain").stat().st_mode
    save(toy, tmp_path / "a" / "b" / "c")
    assert torch.equal(load(tmp_path / "a" / "b" / "c", model=Toy())(IDS), toy(IDS))


def test_without_transformers_the_extra_is_named(tmp_path, monkeypatch):
    (tmp_path / "config.json").write_text('{"architectures": ["LlamaForCausalLM"]}')
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'bondwise\[hf\]'"):
        load(tmp_path)


def test_attach_and_detach_leave_plain_modules_alone(toy):
    before = dict(vars(toy))
    attach(toy)
    detach(toy)
    assert vars(toy) == before
