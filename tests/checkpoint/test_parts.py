"""Parts of a whole checkpoint, parts saved alone, and configs that outlived their networks."""

import pytest
import torch
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, BertForSequenceClassification

import tiny
from bondwise.bench.count import networks
from bondwise.checkpoint.checkpoint import load, save
from bondwise.checkpoint.hub import attach
from bondwise.checkpoint.loading import load_model
from bondwise.compress.merge import merge
from bondwise.compress.tensorize import tensorize
from verbs import edit

from .conftest import gauge_free, logits, make_llama, manifest_of, refused, transformers

BASE = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
BASE |= {"num_attention_heads": 4, "projection_dim": 16}
TEXT = BASE | {"vocab_size": 96, "max_position_embeddings": 32, "eos_token_id": 2}
IMAGE = BASE | {"image_size": 16, "patch_size": 8}
IDS = torch.tensor([[5, 17, 3, 60, 2, 9]])


def t5():
    sizes = {"d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 2, "num_heads": 4}
    return transformers.T5Config(vocab_size=96, decoder_start_token_id=0, **sizes)


def clip(kind="CLIP"):
    made = getattr(transformers, f"{kind}Config")
    return made(text_config=TEXT, vision_config=IMAGE, projection_dim=16)


WHOLES = {
    "T5ForConditionalGeneration": t5,
    "CLIPModel": clip,
    "SiglipModel": lambda: clip("Siglip"),
}
PARTS = [
    ("T5ForConditionalGeneration", "T5EncoderModel"),
    ("CLIPModel", "CLIPVisionModel"),
    ("CLIPModel", "CLIPTextModel"),
    ("CLIPModel", "CLIPVisionModelWithProjection"),
    ("CLIPModel", "CLIPTextModelWithProjection"),
    ("SiglipModel", "SiglipVisionModel"),
    ("SiglipModel", "SiglipTextModel"),
]


@pytest.fixture(scope="module")
def wholes(tmp_path_factory):
    """By class: a compressed folder, and the same weights dense, as transformers alone writes."""
    made = {}

    def make(name):
        if name not in made:
            torch.manual_seed(0)
            model = getattr(transformers, name)(WHOLES[name]()).eval()
            cut = tensorize(model, keep=0.7, format="lowrank").model
            folder = tmp_path_factory.mktemp(name)
            merge(cut).save_pretrained(folder / "dense")
            made[name] = save(cut, folder / "whole"), folder / "dense"
        return made[name]

    return make


def same_tensors(one, two):
    found, wanted = one.state_dict(), two.state_dict()
    assert found.keys() == wanted.keys()
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)


@torch.no_grad()
def output(model):
    given = {"input_ids": IDS}
    if "Vision" in type(model).__name__:
        given = {"pixel_values": torch.linspace(-1, 1, 768).reshape(1, 3, 16, 16)}
    return model(**given)[0]


@pytest.mark.parametrize(("whole", "part"), PARTS)
def test_a_part_of_a_whole_loads_and_is_saved_alone(wholes, tmp_path, whole, part):
    folder, dense = wholes(whole)
    kind = getattr(transformers, part)
    loaded, told = kind.from_pretrained(folder, output_loading_info=True)
    oracle = kind.from_pretrained(dense)
    assert networks(loaded) >= 10
    assert not told["missing_keys"]
    torch.testing.assert_close(output(loaded), output(oracle), rtol=1e-4, atol=1e-5)
    alone = save(loaded, tmp_path / "alone")
    for again in (kind.from_pretrained(alone), load(alone), load_model(alone).model):
        assert networks(again) == networks(loaded)
        same_tensors(again, loaded)
        torch.testing.assert_close(output(again), output(loaded))  # memory is aligned otherwise
    alone = save(merge(loaded), tmp_path / "merged")
    assert "quantization_config" not in (alone / "config.json").read_text()
    torch.testing.assert_close(output(kind.from_pretrained(alone)), output(oracle))


