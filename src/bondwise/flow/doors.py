"""What comes in, a model above all, looked at once, before anything changes."""

from collections.abc import Iterator
from os import PathLike
from typing import Any

from torch import Tensor, nn

from bondwise.errors import BudgetError, CheckpointError, DataError, SelectionError
from bondwise.layers.module import check_model

_WRAPPERS = {  # by the name of the class: none of them has to be there
    "DataParallel": "give the model inside, its .module",
    "DistributedDataParallel": "give the model inside, its .module",
    "FullyShardedDataParallel": "give the model as it was before FSDP took it",
    "OptimizedModule": "give the model inside, its ._orig_mod, and compile what comes of it",
}


def check_bare(model: object) -> None:
    """Refuse what is no model, and one that is wrapped or sharded; its numbers may be missing.

    Raises:
        SelectionError: with what to give instead.

    >>> check_bare(nn.DataParallel(nn.Sequential(nn.Linear(2, 2))))
    Traceback (most recent call last):
    bondwise.errors.SelectionError: A DataParallel came as the model; give the model inside, ...
    """
    if not _wrapping(model):
        check_model(model)
    assert isinstance(model, nn.Module)
    for name, module in model.named_modules():
        wrapper = _wrapping(module)
        if wrapper:
            place = f" with a {wrapper} at {name}" if name else ""
            raise SelectionError(
                f"A {type(model).__name__} came as the model{place}; {_WRAPPERS[wrapper]}."
            )
    for name, tensor in _stored(model):
        if type(tensor).__name__ in ("UninitializedParameter", "UninitializedBuffer"):
            raise SelectionError(
                f"{name} of {type(model).__name__} has no size yet; run the model once first."
            )
        if type(tensor).__name__ == "DTensor" or hasattr(tensor, "ds_id"):
            raise SelectionError(
                f"{name} of {type(model).__name__} is spread over processes; give the model as it "
                "was before it was sharded."
            )


def check_whole(model: object) -> None:
    """Refuse a model whose numbers are not all here, or only for code of their own.

    Raises:
        SelectionError: naming the tensor, with what to do first; whatever `check_bare` raises.

    >>> check_whole(nn.Sequential(nn.Linear(2, 2, device="meta")))
    Traceback (most recent call last):
    bondwise.errors.SelectionError: 0.weight of Sequential is on the meta device, without ...
    """
    check_bare(model)
    assert isinstance(model, nn.Module)
    for name, module in model.named_modules():
        away = _offloaded(module)
        if away:
            at = f"{name} of {type(model).__name__}" if name else f"This {type(model).__name__}"
            raise SelectionError(
                f"{at} is offloaded by its device_map and comes into memory only while it runs; "
                "load the model without device_map."
            )
    for name, tensor in _stored(model):
        why = _unreadable(tensor)
        if why:
            raise SelectionError(f"{name} of {type(model).__name__} {why}.")


def check_tokenizer(tokenizer: object) -> None:
    """Refuse what makes no tokens; None is none.

    Raises:
        DataError: saying what to give.
    """
    if tokenizer is not None and (isinstance(tokenizer, nn.Module) or not callable(tokenizer)):
        raise DataError(
            f"tokenizer={str(tokenizer)[:40]!r} came; give a tokenizer of transformers, such as "
            "AutoTokenizer.from_pretrained(folder)."
        )


def check_switch(name: str, value: object) -> None:
    """Refuse what is neither True nor False: every word would count as True.

    Raises:
        BudgetError: saying so.
    """
    if not isinstance(value, bool):
        raise BudgetError(f"{name}={value!r} came; write True or False.")


def check_call(name: str, value: object) -> None:
    """Refuse what cannot be called; None is nothing to call.

    Raises:
        BudgetError: saying so.
    """
    if value is not None and not callable(value):
        raise BudgetError(f"{name}={value!r} came; give a function, or leave it out.")


def check_place(name: str, value: object) -> None:
    """Refuse what is no path; None is none.

    Raises:
        CheckpointError: saying so.
    """
    if not isinstance(value, str | PathLike | None):
        raise CheckpointError(f"{name}={value!r} came; write the path of a folder.")


def is_opaque(tensor: Tensor) -> bool:
    """Whether only code of its own knows the numbers of a tensor, as of quantised subclasses."""
    kinds: tuple[Any, ...] = (type(tensor), Tensor, nn.Parameter)
    own, *plain = (kind.__torch_dispatch__ for kind in kinds)
    return own not in plain


def _wrapping(module: object) -> str:
    """The class that a module is wrapped in, if it is one of those."""
    kinds = {k.__name__ for k in type(module).__mro__ if k.__module__.startswith("torch.")}
    return next((name for name in _WRAPPERS if name in kinds), "")


def _stored(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    yield from model.named_parameters()
    yield from model.named_buffers()


def _offloaded(module: nn.Module) -> bool:
    """Whether accelerate keeps what a module has elsewhere, and brings it for each call."""
    hook = vars(module).get("_hf_hook")
    hooks = [hook, *getattr(hook, "hooks", ())]
    return any(getattr(each, "offload", False) for each in hooks)


def _unreadable(tensor: Tensor) -> str:
    """Why the numbers of a tensor cannot be read, and what to do; empty where they can."""
    if is_opaque(tensor):
        kind = type(tensor).__name__
        return (
            f"is a {kind}, whose numbers only its own code reads; load the model without "
            "quantization, and quantise what comes of it"
        )
    if tensor.is_meta:
        return "is on the meta device, without numbers; load its weights first"
    emptied = str(tensor.layout) == "torch.strided" and tensor.untyped_storage().nbytes() == 0
    if tensor.numel() and emptied:
        return "has a shape and no memory; give the model as it was before it was sharded"
    return ""
