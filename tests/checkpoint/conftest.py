"""Tiny random models of transformers, some of whose layers are swapped for networks by hand."""

import json
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import tiny
from bondwise.checkpoint.checkpoint import save
from bondwise.errors import CheckpointError
from bondwise.fit.fit import fit
from bondwise.gauge.compact import compact
from bondwise.layers.hosts.registry import host_of
from bondwise.layers.linear import TensorLinear
from bondwise.layers.networks import compacted
from bondwise.topology.lowrank import lowrank
from bondwise.topology.mpo import mpo

transformers = pytest.importorskip("transformers")
IDS = torch.tensor([[5, 17, 3, 60, 2, 9]])


def gauge_free(dense: nn.Module, rank: int = 8, beside=()):
    """Low rank in gauge form, with other terms beside it."""
    weight = dense.weight.detach()
    fitted = fit(weight.float(), lowrank(*weight.shape, rank))
    cores = [core.to(weight.dtype) for core in fitted.cores]
    return host_of(dense).build(dense, [compacted(compact(fitted.network, cores)), *beside])


def make_llama(dtype=torch.float32, tied=False):
    """Two blocks: gauge-free low rank, an MPO, and (untied only) an embedding."""
    model = tiny.llama(tied).to(dtype)
    for block in model.model.layers:
        block.self_attn.q_proj = gauge_free(block.self_attn.q_proj)
        block.mlp.up_proj = TensorLinear.from_linear(block.mlp.up_proj, mpo((8, 12), (6, 8), 4))
    if not tied:
        model.model.embed_tokens = gauge_free(model.model.embed_tokens, 16)
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


def manifest_of(folder: Path, name: str = "config.json") -> dict[str, Any]:
    return json.loads((folder / name).read_text())


def pop(name: str) -> Callable[[dict[str, Any]], object]:
    """A change for ``edit``: this is missing."""
    return lambda found: found.pop(name)


@contextmanager
def refused(says: str) -> Iterator[None]:
    """One sentence says so."""
    with pytest.raises(CheckpointError, match=says) as caught:
        yield
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 500


def offloaded(folder, off, far, first=None):
    """The causal model of a folder: its head is far away, and its first block or parts of that."""
    places = {f"model.layers.0.{name}": place for name, place in (first or {}).items()}
    near = ("model.embed_tokens", "model.layers.1", "model.norm", "model.rotary_emb")
    device_map = dict.fromkeys(near, "cpu") | (places or {"model.layers.0": far}) | {"lm_head": far}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # accelerate's own
        return transformers.AutoModelForCausalLM.from_pretrained(
            folder, device_map=device_map, offload_folder=str(off)
        )
