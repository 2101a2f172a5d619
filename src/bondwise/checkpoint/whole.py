"""Whether a model can be written whole: its numbers are here, in its own parameters."""

from typing import Any

from torch import nn

from bondwise.checkpoint.hub import is_hub_model, is_ours
from bondwise.errors import SelectionError
from bondwise.flow.doors import check_whole
from bondwise.layers.hosts.registry import computes_otherwise
from bondwise.layers.module import TensorLayer

_TUNER = "peft.tuners.tuners_utils"


def check_writable(model: nn.Module) -> None:
    """Refuse what could be written in part only.

    Raises:
        SelectionError: adapters in a Hugging Face model, or what `bondwise.flow.doors.check_whole`
            refuses; with the way out.

    >>> check_writable(nn.Sequential(nn.Linear(2, 2, device="meta")))
    Traceback (most recent call last):
    ...
    bondwise.errors.SelectionError: 0.weight of Sequential is on the meta device, ...
    """
    check_no_adapter(model)
    check_whole(model)
    _check_layers(model)
    method = _method(model)
    if method is not None:
        raise SelectionError(
            f"{type(model).__name__} came quantised ({method}), and says so in its config; load it "
            "dequantised, or where its weights are plain numbers `del "
            "model.config.quantization_config`."
        )


def _check_layers(model: nn.Module) -> None:
    """Refuse layers of terms that would not come back as they are."""
    holders: dict[int, tuple[str, nn.Module]] = {}
    for path, module in model.named_modules():
        own = dict(module.named_parameters(recurse=False))
        for name, parameter in own.items():
            other, there = holders.setdefault(id(parameter), (f"{path}.{name}", module))
            if there is not module and (
                isinstance(module, TensorLayer) or isinstance(there, TensorLayer)
            ):
                raise SelectionError(
                    f"{other} and {path}.{name} are one parameter, which a checkpoint of terms "
                    "does not keep so; give each its own: nn.Parameter(p.detach().clone())."
                )
        if not isinstance(module, TensorLayer):
            continue
        held = [name for part in module.parts for name in part.held]
        if computes_otherwise(module):
            raise SelectionError(
                f"{path} is a {type(module).__name__} with a forward of its own, which a "
                "checkpoint does not keep; put one of bondwise's own in its place first."
            )
        if hasattr(module, "parametrizations") or not own.keys() >= set(held):
            lost = next((name for name in held if name not in own), held[0])
            raise SelectionError(
                f"{lost} of {path} is pruned or parametrized; make it a parameter again first: "
                f"torch.nn.utils.prune.remove(layer, {lost!r}), or remove_parametrizations."
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


def _is_tuner(module: nn.Module) -> bool:
    return any(base.__module__ == _TUNER for base in type(module).__mro__)


def _method(model: Any) -> str | None:
    """The library that quantised a Hugging Face model, if it was not us."""
    if not is_hub_model(model) or is_ours(model.config):
        return None
    values: Any = getattr(model.config, "quantization_config", None)
    if values is None:
        return None
    method = values.get("quant_method") if isinstance(values, dict) else values.quant_method
    return str(getattr(method, "value", method))
