"""How a student runs while it is trained, and while it is judged."""

from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from bondwise.errors import BudgetError
from bondwise.model.blocks import precision
from bondwise.model.data import evaluating
from bondwise.model.layers import TensorLinear


@contextmanager
def products(name: str, device: torch.device) -> Generator[None]:
    """Products of matrices in the precision of a recipe; sums, and the weights, in float32."""
    if name == "auto":
        with precision(device, torch.float32):
            yield
        return
    with torch.autocast(device.type, torch.bfloat16, enabled=name == "bfloat16"):
        yield


@contextmanager
def training(model: nn.Module, checkpointing: bool = False) -> Generator[None]:
    """The model in training mode for a while, but nothing dropped and no statistics gathered.

    What is fitted to a teacher is not to be blurred, and some thousand tokens move running means
    further than they inform them. In training mode no weights are kept ready beside the cores, and
    transformers computes activations anew where asked.

    Raises:
        BudgetError: checkpointing for a model that has none.
    """
    modes = {module: module.training for module in model.modules()}
    on = any(bool(getattr(module, "gradient_checkpointing", False)) for module in modes)
    if checkpointing and not on:
        _checkpoint(model, True)
    model.train()
    for module in modes:
        if "dropout" in type(module).__name__.lower() or hasattr(module, "running_mean"):
            module.train(False)
    try:
        yield
    finally:
        if checkpointing and not on:
            _checkpoint(model, False)
        for module, was in modes.items():
            module.training = was
        _forget(model)


@contextmanager
def judging(model: nn.Module) -> Generator[None]:
    """The model as it is used for a while; what it made for that is let go."""
    with evaluating(model):
        yield
    _forget(model)
    shards: Any = getattr(model, "reshard", None)  # FSDP leaves a group whole without gradients
    if shards is not None:
        shards()


def _checkpoint(model: nn.Module, on: bool) -> None:
    """Have activations computed twice, or not any more."""
    if not getattr(model, "supports_gradient_checkpointing", False):
        raise BudgetError(
            f"checkpointing=True came for {type(model).__name__}, which cannot compute its "
            "activations twice; write checkpointing=False."
        )
    own: Any = model
    kind = "activation" if hasattr(own, "activation_checkpointing_enable") else "gradient"
    if on:
        again = {f"{kind}_checkpointing_kwargs": {"use_reentrant": False}}
        getattr(own, f"{kind}_checkpointing_enable")(**again)
    else:
        getattr(own, f"{kind}_checkpointing_disable")()


def _forget(model: nn.Module) -> None:
    for module in model.modules():
        if isinstance(module, TensorLinear):
            module.refresh()


@contextmanager
def as_float32(model: nn.Module) -> Generator[None]:
    """The parameters in at least float32 for a while; small steps are lost in shorter numbers."""
    kinds = {p: p.dtype for p in model.parameters() if p.dtype in (torch.float16, torch.bfloat16)}
    for p in kinds:
        p.data = p.data.float()
    try:
        yield
    finally:
        for p, kind in kinds.items():
            p.data = p.data.to(kind)
