"""What is in the files: read back from their headers alone, and held against the model."""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from bondwise.checkpoint.headers import Header, headers
from bondwise.checkpoint.hub import is_hub_model
from bondwise.errors import CheckpointError
from bondwise.layers.terms import Spec

INDEX = "model.safetensors.index.json"
_OURS = (".core_0", ".t0_dense", "._extra_state")  # one of them is in every layer of terms
_KINDS = {  # safetensors calls a dtype this
    torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16",
    torch.float8_e4m3fn: "F8_E4M3", torch.float8_e5m2: "F8_E5M2", torch.complex64: "C64",
    torch.int64: "I64", torch.int32: "I32", torch.int16: "I16", torch.int8: "I8",
    torch.uint8: "U8", torch.bool: "BOOL",
}  # fmt: skip


def still_networks(specs: Mapping[str, Spec], files: Iterable[str | Path]) -> dict[str, Spec]:
    """The layers of a manifest that the files hold as networks.

    A config may outlive its networks: a dense model that was built from it is written with the
    manifest. A layer whose dense weight is in the files is a dense one, whatever the manifest says;
    beside a network that name is the guard's, of one number.

    Raises:
        CheckpointError: a file is truncated or corrupt.
    """
    found = headers(files)
    if found and not any(name.endswith(_OURS) for name in found):
        return {}
    dense = {
        name.removesuffix(".weight") for name, header in found.items() if len(header.shape) > 1
    }
    return {path: spec for path, spec in specs.items() if path not in dense}


def check_written(model: nn.Module, folder: Path) -> None:
    """See that a folder has every tensor of a model, from the headers alone.

    A tensor may be missing where it is tied to one that is there. More may be there than the model
    has.

    Raises:
        CheckpointError: naming the first that is missing, or has another shape or dtype.
    """
    found = headers(sorted(folder.glob("*.safetensors")))
    _check_index(folder, found)
    state = _state(model)
    if not state.keys() <= found.keys():
        state = _as_named_in_files(model, state)
    there = [_memory(tensor) for name, tensor in state.items() if name in found]
    for name, tensor in state.items():
        if name in found:
            _check_one(name, tensor, found[name])
        elif not _is_part(_memory(tensor), there):
            raise CheckpointError(
                f"{name!r} of {type(model).__name__} was not written ({len(found)} of "
                f"{len(state)} tensors were), so nothing was left; save a plain copy of the model, "
                "without wrappers that change what state_dict gives."
            )


def _state(model: nn.Module) -> dict[str, Tensor]:
    """What must be written: all but what the class never writes, and what is no tensor."""
    passed: Any = getattr(model, "_keys_to_ignore_on_save", None) or ()
    state = model.state_dict(keep_vars=True)
    return {n: t for n, t in state.items() if isinstance(t, Tensor) and n not in passed}  # pyright: ignore[reportUnnecessaryIsInstance]


def _as_named_in_files(model: nn.Module, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The state under the names, and in the parts, that transformers writes it in.

    The tensors come back without numbers where transformers changed them, and as they were else.
    """
    if not is_hub_model(model):
        return state
    from transformers.core_model_loading import revert_weight_conversion

    empty = {name: torch.empty_like(t, device="meta") for name, t in state.items()}
    own = {id(empty[name]): tensor for name, tensor in state.items()}
    named: dict[str, Tensor] = revert_weight_conversion(model, empty)  # pyright: ignore[reportArgumentType]
    return {name: own.get(id(tensor), tensor) for name, tensor in named.items()}


def _memory(tensor: Tensor) -> tuple[int, int]:
    """Where the numbers of a tensor begin and end, in bytes."""
    try:
        begin = tensor.data_ptr()
    except RuntimeError:  # a subclass without memory of its own
        begin = 0
    begin = begin or id(tensor)  # there are none
    steps = zip(tensor.shape, tensor.stride(), strict=True)
    last = sum((size - 1) * step for size, step in steps) if tensor.numel() else -1
    return begin, begin + (last + 1) * tensor.element_size()


def _is_part(memory: tuple[int, int], written: Iterable[tuple[int, int]]) -> bool:
    return any(begin <= memory[0] and memory[1] <= end for begin, end in written)


def _check_one(name: str, tensor: Tensor, header: Header) -> None:
    kind = _KINDS.get(tensor.dtype, header.dtype)
    if (header.shape, header.dtype) != (tuple(tensor.shape), kind):
        raise CheckpointError(
            f"{name!r} was written as {header.dtype} {header.shape}, the model has it as {kind} "
            f"{tuple(tensor.shape)}, so nothing was left; save a plain copy of the model."
        )


def _check_index(folder: Path, found: Mapping[str, Header]) -> None:
    """An index must name every tensor, in the file where it is."""
    path = folder / INDEX
    if not path.is_file():
        return
    said = json.loads(path.read_text(encoding="utf-8"))["weight_map"]
    if said != {name: header.file.name for name, header in found.items()}:
        raise CheckpointError(
            f"{INDEX} names {len(said)} tensors and the files hold {len(found)}, not the same "
            "ones, so nothing was left; save the model again."
        )
