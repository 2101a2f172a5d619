"""Writes the golden checkpoints: run once per version of the schema, then kept for ever.

    python tests/golden/make.py 3                  # llama-tiny-v3, module-v3, .. beside this file
    python tests/golden/make.py 3 convolution      # convolution-v3 alone

Existing ones are never written again: that they load is the promise.
"""

import sys
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

from bondwise import btt, cp, kron, lowrank, mpo, ring, tucker2
from bondwise.checkpoint.checkpoint import save
from bondwise.gauge.compact import compact
from bondwise.layers.convolution import TensorConv2d, TensorConvTranspose2d
from bondwise.layers.entries import columns, dense, entries, rows
from bondwise.layers.hosts.registry import host_of
from bondwise.layers.linear import TensorLinear
from bondwise.layers.networks import compacted, drawn
from bondwise.network.groups import grouped_network

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


def skeleton() -> nn.Module:
    """The dense model that the convolutions below stand in."""
    moved = {"stride": (1, 2), "padding": (1, 0), "groups": 2, "padding_mode": "circular"}
    return nn.Sequential(
        nn.Conv2d(4, 12, (3, 2), **moved),
        nn.ReLU(),
        nn.Conv2d(12, 8, 3, padding="same"),
        nn.ConvTranspose2d(8, 3, 2, stride=2, output_padding=1, bias=False),
    )


def convolution() -> nn.Module:
    """Groups without the gauge and an entry beside them, CP, and a transposed one."""
    torch.manual_seed(0)
    model = skeleton()
    own = grouped_network(tucker2(6, 2, (3, 2), (3, 2)), 2)
    stored = compacted(compact(own, TensorConv2d(own).cores()))
    few = entries(torch.tensor([0, 17]), torch.randn(2), (12, 12))
    model[0] = host_of(model[0]).build(model[0], [stored, few])
    model[2] = TensorConv2d(cp(8, (12, 3, 3), 5), bias=True, padding="same", size=(6, 6))
    net = lowrank(3, (8, 2, 2), 3)
    model[3] = TensorConvTranspose2d(net, stride=2, output_padding=1)
    return model


GIVEN = {
    "llama-tiny": (llama, IDS, "logits"),
    "module": (module, torch.linspace(-1, 1, 36).view(3, 12), "y"),
    "convolution": (convolution, torch.linspace(-1, 1, 288).view(2, 4, 6, 6), "y"),
}


@torch.no_grad()
def main(version: str, *names: str) -> None:
    for name in names or GIVEN:
        make, x, gives = GIVEN[name]
        model, where = make(), HERE / f"{name}-v{version}"
        save(model, where)
        y = model(x).logits if gives == "logits" else model(x)
        known = {} if gives == "logits" else {"x": x}
        save_file(known | {gives: y.contiguous()}, where.with_suffix(".safetensors"))


if __name__ == "__main__":
    main(*sys.argv[1:])
