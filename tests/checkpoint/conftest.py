"""Tiny random models of transformers, some of whose layers are swapped for networks by hand."""

import warnings
from pathlib import Path

import pytest
import torch
from torch import nn

from bondwise.checkpoint.checkpoint import save
from bondwise.fit.fit import fit
from bondwise.gauge.compact import compact
from bondwise.layers.embedding import TensorEmbedding
from bondwise.layers.layers import TensorLinear
from bondwise.topology.lowrank import lowrank
from bondwise.topology.mpo import mpo

transformers = pytest.importorskip("transformers")
IDS = torch.tensor([[5, 17, 3, 60, 2, 9]])


def compact_linear(linear: nn.Module, rank: int) -> TensorLinear:
    """Low rank in gauge form."""
    weight = linear.weight.detach()
    fitted = fit(weight.float(), lowrank(*weight.shape, rank))
    cores = [core.to(weight.dtype) for core in fitted.cores]
    return TensorLinear.from_compact(compact(fitted.network, cores), linear)


def compact_embedding(embedding: nn.Embedding, rank: int) -> TensorEmbedding:
    weight = embedding.weight.detach()
    fitted = fit(weight.float(), lowrank(*weight.shape, rank))
    cores = [core.to(weight.dtype) for core in fitted.cores]
    return TensorEmbedding.from_compact(compact(fitted.network, cores), embedding)


def make_llama(dtype=torch.float32, tied=False):
    """Two blocks: gauge-free low rank, an MPO, and (untied only) an embedding."""
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=96, hidden_size=32, intermediate_size=48, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, tie_word_embeddings=tied,
    )  # fmt: skip
    model = transformers.LlamaForCausalLM(config).to(dtype).eval()
    for block in model.model.layers:
        block.self_attn.q_proj = compact_linear(block.self_attn.q_proj, 8)
        block.mlp.up_proj = TensorLinear.from_linear(block.mlp.up_proj, mpo((6, 8), (4, 8), 4))
    if not tied:
        model.model.embed_tokens = compact_embedding(model.model.embed_tokens, 16)
    return model


def make_bert():
    torch.manual_seed(1)
    config = transformers.BertConfig(
        vocab_size=96,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
    )
    model = transformers.BertForMaskedLM(config).eval()
    for block in model.bert.encoder.layer:
        block.intermediate.dense = compact_linear(block.intermediate.dense, 8)
    return model


def make_gpt2():
    torch.manual_seed(2)
    config = transformers.GPT2Config(
        vocab_size=96,
        n_positions=32,
        n_embd=32,
        n_layer=2,
        n_head=4,
        bos_token_id=0,
        eos_token_id=1,
    )
    model = transformers.GPT2LMHeadModel(config).eval()
    for block in model.transformer.h:
        block.attn.c_attn = TensorLinear.from_linear(block.attn.c_attn, lowrank(96, 32, 8))
    return model


@torch.no_grad()
def logits(model) -> torch.Tensor:
    return model(IDS).logits.float()


@pytest.fixture
def llama():
    return make_llama()


@pytest.fixture
def folder(llama, tmp_path: Path) -> Path:
    """A checkpoint of the llama."""
    return save(llama, tmp_path / "llama")


def offloaded(folder, far, off):
    """The causal model of a folder, its first block and its head kept far away."""
    device_map = {"model.embed_tokens": "cpu", "model.layers.0": far, "model.layers.1": "cpu",
                  "model.norm": "cpu", "model.rotary_emb": "cpu", "lm_head": far}  # fmt: skip
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # accelerate's own
        return transformers.AutoModelForCausalLM.from_pretrained(
            folder, device_map=device_map, offload_folder=str(off)
        )
