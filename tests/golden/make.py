"""Writes the golden checkpoints: run once per version of the schema, then kept for ever.

    python tests/golden/make.py 2      # writes llama-tiny-v2 and module-v2 beside this file

Existing ones are never written again: that they load is the promise.
"""

import sys
from pathlib import Path

import torch
from bondwise.layers.remainder import Columns, Entries
from safetensors.torch import save_file
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

from bondwise import btt, kron, lowrank, mpo, ring
from bondwise.checkpoint.checkpoint import save
from bondwise.gauge.compact import compact
from bondwise.layers.embedding import TensorEmbedding
from bondwise.layers.linear import TensorLinear
from bondwise.layers.module import share

HERE = Path(__file__).parent
IDS = torch.tensor([[5, 17, 3, 60, 2, 9, 9, 41]])


def gauge_free(net, dense: nn.Module, **kept):
    """A random layer of this network, stored without its gauge."""
    kind = TensorEmbedding if isinstance(dense, nn.Embedding) else TensorLinear
    return kind.from_compact(compact(net, kind(net).cores()), dense, **kept)


def llama() -> nn.Module:
    """One block that holds every way of storing a weight."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=1,
        num_attention_heads=4, num_key_value_heads=2, tie_word_embeddings=False,
        initializer_range=0.2, attention_bias=True,
    )  # fmt: skip
    model = LlamaForCausalLM(config).eval()
    attention, mlp = model.model.layers[0].self_attn, model.model.layers[0].mlp
    attention.q_proj = gauge_free(lowrank(32, 32, 8), attention.q_proj)
    attention.k_proj = gauge_free(lowrank(16, 32, 8), attention.k_proj)
    attention.v_proj = TensorLinear(lowrank(16, 32, 4), bias=True)
    attention.o_proj = TensorLinear(btt((4, 8), (4, 8), 2), bias=True)
    share([attention.q_proj, attention.k_proj])
    columns = Columns(torch.tensor([2, 31]), torch.randn(48, 2))
    mlp.gate_proj = gauge_free(mpo((4, 3, 4), (4, 2, 4), 4), mlp.gate_proj, remainder=columns)
    entries = Entries(torch.tensor([0, 33, 1535]), torch.randn(3))
    mlp.up_proj = TensorLinear(kron((6, 8), (4, 8), 2), remainder=entries)
    mlp.down_proj = gauge_free(ring((4, 8), (6, 8), 3), mlp.down_proj)
    model.model.embed_tokens = gauge_free(lowrank(64, 32, 8), model.model.embed_tokens)
    return model


def module() -> nn.Module:
    """A plain module; its dense skeleton is built in the test."""
    torch.manual_seed(0)
    columns = Columns(torch.tensor([11]), torch.randn(16, 1))
    return nn.Sequential(
        gauge_free(lowrank(16, 12, 4), nn.Linear(12, 16), remainder=columns),
        nn.ReLU(),
        TensorLinear(mpo((2, 4), (4, 4), 3), bias=True),
    )


@torch.no_grad()
def main(version: str) -> None:
    model = llama()
    save(model, HERE / f"llama-tiny-v{version}")
    save_file({"logits": model(IDS).logits}, HERE / f"llama-tiny-v{version}.safetensors")
    toy, x = module(), torch.linspace(-1, 1, 36).view(3, 12)
    save(toy, HERE / f"module-v{version}")
    save_file({"x": x, "y": toy(x)}, HERE / f"module-v{version}.safetensors")


if __name__ == "__main__":
    main(*sys.argv[1:])
