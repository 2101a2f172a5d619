"""from_pretrained and save_pretrained of models whose layers share a core or keep a remainder."""

import re

import pytest
import torch
from bondwise.layers.remainder import Columns, Entries
from safetensors.torch import load_file
from torch import nn
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    LlamaForCausalLM,
)

import bondwise as bw
from bondwise.checkpoint.checkpoint import load, save
from bondwise.checkpoint.hub import attach
from bondwise.layers.module import share
from verbs import edit

from .conftest import (
    IDS,
    gauge_free,
    logits,
    make_llama,
    manifest_of,
    offloaded,
    pop,
    refused,
)
from .test_shared import bytes_of, tied

NAMES = ("q_proj", "k_proj", "v_proj")
GATE = "model.layers.0.mlp.gate_proj"


def make_shared(dtype=torch.float32):
    model = make_llama(dtype)
    for block in model.model.layers:
        attention, mlp = block.self_attn, block.mlp
        for name in NAMES[1:]:
            setattr(attention, name, gauge_free(getattr(attention, name)))
        share([getattr(attention, name) for name in NAMES])
        columns = Columns(torch.tensor([3, 30]), torch.randn(96, 2, dtype=dtype))
        mlp.gate_proj = gauge_free(mlp.gate_proj, remainder=columns)
        entries = Entries(torch.tensor([0, 700, 4607]), torch.randn(3, dtype=dtype))
        mlp.down_proj = gauge_free(mlp.down_proj, remainder=entries)
    return model


def is_tied(model) -> bool:
    blocks = getattr(model, model.base_model_prefix, model).layers
    return all(tied([getattr(block.self_attn, name) for name in NAMES]) for block in blocks)


def same_in(dtype, loaded, model) -> bool:
    model = model.to(dtype)
    model.model.rotary_emb = loaded.model.rotary_emb  # whose angles only `to` rounds
    return torch.equal(logits(loaded), logits(model))


def distinct_bytes(model) -> int:
    state = {value.data_ptr(): value for value in model.state_dict().values()}
    return sum(value.numel() * value.element_size() for value in state.values())


@pytest.fixture
def shared():
    return make_shared()


@pytest.fixture
def folder(shared, tmp_path):
    return save(shared, tmp_path / "shared")


def same(loaded, model) -> bool:
    return is_tied(loaded) and torch.equal(logits(loaded), logits(model))


def test_the_auto_class_gives_back_the_same_tied_model(shared, folder, tmp_path):
    loaded, info = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
    assert not any(info.values())
    assert same(loaded, shared)
    want, got = shared.state_dict(), loaded.state_dict()
    assert list(want) == list(got)
    assert all(torch.equal(want[name], got[name]) for name in want)
    assert [n for n, _ in loaded.named_parameters()] == [n for n, _ in shared.named_parameters()]
    own = {name.rpartition(".")[2] for name in got if "q_proj" in name}
    assert own >= {"pivots_1", "core_0", "core_1", "weight"}
    assert is_tied(load(folder))
    # training keeps it tied
    optimizer = torch.optim.SGD(loaded.parameters(), lr=0.1)
    loaded(torch.tensor([[1, 2, 3]])).logits.square().sum().backward()
    optimizer.step()
    assert is_tied(loaded)
    assert torch.equal(logits(load(save(loaded, tmp_path / "trained"))), logits(loaded))


def test_the_file_holds_it_once_and_a_resave_writes_the_same_again(shared, folder, tmp_path):
    saved = load_file(folder / "model.safetensors")
    held = [name for name in saved if re.search(r"layers\.0\.self_attn\..*core_1", name)]
    assert held == ["model.layers.0.self_attn.q_proj.core_1"]
    assert bytes_of(folder) == distinct_bytes(shared)
    spec = manifest_of(folder)["quantization_config"]
    assert spec["schema"] == 2
    first = "model.layers.1.self_attn.q_proj"
    assert spec["modules"]["model.layers.1.self_attn.v_proj"]["shared"] == {"1": first}
    loaded, again = AutoModelForCausalLM.from_pretrained(folder), tmp_path / "again"
    loaded.save_pretrained(again)
    assert manifest_of(folder) == manifest_of(again)
    assert not hasattr(loaded.config, "transformers_weights")
    assert saved.keys() == load_file(again / "model.safetensors").keys()
    assert bytes_of(again) == distinct_bytes(shared)
    assert same(AutoModelForCausalLM.from_pretrained(again), shared)


@pytest.mark.parametrize(
    "how",
    [{"dtype": torch.bfloat16}, {"device_map": "cpu"}, {"low_cpu_mem_usage": True}],
    ids=["bf16", "device_map", "low_cpu_mem"],
)
def test_ways_of_loading(shared, folder, how):
    loaded = AutoModelForCausalLM.from_pretrained(folder, **how)
    assert is_tied(loaded)
    dtype = how.get("dtype", torch.float32)
    assert {p.dtype for p in loaded.parameters()} == {dtype}
    assert loaded.model.layers[0].mlp.gate_proj.remainder_at.dtype == torch.int32
    assert same_in(dtype, loaded, shared)


def test_bf16_is_kept(tmp_path):
    model = make_shared(torch.bfloat16)
    folder = save(model, tmp_path / "bf16")
    loaded = AutoModelForCausalLM.from_pretrained(folder)
    assert {p.dtype for p in loaded.parameters()} == {torch.bfloat16}
    assert AutoModel.from_pretrained(folder, dtype=torch.float32).dtype == torch.float32
    assert same_in(torch.bfloat16, loaded, model)
    assert is_tied(loaded.half())
    assert is_tied(loaded.float())


