"""The Auto classes load what was saved, in every way they offer; the dense twin is never needed."""

import pytest
import torch
from safetensors.torch import load_file
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoModelForSequenceClassification,
    BertForMaskedLM,
)

import tiny
from bondwise.bench.count import networks
from bondwise.checkpoint.checkpoint import load, save
from bondwise.checkpoint.hub import NOTICE, attach
from bondwise.compress.merge import merge
from bondwise.errors import CheckpointError
from bondwise.layers.linear import TensorLinear
from bondwise.topology.lowrank import lowrank
from verbs import edit

from .conftest import (
    IDS,
    gauge_free,
    logits,
    make_llama,
    manifest_of,
    pop,
    refused,
)

Q = "model.layers.0.self_attn.q_proj"
READERS = (AutoModelForCausalLM.from_pretrained, load)


def test_the_config_says_schema_layout_and_gauge_form(folder):
    config = manifest_of(folder)
    said = config["quantization_config"]
    assert (said["quant_method"], said["schema"], said["layout"]) == ("bondwise", 3, "matrices")
    assert said["modules"][Q]["host"] == "linear"
    (spec,) = said["modules"][Q]["terms"]
    assert (spec["network"], spec["pinned"]) == ("o a, a i -> (o) (i)", [None, "a"])
    assert config["transformers_weights"] == NOTICE
    saved = load_file(folder / "model.safetensors")  # guards have the names of the dense weights
    assert saved[f"{Q}.weight"].shape == saved["model.embed_tokens.weight"].shape == (1,)


def test_nothing_of_a_quantized_model_stays_behind(llama, folder):
    config = AutoModelForCausalLM.from_pretrained(folder).config
    loaded = AutoModelForCausalLM.from_pretrained(folder, config=config)  # which may be handed over
    assert torch.equal(logits(loaded), logits(llama))
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
    bert, gpt2 = BertForMaskedLM(tiny.bert().config).eval(), tiny.gpt2()
    for block in bert.bert.encoder.layer:
        block.intermediate.dense = gauge_free(block.intermediate.dense)
    for block in gpt2.transformer.h:
        block.attn.c_attn = TensorLinear.from_linear(block.attn.c_attn, lowrank(96, 32, 8))
    saved = save(bert, tmp_path / "bert")
    assert torch.equal(logits(AutoModelForMaskedLM.from_pretrained(saved)), logits(bert))
    for kind in (AutoModel, AutoModelForSequenceClassification):
        assert networks(kind.from_pretrained(saved)) == 2
    saved = save(gpt2, tmp_path / "gpt2")
    for reader in READERS:
        assert torch.equal(logits(reader(saved)), logits(gpt2))


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


def test_attached_models_save_themselves_and_merged_ones_are_plain(llama, tmp_path):
    attach(llama)
    llama.save_pretrained(tmp_path / "own")
    own = AutoModelForCausalLM.from_pretrained(tmp_path / "own")
    assert torch.equal(logits(own), logits(llama))
    merge(llama).save_pretrained(tmp_path / "plain")
    assert not {"quantization_config", "transformers_weights"} & set(
        manifest_of(tmp_path / "plain")
    )


def test_a_truncated_file(folder):
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    for reader in READERS:
        with refused("truncated or corrupt"):
            reader(folder)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda m: m.update(schema=4), "schema version 4, this bondwise reads up to 3"),
        (lambda m: m.update(layout="blocks"), "lays its cores out as 'blocks'"),
        (lambda m: m["modules"][Q].update(host="hologram"), "Host 'hologram' came"),
        (
            lambda m: m["modules"].update({Q.replace("0", "7"): m["modules"].pop(Q)}),
            "'model.layers.7.self_attn.q_proj', which LlamaForCausalLM lacks",
        ),
        (
            lambda m: m["modules"][Q]["terms"][0]["sizes"].update(o=40),
            r"is linear \(40, 48\) .*\(48, 48\) in",
        ),
        (lambda m: m["modules"][Q]["terms"][0].pop("network"), "'network' is missing"),
        (pop("modules"), "no table of modules"),
    ],
)
def test_bad_manifests(folder, change, says):
    edit(folder / "config.json", lambda config: change(config["quantization_config"]))
    for reader in READERS:
        with refused(says):
            reader(folder)


def test_a_layer_that_only_the_old_head_had_is_passed_over(tmp_path):
    model = make_llama()
    model.lm_head = gauge_free(model.lm_head)
    folder = save(model, tmp_path / "head")
    assert torch.equal(logits(AutoModelForCausalLM.from_pretrained(folder)), logits(model))
    assert networks(AutoModel.from_pretrained(folder)) == networks(model) - 1


def test_a_missing_shard_is_loud(llama, tmp_path):
    folder = save(llama, tmp_path / "shards", max_shard_size="10KB")
    next(iter(folder.glob("model-*.safetensors"))).unlink()
    for reader in READERS:
        with pytest.raises((CheckpointError, OSError) if reader is READERS[0] else CheckpointError):
            reader(folder)
