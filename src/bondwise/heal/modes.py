"""How a student runs while it is trained, and while it is judged."""

from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from bondwise.errors import BudgetError
from bondwise.flow.chains.blocks import Products
from bondwise.flow.data import evaluating


def products(name: str, device: torch.device) -> Products:
    """Products of matrices in the precision of a recipe; sums, and the weights, in float32."""
    if name == "auto":
        return Products.of(device, torch.float32)
    return Products(device, fast=name == "bfloat16", asked=True)


DROPS = ("dropout", "attention_dropout", "activation_dropout", "layerdrop")


@contextmanager
def training(model: nn.Module, checkpointing: bool = False) -> Generator[None]:
    """The model as it is trained for a while: it gives what it gives in use.

    What is fitted to a teacher is not to be blurred, and some thousand tokens move running means
    further than they inform them. So all is in evaluation mode but what needs the other: cuDNN
    makes gradients of recurrent layers, and blocks compute activations anew where asked; of these
    nothing is dropped.

    Raises:
        BudgetError: checkpointing for a model that has none.
    """
    modes = {module: module.training for module in model.modules()}
    on = any(_checkpoints(module) for module in modes)
    if checkpointing and not on:
        _checkpoint(model, True)
    model.eval()
    dropped = list[tuple[nn.Module, str, Any]]()
    for module in modes:
        if isinstance(module, nn.RNNBase) or _checkpoints(module):
            module.training = True
            found = {name: vars(module).get(name) for name in DROPS}
            dropped += [(module, name, p) for name, p in found.items() if isinstance(p, float)]
    for module, name, _ in dropped:
        setattr(module, name, 0.0)
    try:
        yield
    finally:
        if checkpointing and not on:
            _checkpoint(model, False)
        for module, name, was in dropped:
            setattr(module, name, was)
        for module, was in modes.items():
            module.training = was


@contextmanager
def judging(model: nn.Module) -> Generator[None]:
    """The model as it is used for a while."""
    with evaluating(model):
        yield
    shards: Any = getattr(model, "reshard", None)  # FSDP leaves a group whole without gradients
    if shards is not None:
        shards()


def _checkpoints(module: nn.Module) -> bool:
    return bool(getattr(module, "gradient_checkpointing", False))


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


@contextmanager
def as_float32(model: nn.Module) -> Generator[None]:
    """The model in at least float32 for a while; small steps are lost in shorter numbers."""
    stored = (*model.parameters(), *model.buffers())
    kinds = {p: p.dtype for p in stored if p.dtype in (torch.float16, torch.bfloat16)}
    for p in kinds:
        p.data = p.data.float()
    try:
        yield
    finally:
        for p, kind in kinds.items():
            p.data = p.data.to(kind)
