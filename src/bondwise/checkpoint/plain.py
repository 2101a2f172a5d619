"""A module that is none of transformers' in a checkpoint: its manifest, weights and graph.

Its code is not kept. What the result has otherwise than the code makes it is noted: layers of
terms, modules that became ``nn.Identity`` (a norm that was folded), and biases that came with that.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, load_model, save_model
from torch import Tensor, nn

from bondwise.checkpoint.headers import headers
from bondwise.checkpoint.manifest import check_tensors, describe, read_old, read_specs, swap_in
from bondwise.checkpoint.sources.code import made_by, model_of
from bondwise.checkpoint.sources.program import Program
from bondwise.errors import BondwiseError, CheckpointError
from bondwise.flow.copies import copied, twins, view
from bondwise.layers.module import check_model
from bondwise.layers.older import is_old

MANIFEST = "bondwise.json"
WEIGHTS = "model.safetensors"
GRAPH = "graph.json"
GONE = "identities"


def save_module(model: nn.Module, folder: Path, code: str | None) -> None:
    """Write a module's manifest and weights; ``code`` is what makes a dense one."""
    gone = [path for path, module in model.named_modules() if type(module) is nn.Identity]
    noted: dict[str, Any] = {"code": code} if code else {}
    noted |= {GONE: gone} if gone else {}
    write_json(folder / MANIFEST, describe(model) | noted)
    if isinstance(model, Program):
        write_json(folder / GRAPH, model.traced, indent=None)
    save_model(model, str(folder / WEIGHTS), metadata={"format": "pt"})


def plain_manifest(folder: Path) -> dict[str, Any]:
    """What the folder of a plain module says of it.

    Raises:
        CheckpointError: it cannot be read.
    """
    return read_json(folder / MANIFEST)


def given(model: nn.Module | Callable[[], nn.Module] | str | None) -> nn.Module | None:
    """The module that came, or what code makes."""
    if model is None:
        return None
    if isinstance(model, str):
        return model_of(model)
    if not isinstance(model, nn.Module) and callable(model):
        return made_by(model, getattr(model, "__name__", "model"))
    check_model(model)
    return model


def program(folder: Path) -> nn.Module:
    """The program of a folder, without numbers."""
    try:
        return Program(read_json(folder / GRAPH))
    except (KeyError, TypeError, ValueError, AttributeError, RuntimeError) as error:
        if isinstance(error, BondwiseError):
            raise
        reason = " ".join(str(error).split())[:160]
        raise CheckpointError(
            f"{folder / GRAPH} cannot be read ({type(error).__name__}: {reason}); copy or save it "
            "again."
        ) from error


def load_module(folder: Path, model: nn.Module) -> nn.Module:
    """A copy of a dense module with a checkpoint's layers and numbers.

    Raises:
        CheckpointError: they do not fit it, or cannot be read.
    """
    specs = read_specs(read_json(folder / MANIFEST))
    weights = folder / WEIGHTS
    if not weights.is_file():
        raise CheckpointError(f"{folder} has no {WEIGHTS}; copy or save it again.")
    copy = copied(model, twins(model))
    _fold(copy, folder)
    layers = swap_in(copy, specs)
    check_tensors([weights], layers, specs)
    try:
        _take_dtypes(copy, weights)
        if any(map(is_old, specs.values())):
            copy.load_state_dict(load_file(str(weights)) | read_old([weights], layers, specs))
        else:
            load_model(copy, str(weights))
    except (RuntimeError, SafetensorError) as error:
        reason = " ".join(str(error).split())
        raise CheckpointError(
            f"{folder} does not fit {type(model).__name__}: {reason[:300]}"
        ) from error
    return copy


def _fold(model: nn.Module, folder: Path) -> None:
    """Take out what is an identity in the checkpoint; add biases that it has and the code lacks."""
    gone = plain_manifest(folder).get(GONE, [])
    known = dict(model.named_modules())
    for path in gone:
        if path in known and path:
            parent, _, name = path.rpartition(".")
            setattr(model.get_submodule(parent), name, nn.Identity())
    found = headers([folder / WEIGHTS])
    for path, module in model.named_modules():
        own = vars(module)["_parameters"]
        header = found.get(f"{path}.bias" if path else "bias")
        if header and own.get("bias", header) is None and own.get("weight") is not None:
            module.bias = nn.Parameter(own["weight"].new_zeros(header.shape))


def _take_dtypes(model: nn.Module, weights: Path) -> None:
    """Give every tensor the dtype that it was saved in; what is shared stays shared."""
    saved = load_file(str(weights))
    named = model.state_dict(keep_vars=True)  # shared ones under all names
    shown = {id(tensor): view(tensor) for tensor in named.values()}
    wanted = {shown[id(t)]: saved[name].dtype for name, t in named.items() if name in saved}
    made: dict[Any, Tensor] = {}
    for tensor in {id(t): t for t in named.values()}.values():
        key = shown[id(tensor)]
        if key in wanted:
            made[key] = made[key] if key in made else tensor.data.to(wanted[key])
            tensor.data = made[key]


def write_json(path: Path, values: dict[str, Any], indent: int | None = 2) -> None:
    """A table as JSON; keys in their order where it is not for people (no indent)."""
    text = json.dumps(values, indent=indent, sort_keys=indent is not None)
    path.write_text(text + "\n", encoding="utf-8")


def read_json(path: Path) -> dict[str, Any]:
    """The table in a file.

    Raises:
        CheckpointError: there is none.
    """
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} is no JSON ({error}); copy or save it again.") from error
    if not isinstance(values, dict):
        raise CheckpointError(
            f"{path} holds a {type(values).__name__}, not a table; save it again."
        )
    return values
