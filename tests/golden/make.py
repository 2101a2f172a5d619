"""Writes the golden checkpoints: run once per version of the schema, then kept for ever.

    python tests/golden/make.py 3      # writes llama-tiny-v3 and module-v3 beside this file

Existing ones are never written again: that they load is the promise.
"""

import sys
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

from bondwise import btt, kron, lowrank, mpo, ring
from bondwise.checkpoint.checkpoint import save
from bondwise.gauge.compact import compact
from bondwise.layers.entries import columns, dense, entries, rows
from bondwise.layers.hosts.registry import host_of
from bondwise.layers.linear import TensorLinear
from bondwise.layers.networks import compacted, drawn

HERE = Path(__file__).parent
IDS = torch.tensor([[5, 17, 3, 60, 2, 9, 9, 41]])


def gauge_free(net, module: nn.Module, *beside):
    """A random layer of this network in the place of a module, stored without its gauge."""
    own = compacted(compact(net, TensorLinear(net).cores()))
    return host_of(module).build(module, [own, *beside])


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
    some = columns(torch.tensor([2, 31]), torch.randn(48, 2), (48, 32))
    mlp.gate_proj = gauge_free(mpo((4, 3, 4), (4, 2, 4), 4), mlp.gate_proj, some)
    few = entries(torch.tensor([0, 33, 1535]), torch.randn(3), (48, 32))
    mlp.up_proj = TensorLinear.of([drawn(kron((6, 8), (4, 8), 2)), few])
    mlp.down_proj = gauge_free(ring((4, 8), (6, 8), 3), mlp.down_proj)
    model.model.embed_tokens = gauge_free(lowrank(64, 32, 8), model.model.embed_tokens)
    return model


def module() -> nn.Module:
    """A plain module; its dense skeleton is built in the test."""
    torch.manual_seed(0)
    beside = [
        columns(torch.tensor([11]), torch.randn(16, 1), (16, 12)),
        rows(torch.tensor([0, 3]), torch.randn(2, 12), (16, 12)),
        entries(torch.arange(0, 192, 3), torch.randn(64), (16, 12)),  # as many as make a mask
        compacted(compact(lowrank(16, 12, 2), drawn(lowrank(16, 12, 2)).numbers)),
    ]
    several = [dense(torch.randn(8, 16)), drawn(mpo((2, 4), (4, 4), 3))]
    return nn.Sequential(
        gauge_free(lowrank(16, 12, 4), nn.Linear(12, 16), *beside),
        nn.ReLU(),
        TensorLinear.of(several, bias=True),
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
