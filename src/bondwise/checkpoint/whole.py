"""Whether a model can be written whole: its numbers are here, in its own parameters."""

from typing import Any

from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from bondwise.checkpoint.hub import is_hub_model, is_ours
from bondwise.errors import SelectionError

_QUANTISED = ("torchao", "bitsandbytes", "hqq", "quanto", "optimum", "compressed_tensors")
_TUNER = "peft.tuners.tuners_utils"


def check_whole(model: nn.Module) -> None:
    """Refuse what could be written in part only.

    Raises:
        SelectionError: adapters in a Hugging Face model, or what `check_here` refuses; with the way
            out.

    >>> check_whole(nn.Linear(2, 2, device="meta"))
    Traceback (most recent call last):
    ...
    bondwise.errors.SelectionError: 'weight' is on the device meta, ...
    """
    check_here(model)
    check_no_adapter(model)
    method = _method(model)
    if method is not None:
        raise SelectionError(
            f"{type(model).__name__} came quantised ({method}), and says so in its config; load it "
            "dequantised, or where its weights are plain numbers `del "
            "model.config.quantization_config`."
        )


def check_no_adapter(model: nn.Module) -> None:
    """Refuse adapters: of such a Hugging Face model `save_pretrained` writes the adapter alone.

    Raises:
        SelectionError: naming the first layer that has one.
    """
    if not any(map(is_hub_model, model.modules())):
        return
    tuned = [path for path, module in model.named_modules() if _is_tuner(module)]
    if tuned or getattr(model, "_hf_peft_config_loaded", False):
        where = f"{tuned[0]!r} has an adapter" if tuned else "an adapter is loaded"
        raise SelectionError(
            f"{type(model).__name__} cannot be taken whole, since {where}; save the adapter apart "
            "(model.save_pretrained(dir)) and give the model without it, or with it merged: "
            "PeftModel.from_pretrained(model, dir).merge_and_unload()."
        )


def check_here(model: nn.Module) -> None:
    """Refuse a model whose numbers are elsewhere, or are not numbers of torch.

    Raises:
        SelectionError: tensors on meta, offloaded by a device map, or quantised by another library.
    """
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if is_lazy(tensor):
            raise SelectionError(
                f"{name!r} has no size yet; run the model once, so that its lazy layers take one."
            )
        if tensor.is_meta:
            raise SelectionError(_away(model, name))
        if _is_quantised(tensor):
            raise SelectionError(
                f"{name!r} is a quantised {type(tensor).__name__}, which is no plain tensor; give "
                "the model before it was quantised, or dequantise it first (model.dequantize())."
            )


def _away(model: nn.Module, name: str) -> str:
    path = name.rpartition(".")[0]
    hooks = [vars(model.get_submodule(path)).get("_hf_hook")] if path else []
    if getattr(model, "hf_device_map", None) or any(hooks):
        return (
            f"{name!r} is offloaded by the device_map (to the disk or to memory) and comes only "
            "while its layer runs; load the model whole, with device_map=None and enough memory."
        )
    return (
        f"{name!r} is on the device meta, which holds no numbers; load the weights first, without "
        "device_map='meta' or init_empty_weights."
    )


def _is_tuner(module: nn.Module) -> bool:
    return any(base.__module__ == _TUNER for base in type(module).__mro__)


def _is_quantised(tensor: Tensor) -> bool:
    """Whether a tensor stands for others: DTensor does too, and is whole all the same."""
    kind = type(tensor)
    if kind in (Tensor, nn.Parameter) or kind.__module__.startswith("torch.distributed"):
        return tensor.is_quantized
    libraries = {base.__module__.partition(".")[0] for base in kind.__mro__}
    return hasattr(kind, "__tensor_flatten__") or not libraries.isdisjoint(_QUANTISED)


def _method(model: Any) -> str | None:
    """The library that quantised a Hugging Face model, if it was not us."""
    if not is_hub_model(model) or is_ours(model.config):
        return None
    values: Any = getattr(model.config, "quantization_config", None)
    if values is None:
        return None
    method = values.get("quant_method") if isinstance(values, dict) else values.quant_method
    return str(getattr(method, "value", method))
