"""A tiny Llama with all that a tensorized model may have, and how it trains here."""

from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainingArguments

import bondwise as bw
from bondwise.checkpoint.hub import attach
from bondwise.layers.entries import columns, entries, rows
from bondwise.layers.hosts.registry import host_of
from bondwise.layers.linear import TensorLinear
from bondwise.layers.networks import compacted
from bondwise.layers.terms import Term

WIDTH, INNER, WORDS = 32, 48, 96
ROWS, LENGTH, STEPS = 8, 12, 4
IDS = torch.randint(WORDS, (ROWS, LENGTH), generator=torch.Generator().manual_seed(1))


def llama() -> LlamaForCausalLM:
    """Gauge-free low rank, BTT, MPO, an embedding; columns, rows and single entries beside them."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=WORDS, hidden_size=WIDTH, intermediate_size=INNER, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, initializer_range=0.2, pad_token_id=0,
    )  # fmt: skip
    model = LlamaForCausalLM(config)
    for block in model.model.layers:
        attention, mlp = block.self_attn, block.mlp
        for name in ("q_proj", "k_proj", "v_proj"):
            dense = getattr(attention, name)
            setattr(attention, name, _gauge_free(dense, bw.lowrank(*dense.weight.shape, 7)))
        attention.v_proj.add(rows(torch.tensor([0, 5]), torch.randn(2, WIDTH) / 10, (16, WIDTH)))
        attention.o_proj = TensorLinear.from_linear(attention.o_proj, bw.btt((4, 8), (8, 4), 2))
        some = columns(torch.tensor([3, 30]), torch.randn(INNER, 2) / 10, (INNER, WIDTH))
        mlp.gate_proj = _gauge_free(mlp.gate_proj, bw.lowrank(INNER, WIDTH, 8), some)
        mlp.up_proj = _gauge_free(mlp.up_proj, bw.mpo((6, 8), (4, 8), 5))
        few = entries(torch.tensor([0, 700, 1535]), torch.randn(3) / 10, (WIDTH, INNER))
        mlp.down_proj = _gauge_free(mlp.down_proj, bw.lowrank(WIDTH, INNER, 8), few)
    table = bw.lowrank(WORDS, WIDTH, 16)
    model.model.embed_tokens = _gauge_free(model.model.embed_tokens, table)
    attach(model)
    return model.train()


def _gauge_free(dense: nn.Module, net: bw.Network, *beside: Term) -> Any:
    stored = bw.compact(net, bw.fit(dense.weight.detach(), net).cores)
    return host_of(dense).build(dense, [compacted(stored), *beside])


@torch.no_grad()
def logits(model: nn.Module) -> Tensor:
    """What the model says to all rows."""
    return model(input_ids=IDS).logits


def batches(rank: int = 0, world: int = 1) -> Iterator[Tensor]:
    """The rows of each step that one of so many processes takes."""
    for step in range(STEPS):
        yield IDS.roll(step, 1)[rank::world]


def optimizer_of(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.AdamW(model.parameters(), lr=1e-2)


def step(model: nn.Module, optimizer: torch.optim.Optimizer, batch: Tensor) -> float:
    """One step, the gradient clipped; the loss before it."""
    loss = model(input_ids=batch, labels=batch).loss
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    optimizer.zero_grad()
    return loss.item()


def trained(model: Any, rank: int = 0, world: int = 1) -> Any:
    """The model after a few steps of AdamW, all processes together taking the same rows."""
    optimizer = optimizer_of(model)
    for part in batches(rank, world):
        step(model, optimizer, part)
    return model


def trainer(model: nn.Module, folder: Path, *, batch: int = ROWS, **settings: Any) -> Trainer:
    """Hugging Face's Trainer as it comes, on 32 rows that repeat few tokens."""
    names = {field.name for field in fields(TrainingArguments)}
    if "activation_checkpointing" not in names and "activation_checkpointing" in settings:
        settings["gradient_checkpointing"] = settings.pop("activation_checkpointing")
    defaults = {"max_steps": STEPS, "learning_rate": 3e-3, "logging_steps": 1, "save_steps": 2}
    arguments = TrainingArguments(
        str(folder),
        per_device_train_batch_size=batch,
        use_cpu=True,
        report_to=[],
        disable_tqdm=True,
        **(defaults | settings),
    )
    texts = torch.randint(8, (4 * ROWS, LENGTH), generator=torch.Generator().manual_seed(2))
    data = [{"input_ids": row, "labels": row} for row in texts]
    return Trainer(model=model, args=arguments, train_dataset=data, eval_dataset=data)