def test_shards_and_state_dicts_that_name_it_twice(shared, folder, tmp_path):
    shards = save(shared, tmp_path / "shards", max_shard_size="10KB")
    assert len(list(shards.glob("model-*.safetensors"))) > 2
    for loaded in (AutoModelForCausalLM.from_pretrained(shards), load(shards)):
        assert torch.equal(logits(loaded), logits(shared))
    attach(shared)
    whole = {name: value.clone() for name, value in shared.state_dict().items()}  # as FSDP gives it
    shared.save_pretrained(tmp_path / "twice", state_dict=whole)
    assert same(AutoModelForCausalLM.from_pretrained(tmp_path / "twice"), shared)


def test_another_name_may_hold_it(shared, folder):
    def move(tensors):
        for name in [name for name in tensors if name.endswith("q_proj.core_1")]:
            tensors[name.replace("q_proj", "v_proj")] = tensors.pop(name)

    edit(folder / "model.safetensors", move)
    loaded = AutoModelForCausalLM.from_pretrained(folder)
    assert is_tied(loaded)
    held = loaded.model.layers[1].self_attn
    assert torch.equal(held.k_proj.core_1, shared.model.layers[1].self_attn.q_proj.core_1)


def test_the_owner_may_be_dense_by_now(shared, tmp_path):
    for block in shared.model.layers:
        block.self_attn.q_proj = nn.Linear(48, 48, bias=False)
    loaded = load(save(shared, tmp_path / "kv"))
    attention = loaded.model.layers[0].self_attn
    assert attention.k_proj.core_1 is attention.v_proj.core_1
    assert torch.equal(logits(loaded), logits(shared))


def test_other_classes_find_the_backbone(shared, folder, tmp_path):
    base = AutoModel.from_pretrained(folder)
    assert is_tied(base)
    with torch.no_grad():
        assert torch.equal(base(IDS).last_hidden_state, shared.model(IDS).last_hidden_state)
    classifier = AutoModelForSequenceClassification.from_pretrained(folder, num_labels=3)
    assert is_tied(classifier)
    assert classifier.score.weight.shape[0] == 3
    up, want = (model.model.layers[1].mlp.up_proj for model in (classifier, shared))
    assert torch.equal(up.dense(), want.dense())
    alone = save(base, tmp_path / "base")
    assert "layers.0.mlp.up_proj" in manifest_of(alone)["quantization_config"]["modules"]
    again = LlamaForCausalLM.from_pretrained(alone)
    assert is_tied(again)
    one, two = (model.model.layers[1].self_attn.v_proj for model in (again, shared))
    assert torch.equal(one.dense(), two.dense())


@pytest.mark.parametrize("far", ["disk", "cpu"])
def test_offloaded_parts(shared, folder, tmp_path, far):
    loaded = offloaded(folder, tmp_path / "off", far)
    if far == "disk":
        attention = loaded.model.layers[0].self_attn
        assert attention.q_proj.core_0.is_meta
        assert attention.v_proj.core_1.is_meta
    for _ in range(2):  # the second time they were there once and were sent away again
        assert torch.equal(logits(loaded), logits(shared))


def test_a_device_map_that_parts_them_says_so(folder, tmp_path):
    near = ("self_attn.q_proj", "self_attn.v_proj", "self_attn.o_proj", "mlp")
    near += ("input_layernorm", "post_attention_layernorm")
    parts = dict.fromkeys(near, "cpu") | {"self_attn.k_proj": "disk"}
    with refused("keep each block whole"):
        offloaded(folder, tmp_path / "off", "cpu", parts)


def test_merged_it_is_an_ordinary_checkpoint(shared, tmp_path):
    folder = save(bw.merge(shared), tmp_path / "merged")
    assert "quantization_config" not in manifest_of(folder)
    merged = AutoModelForCausalLM.from_pretrained(folder)
    torch.testing.assert_close(logits(merged), logits(shared), rtol=1e-4, atol=1e-4)
    assert is_tied(shared)


def test_without_the_manifest_loading_is_loud(folder):
    edit(
        folder / "config.json",
        lambda c: [c.pop(n) for n in ("quantization_config", "transformers_weights")],
    )
    with pytest.raises(RuntimeError, match="ismatch"):
        AutoModelForCausalLM.from_pretrained(folder)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (pop("model.layers.0.self_attn.q_proj.core_1"), r"lacks '.*core_1'"),
        (pop("model.layers.0.self_attn.k_proj.core_0"), r"lacks '.*k_proj\.core_0'"),
        *((pop(f"{GATE}.{n}"), rf"lacks '{GATE}\.{n}'") for n in ("core_1", "pivots_1")),
        *((pop(f"{GATE}.{n}"), rf"lacks '{GATE}\.{n}'") for n in ("remainder", "remainder_at")),
        (
            lambda t: t.update({f"{GATE}.core_0": torch.zeros(95, 8)}),
            rf"'{GATE}.core_0' of shape \(95, 8\)",
        ),
        (
            lambda t: [t.pop(n) for n in list(t) if n.startswith(GATE)],
            rf"lacks '{GATE}.core_0'",
        ),
    ],
)
def test_bad_tensors(folder, change, says):
    edit(folder / "model.safetensors", change)
    for ignore in (False, True):
        with refused(says):
            AutoModelForCausalLM.from_pretrained(folder, ignore_mismatched_sizes=ignore)
