"""Networks whose number of tokens changes: the same as their merged twin, then saved and loaded."""

from copy import deepcopy

import pytest
import torch
import transformers
from torch import nn
from transformers import AutoModelForCausalLM

import tiny
from bondwise.checkpoint.checkpoint import save
from bondwise.checkpoint.hub import attach
from bondwise.compress.merge import merge
from bondwise.errors import SelectionError
from bondwise.layers.module import TensorLayer

from .conftest import gauge_free, logits, manifest_of, offloaded

ENDS = {"embedding": ("model.embed_tokens",), "head": ("lm_head",)}
ENDS["both"] = ENDS["embedding"] + ENDS["head"]
EMBEDDING = "model.embed_tokens"


def with_networks(model, paths):
    """A model whose modules at some paths are gauge-free networks."""
    for path in paths:
        parent, _, name = path.rpartition(".")
        setattr(model.get_submodule(parent), name, gauge_free(model.get_submodule(path), 16))
    attach(model)
    return model


def resized(model, count, **how):
    torch.manual_seed(0)
    model.resize_token_embeddings(count, **how)
    return model


@pytest.mark.parametrize("how", [{}, {"mean_resizing": False}, {"pad_to_multiple_of": 16}])
@pytest.mark.parametrize("count", [96, 141])
@pytest.mark.parametrize("ends", ENDS)
def test_it_is_what_the_merged_twin_is_and_lives_on(ends, count, how, tmp_path):
    small = with_networks(tiny.llama(), (*ENDS[ends], "model.layers.0.mlp.up_proj"))
    wanted = resized(merge(small), count, **how)
    found = resized(small, count, **how)
    assert found.config.vocab_size == wanted.config.vocab_size >= count
    old = slice(128 if "mean_resizing" in how else None)  # what is added is drawn then
    assert torch.allclose(logits(found)[..., old], logits(wanted)[..., old], atol=1e-5)
    found.save_pretrained(tmp_path / "pretrained")
    said = manifest_of(tmp_path / "pretrained")["quantization_config"]
    assert list(said["modules"]) == ["model.layers.0.mlp.up_proj"]
    for folder in (tmp_path / "pretrained", save(found, tmp_path / "saved")):
        again = AutoModelForCausalLM.from_pretrained(folder)
        assert torch.equal(logits(again), logits(found))
    ids = torch.tensor([[count - 1, 5]])
    assert again.generate(ids, max_new_tokens=2, min_new_tokens=2).shape == (1, 4)
    assert torch.allclose(logits(merge(again)), logits(found), atol=1e-5)


@pytest.mark.parametrize("trained", [True, False])
def test_what_was_trained_or_frozen_stays_so(trained):
    small = with_networks(tiny.llama(), ENDS["both"])
    small.requires_grad_(trained)
    with torch.no_grad():
        resized(small, 140)
    dense = [small.get_input_embeddings(), small.get_output_embeddings()]
    assert [type(module) for module in dense] == [nn.Embedding, nn.Linear]
    assert [module.weight.requires_grad for module in dense] == [trained, trained]


@pytest.mark.parametrize("how", [{"new_num_tokens": None}, {"new_num_tokens": 128}])
def test_networks_stay_where_the_size_does(how):
    small = with_networks(tiny.llama(), ENDS["both"])
    before = logits(small)
    small.resize_token_embeddings(**how)
    assert all(isinstance(small.get_submodule(path), TensorLayer) for path in ENDS["both"])
    assert torch.equal(logits(small), before)


def test_without_networks_it_is_as_transformers_has_it():
    attach(with_networks(tiny.llama(), [EMBEDDING]))  # the class knows ours from here on
    found, wanted = tiny.llama(), tiny.llama()
    resized(found, 140)
    torch.manual_seed(0)
    transformers.PreTrainedModel.resize_token_embeddings.__wrapped__(wanted, 140)
    assert torch.equal(logits(found), logits(wanted))


@pytest.mark.parametrize("count", [96, 141])
def test_a_tied_model_resizes_its_dense_ends(count, tmp_path):
    small = with_networks(tiny.llama(tied=True), ["model.layers.0.mlp.up_proj"])
    wanted = resized(merge(small), count)
    assert torch.allclose(logits(resized(small, count)), logits(wanted), atol=1e-5)
    assert small.lm_head.weight is small.model.embed_tokens.weight
    again = AutoModelForCausalLM.from_pretrained(save(small, tmp_path / "saved"))
    assert torch.equal(logits(again), logits(small))


def bart():
    sizes = {"d_model": 32, "encoder_ffn_dim": 48, "decoder_ffn_dim": 48, "vocab_size": 128}
    layers = {"encoder_layers": 1, "decoder_layers": 1, "max_position_embeddings": 64}
    heads = {"encoder_attention_heads": 2, "decoder_attention_heads": 2}
    return transformers.BartForConditionalGeneration(
        transformers.BartConfig(**sizes, **layers, **heads, tie_word_embeddings=False)
    )


def mobilebert():
    sizes = {"hidden_size": 32, "intermediate_size": 48, "embedding_size": 16, "vocab_size": 128}
    more = {"num_hidden_layers": 1, "num_attention_heads": 4, "intra_bottleneck_size": 16}
    config = transformers.MobileBertConfig(**sizes, **more, tie_word_embeddings=False)
    return transformers.MobileBertForMaskedLM(config)


CLASSES = {
    "a bias of the head": (bart, "lm_head"),
    "a head that is transposed": (mobilebert, "cls.predictions.dense"),
    "a head with a bias": (mobilebert, "cls.predictions.decoder"),
    "an embedding with padding": (mobilebert, "mobilebert.embeddings.word_embeddings"),
}


@pytest.mark.parametrize("kind", CLASSES)
def test_classes_with_methods_of_their_own(kind):
    make, path = CLASSES[kind]
    torch.manual_seed(0)
    small = with_networks(make().eval(), [path])
    ids = torch.tensor([[5, 17, 3, 60]])
    for count in (96, 141):
        found, wanted = resized(deepcopy(small), count), resized(merge(small), count)
        with torch.no_grad():
            assert torch.allclose(found(ids).logits, wanted(ids).logits, atol=1e-5)
        assert type(found.get_submodule(path)) is type(wanted.get_submodule(path))


@pytest.mark.parametrize("paths", [ENDS["embedding"], ENDS["both"]])
def test_a_backbone_resized_alone(paths, tmp_path):
    small = with_networks(tiny.llama(), paths)
    small.model.resize_token_embeddings(140)
    small.save_pretrained(tmp_path)
    left = manifest_of(tmp_path).get("quantization_config", {"modules": {}})["modules"]
    assert list(left) == [path for path in paths if path == "lm_head"]
    dense = (tmp_path / "model.safetensors").stat().st_size
    assert dense > 4 * sum(p.numel() for p in small.parameters())


def test_an_embedding_that_is_away_is_refused_before_anything_changes(tmp_path):
    folder = save(with_networks(tiny.llama(), ENDS["head"]), tmp_path / "saved")
    away = offloaded(folder, tmp_path / "off", "disk")
    before = logits(away)
    with pytest.raises(SelectionError, match="without device_map"):
        away.resize_token_embeddings(140)
    assert (away.config.vocab_size, len(away.model.embed_tokens.weight)) == (128, 128)
    assert torch.equal(logits(away), before)
    assert "lm_head" in manifest_of(folder)["quantization_config"]["modules"]
