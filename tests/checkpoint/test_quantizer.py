"""The Auto classes load what was saved, in every way they offer; the dense twin is never needed."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoModelForSequenceClassification,
)

from bondwise.checkpoint.checkpoint import load, save
from bondwise.checkpoint.hub import NOTICE, attach, detach
from bondwise.errors import CheckpointError
from bondwise.layers.layers import TensorLinear

from .conftest import IDS, logits, make_bert, make_gpt2, make_llama


def networks(model) -> int:
    return sum(isinstance(module, TensorLinear) for module in model.modules())


def manifest_of(folder) -> dict:
    return json.loads((folder / "config.json").read_text())


def edit(folder, change) -> None:
    """Rewrite config.json after ``change`` had its way with it."""
    config = manifest_of(folder)
    change(config)
    (folder / "config.json").write_text(json.dumps(config))


def test_the_config_says_schema_layout_and_gauge_form(folder):
    config = manifest_of(folder)
    said = config["quantization_config"]
    assert (said["quant_method"], said["schema"], said["layout"]) == ("bondwise", 1, "matrices")
    spec = said["modules"]["model.layers.0.self_attn.q_proj"]
    assert spec["network"] == "o a, a i -> (o) (i)"
    assert spec["pinned"] == [None, "a"]
    assert config["transformers_weights"] == NOTICE


def test_nothing_of_a_quantized_model_stays_behind(folder):
    loaded = AutoModelForCausalLM.from_pretrained(folder)
    out = loaded.generate(IDS, max_new_tokens=3, min_new_tokens=3, do_sample=False, pad_token_id=0)
    assert out.shape == (1, IDS.shape[1] + 3)
    assert not hasattr(loaded, "hf_quantizer")
    assert not loaded.is_quantized
    assert not hasattr(loaded, "quantization_method")
    assert loaded.half().dtype == torch.float16
    assert loaded.float()(IDS).logits.isfinite().all()
    loaded(IDS).logits.sum().backward()
    assert loaded.model.layers[0].self_attn.q_proj.core_0.grad is not None


def test_bert_and_gpt2(tmp_path):
    bert, gpt2 = make_bert(), make_gpt2()
    saved = save(bert, tmp_path / "bert")
    assert torch.equal(logits(AutoModelForMaskedLM.from_pretrained(saved)), logits(bert))
    assert networks(AutoModel.from_pretrained(saved)) == 2
    assert networks(AutoModelForSequenceClassification.from_pretrained(saved)) == 2
    saved = save(gpt2, tmp_path / "gpt2")
    assert torch.equal(logits(AutoModelForCausalLM.from_pretrained(saved)), logits(gpt2))
    assert torch.equal(logits(load(saved)), logits(gpt2))


def test_tied_weights_stay_tied(tmp_path):
    model = make_llama(tied=True)
    folder = save(model, tmp_path / "tied")
    assert "lm_head.weight" not in load_file(folder / "model.safetensors")
    loaded = AutoModelForCausalLM.from_pretrained(folder)
    assert loaded.lm_head.weight is loaded.model.embed_tokens.weight
    assert torch.equal(logits(loaded), logits(model))


def test_save_pretrained_takes_the_state_dict_it_is_given(folder, tmp_path):
    loaded = AutoModelForCausalLM.from_pretrained(folder)
    state = {name: torch.zeros_like(value) for name, value in loaded.state_dict().items()}
    loaded.save_pretrained(tmp_path / "zeros", state_dict=state)
    saved = load_file(tmp_path / "zeros" / "model.safetensors")
    assert not any(bool(value.any()) for value in saved.values())


def test_attached_models_save_themselves_and_detached_ones_are_plain(llama, tmp_path):
    attach(llama)
    llama.save_pretrained(tmp_path / "own")
    assert torch.equal(
        logits(AutoModelForCausalLM.from_pretrained(tmp_path / "own")), logits(llama)
    )
    detach(llama)
    llama.save_pretrained(tmp_path / "plain")
    assert (
        not {"quantization_config", "transformers_weights"} & manifest_of(tmp_path / "plain").keys()
    )


def test_the_config_of_a_loaded_model_can_be_handed_over(llama, folder):
    config = AutoModelForCausalLM.from_pretrained(folder).config
    loaded = AutoModelForCausalLM.from_pretrained(folder, config=config)
    assert torch.equal(logits(loaded), logits(llama))


def drop(name):
    def change(tensors):
        del tensors[name]

    return change


def shrink(name):
    def change(tensors):
        tensors[name] = tensors[name][:-1].clone()

    return change


Q = "model.layers.0.self_attn.q_proj"


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (drop(f"{Q}.core_1"), rf"lacks '{Q}.core_1'"),
        (drop(f"{Q}.pivots_1"), rf"lacks '{Q}.pivots_1'"),
        (shrink(f"{Q}.core_0"), rf"'{Q}.core_0' of shape \(31, 8\)"),
        (
            lambda tensors: [tensors.pop(n) for n in list(tensors) if n.startswith(Q)],
            rf"lacks '{Q}.core_0'",
        ),
    ],
)
def test_bad_tensors(folder, change, says):
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    for ignore in (False, True):
        with pytest.raises(CheckpointError, match=says):
            AutoModelForCausalLM.from_pretrained(folder, ignore_mismatched_sizes=ignore)


def test_a_truncated_file(folder):
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    for reader in (AutoModelForCausalLM.from_pretrained, load):
        with pytest.raises(CheckpointError, match="truncated or corrupt"):
            reader(folder)


def of_later_version(config):
    config["quantization_config"]["schema"] = 3


def of_other_layout(config):
    config["quantization_config"]["layout"] = "blocks"


def of_unknown_kind(config):
    config["quantization_config"]["modules"][Q]["kind"] = "hologram"


def of_unknown_module(config):
    modules = config["quantization_config"]["modules"]
    modules["model.layers.7.self_attn.q_proj"] = modules.pop(Q)


def of_other_size(config):
    config["quantization_config"]["modules"][Q]["sizes"]["o"] = 40


def without_network(config):
    del config["quantization_config"]["modules"][Q]["network"]


def without_modules(config):
    del config["quantization_config"]["modules"]


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (of_later_version, "schema version 3, this bondwise reads up to 2"),
        (of_other_layout, "lays its cores out as 'blocks'"),
        (of_unknown_kind, "hologram"),
        (of_unknown_module, "'model.layers.7.self_attn.q_proj', which LlamaForCausalLM lacks"),
        (of_other_size, r"is \(40, 32\) .* and \(32, 32\) in the model"),
        (without_network, "'network' is missing"),
        (without_modules, "no table of modules"),
    ],
)
def test_bad_manifests(folder, change, says):
    edit(folder, change)
    for reader in (AutoModelForCausalLM.from_pretrained, load):
        with pytest.raises(CheckpointError, match=says) as caught:
            reader(folder)
        assert "\n" not in str(caught.value)


def test_a_layer_that_only_the_old_head_had_is_passed_over(tmp_path):
    model = make_llama()
    from bondwise.topology.lowrank import lowrank

    model.lm_head = TensorLinear.from_linear(model.lm_head, lowrank(96, 32, 8))
    folder = save(model, tmp_path / "head")
    assert torch.equal(logits(AutoModelForCausalLM.from_pretrained(folder)), logits(model))
    assert networks(AutoModel.from_pretrained(folder)) == networks(model) - 1


def test_a_missing_shard_is_loud(llama, tmp_path):
    folder = save(llama, tmp_path / "shards", max_shard_size="10KB")
    next(iter(folder.glob("model-*.safetensors"))).unlink()
    with pytest.raises((CheckpointError, OSError)):
        AutoModelForCausalLM.from_pretrained(folder)
    with pytest.raises(CheckpointError):
        load(folder)
