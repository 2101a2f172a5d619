"""Checkpoints of schemas 1 and 2: shared cores, pivots and remainders as tensors of their own."""

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from transformers import AutoModel, AutoModelForCausalLM

from bondwise.checkpoint.checkpoint import load, save
from verbs import edit

from .conftest import logits, manifest_of, offloaded, pop, refused

GOLDEN = Path(__file__).parents[1] / "golden"
ATTENTION, MLP = "model.layers.0.self_attn", "model.layers.0.mlp"
OLD = ("shared", "remainder", "pinned", "origin")


@pytest.fixture(params=[1, 2])
def version(request) -> int:
    return request.param


@pytest.fixture
def folder(version, tmp_path) -> Path:
    return shutil.copytree(GOLDEN / f"llama-tiny-v{version}", tmp_path / "old")


@pytest.fixture
def shared(tmp_path) -> Path:
    """What schema 2 alone could say: two layers with one core."""
    folder = shutil.copytree(GOLDEN / "llama-tiny-v2", tmp_path / "shared")
    spec = manifest_of(folder)["quantization_config"]["modules"][f"{ATTENTION}.k_proj"]
    assert spec["shared"] == {"1": f"{ATTENTION}.q_proj"}
    return folder


def test_saved_again_it_is_of_today_and_computes_the_same(folder, tmp_path):
    loaded = load(folder)
    again = save(loaded, tmp_path / "again")
    manifest = manifest_of(again)["quantization_config"]
    assert manifest["schema"] == 3
    assert not any(set(OLD) & spec.keys() for spec in manifest["modules"].values())
    names = load_file(again / "model.safetensors").keys()
    assert not any("pivots" in name or "remainder" in name for name in names)
    for model in (load(again), AutoModelForCausalLM.from_pretrained(again)):
        assert torch.equal(logits(model), logits(loaded))


def test_the_auto_class_finds_nothing_missing_and_nothing_strange(folder):
    _, info = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
    assert not any(info.values())


@pytest.mark.parametrize("how", [{"dtype": torch.bfloat16}, {"device_map": "cpu"}], ids=str)
def test_ways_of_loading(folder, how):
    one, two = load(folder), AutoModelForCausalLM.from_pretrained(folder, **how)
    dtype = how.get("dtype", torch.float32)
    assert {p.dtype for p in two.parameters()} == {dtype}
    want, got = one.to(dtype).state_dict(), two.state_dict()
    assert list(want) == list(got)
    assert all(torch.equal(want[name], got[name]) for name in want)


def test_a_core_that_was_shared_is_one_for_each_layer_now(shared):
    attention = load(shared).model.layers[0].self_attn
    q, k = attention.q_proj, attention.k_proj
    assert torch.equal(q.core_1, k.core_1)
    assert q.core_1.data_ptr() != k.core_1.data_ptr()
    backbone = AutoModel.from_pretrained(shared).layers[0].self_attn
    assert torch.equal(backbone.k_proj.dense(), k.dense())


def test_what_is_on_the_disk_is_to_be_saved_again_first(shared, tmp_path):
    with refused("older form; load it whole and save it again"):
        offloaded(shared, tmp_path / "off", "disk")


BAD = {
    f"{ATTENTION}.q_proj.core_1": r"lacks '.*_proj\.core_1'",
    f"{ATTENTION}.k_proj.core_0": r"lacks '.*k_proj\.core_0'",
    f"{MLP}.gate_proj.pivots_1": r"lacks '.*gate_proj\.pivots_1'",
    f"{MLP}.gate_proj.remainder": r"lacks '.*gate_proj\.remainder'",
    f"{MLP}.up_proj.remainder_at": r"lacks '.*up_proj\.remainder_at'",
}


@pytest.mark.parametrize(("name", "says"), BAD.items(), ids=BAD)
def test_a_tensor_that_is_missing(shared, name, says):
    edit(shared / "model.safetensors", pop(name))
    for reader in (load, AutoModelForCausalLM.from_pretrained):
        with refused(says):
            reader(shared)


WRONG = {
    f"{MLP}.gate_proj.pivots_1": torch.zeros_like,
    f"{MLP}.gate_proj.remainder_at": torch.zeros_like,
    f"{MLP}.up_proj.remainder_at": lambda at: at + 10**6,
}


@pytest.mark.parametrize(("name", "change"), WRONG.items(), ids=WRONG)
def test_positions_that_are_wrong(shared, name, change):
    edit(shared / "model.safetensors", lambda t: t.update({name: change(t[name])}))
    for reader in (load, AutoModelForCausalLM.from_pretrained):
        with refused(f"Layer '{name.rpartition('.')[0]}'"):
            reader(shared)


SPECS = {
    "another owner": {"shared": {"1": "z"}},
    "a list as owner": {"shared": {"1": ["z"]}},
    "a list": {"shared": [1]},
    "a number beside": {"remainder": 3},
    "an unknown kind": {"remainder": {"kind": "blocks", "count": 2}},
    "another count": {"remainder": {"kind": "columns", "count": 3}},
    "another network": {"network": 3},
}


@pytest.mark.parametrize("values", SPECS.values(), ids=SPECS)
def test_bad_manifests(shared, values):
    path = f"{MLP}.gate_proj"
    edit(
        shared / "config.json",
        lambda config: config["quantization_config"]["modules"][path].update(values),
    )
    for reader in (load, AutoModelForCausalLM.from_pretrained):
        with refused(path):
            reader(shared)


def test_a_plain_module(version, tmp_path):
    skeleton = nn.Sequential(nn.Linear(12, 16), nn.ReLU(), nn.Linear(16, 8))
    loaded = load(GOLDEN / f"module-v{version}", model=skeleton)
    again = load(save(loaded, tmp_path / "again"), model=skeleton)
    want, got = loaded.state_dict(), again.state_dict()
    assert list(want) == list(got)
    assert all(torch.equal(want[name], got[name]) for name in want)
