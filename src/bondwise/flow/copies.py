"""Tensors of a model once more, in memory of their own, tied to one another as they were."""

from collections.abc import Set as AbstractSet
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, nn


def copied(model: nn.Module, memo: dict[int, Any]) -> nn.Module:
    """A `copy.deepcopy`, also where attributes hang on a graph, as those that pruning leaves do.

    Args:
        model: it is only read.
        memo: what takes the place of what, by identity; what is copied is added to it.
    """
    attributes = [value for module in model.modules() for value in vars(module).values()]
    graded = [v for v in attributes if isinstance(v, Tensor) and not v.is_leaf]
    memo.update({id(v): v.detach().clone() for v in graded if id(v) not in memo})
    return deepcopy(model, memo)


def twins(
    model: nn.Module, without: AbstractSet[Tensor] = frozenset(), kind: torch.dtype | None = None
) -> dict[int, Any]:
    """A tensor of its own for each parameter and buffer: what `copied` is given.

    Parameters that show the same numbers have one twin, so that they train as one; a view takes the
    memory of what it shows, not of all that it is a view of. Both are otherwise lost. What is more
    than numbers in memory (quantised, on meta) is left to ``deepcopy``.

    Args:
        model: it is only read.
        without: tensors that need none.
        kind: dtype of the parameters; None for each its own.

    Returns:
        The twins, by identity of the tensor.

    >>> one, two = nn.Linear(2, 2), nn.Linear(2, 2)
    >>> two.weight = nn.Parameter(one.weight.data)
    >>> model = nn.Sequential(one, two)
    >>> copy = copied(model, twins(model))
    >>> copy[0].weight is copy[1].weight, copy[0].weight is one.weight
    (True, False)
    """
    made: dict[Any, Tensor] = {}
    found: dict[int, Any] = {}
    for tensor in (*model.parameters(), *model.buffers()):
        if tensor in without or not is_plain(tensor):
            continue
        is_cast = isinstance(tensor, nn.Parameter) and tensor.is_floating_point()
        key = view(tensor), kind if is_cast else None
        if key not in made:
            made[key] = _own(tensor, kind if is_cast else None)
        role = key, type(tensor), tensor.requires_grad
        if role not in made:
            made[role] = _like(tensor, made[key])
        found[id(tensor)] = made[role]
    return found


def is_plain(tensor: Tensor) -> bool:
    """Whether a tensor is no more than its numbers, in memory."""
    known = type(tensor) in (Tensor, nn.Parameter)
    return known and not tensor.is_meta and not tensor.is_quantized


def view(tensor: Tensor) -> Any:
    """What tensors have in common that show the same numbers."""
    if not is_plain(tensor) or tensor.layout is not torch.strided or not tensor.numel():
        return id(tensor)
    return tensor.device, tensor.data_ptr(), tensor.dtype, tensor.shape, tensor.stride()


def normal(model: nn.Module) -> nn.Module:
    """The model, or where some of it was made under `torch.inference_mode` a copy without that.

    The copy shares all else; autograd can run through it.
    """
    stored = {id(t): t for t in (*model.parameters(), *model.buffers())}
    plain = {at: t for at, t in stored.items() if not t.is_inference()}
    if len(plain) == len(stored):
        return model
    return copied(model, twins(model, set(plain.values())) | plain)


def _own(tensor: Tensor, kind: torch.dtype | None) -> Tensor:
    """The numbers in memory of their own, and no others of that memory; expanded ones stay so."""
    small = tensor.detach()
    if tensor.layout is not torch.strided:
        return small.clone().to(kind or tensor.dtype)
    for dim, stride in enumerate(tensor.stride()):
        if stride == 0 and tensor.shape[dim] > 1:
            small = small.narrow(dim, 0, 1)
    return small.to(kind or tensor.dtype, copy=True).expand(tensor.shape)


def _like(tensor: Tensor, data: Tensor) -> Tensor:
    """The same kind of tensor, with the attributes that others gave it."""
    if isinstance(tensor, nn.Parameter):
        made: Tensor = nn.Parameter(data, tensor.requires_grad)
    else:
        made = data.detach().requires_grad_(tensor.requires_grad)
    vars(made).update(vars(tensor))
    return made