def test_a_part_saved_alone_loads_into_the_whole(wholes, tmp_path):
    folder, _ = wholes("T5ForConditionalGeneration")
    part = transformers.T5EncoderModel.from_pretrained(folder)
    alone = save(part, tmp_path / "alone")
    whole = transformers.T5ForConditionalGeneration
    loaded, told = whole.from_pretrained(alone, output_loading_info=True)
    merge(part).save_pretrained(tmp_path / "dense")
    _, oracle = whole.from_pretrained(tmp_path / "dense", output_loading_info=True)
    assert told["missing_keys"] == oracle["missing_keys"]
    assert networks(loaded) == networks(part)
    with torch.no_grad():
        torch.testing.assert_close(loaded.encoder(IDS)[0], output(part))


def test_a_whole_without_networks_says_so_in_none_of_its_parts(wholes, tmp_path):
    folder, _ = wholes("CLIPModel")
    config = manifest_of(folder)
    for part in ("vision_config", "text_config"):
        assert config[part]["quantization_config"] == config["quantization_config"]
    merged = save(merge(load(folder)), tmp_path / "merged")
    assert "bondwise" not in (merged / "config.json").read_text()


def test_what_a_class_leaves_out_of_its_base_is_passed_over(tmp_path):
    bert = BertForSequenceClassification(tiny.bert().config).eval()
    bert.bert.pooler.dense = gauge_free(bert.bert.pooler.dense)
    query = bert.bert.encoder.layer[0].attention.self
    query.query = gauge_free(query.query)
    folder = save(bert, tmp_path / "bert")
    assert networks(transformers.BertForMaskedLM.from_pretrained(folder)) == 1  # it has no pooler
    assert networks(AutoModel.from_pretrained(folder)) == 2


@pytest.fixture
def outlived(tmp_path):
    """A dense model with random weights, built from the config of networks, and its folder."""
    folder = save(make_llama(), tmp_path / "cut")
    model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(folder)).eval()
    assert networks(model) == 0
    assert model.config.quantization_config["modules"]
    model.save_pretrained(tmp_path / "outlived")
    return model, tmp_path / "outlived"


@pytest.mark.parametrize(
    "reader",
    [AutoModelForCausalLM.from_pretrained, load, lambda folder: load_model(folder).model],
)
def test_a_config_that_outlived_its_networks(outlived, reader):
    model, folder = outlived
    loaded = reader(folder)
    assert networks(loaded) == 0
    assert torch.equal(logits(loaded), logits(model))
    assert not hasattr(loaded.config, "quantization_config")


def test_our_own_save_does_not_let_it(outlived, tmp_path):
    model, _ = outlived
    folder = save(model, tmp_path / "saved")
    assert not {"quantization_config", "transformers_weights"} & manifest_of(folder).keys()
    assert torch.equal(logits(load(folder)), logits(model))


def test_a_layer_that_became_dense_since_is_dense(tmp_path):
    model = make_llama()
    attach(model)
    twin = merge(model)
    model.model.layers[0].mlp.up_proj = twin.model.layers[0].mlp.up_proj
    stale = set(model.config.quantization_config["modules"])
    before = transformers.PreTrainedModel.save_pretrained.__wrapped__
    before(model, tmp_path / "stale")  # the manifest still calls it a network
    model.save_pretrained(tmp_path / "mixed")
    for name in ("stale", "mixed"):
        loaded = AutoModelForCausalLM.from_pretrained(tmp_path / name)
        assert networks(loaded) == networks(model)
        assert torch.equal(logits(loaded), logits(model))
        assert set(loaded.config.quantization_config["modules"]) < stale
    written = manifest_of(tmp_path / "mixed")["quantization_config"]["modules"]
    assert set(written) < stale


def test_networks_whose_tensors_are_gone_are_not_taken_for_dense(tmp_path):
    folder = save(make_llama(), tmp_path / "cut")
    name = "model.layers.0.mlp.up_proj.core_0"
    edit(folder / "model.safetensors", lambda found: found.pop(name))
    with refused(f"lacks '{name}'"):
        load(folder)
