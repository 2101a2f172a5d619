"""Where the first number arose that is not finite."""

from collections.abc import Callable, Iterator
from typing import Any, cast

import torch
from torch import Tensor, nn


def first_nonfinite(model: nn.Module, run: Callable[[], object], *, gradients: bool = True) -> str:
    """The layer that first gave NaN or infinity when a loss is made once more; empty for none.

    Where every layer's output is finite, it is the last parameter whose gradient is not: the
    nearest to the loss.

    Args:
        model: its modules are watched.
        run: makes the loss.
        gradients: look at the gradients of the run before.

    >>> model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    >>> _ = nn.init.constant_(model[1].bias, float("nan"))
    >>> first_nonfinite(model, lambda: model(torch.zeros(1, 2)).sum())
    '1 (its bias is not finite)'
    """
    found: list[str] = []
    names = {module: name for name, module in model.named_modules()}

    def see(module: nn.Module, _args: Any, output: Any) -> None:
        if not found and not all(_finite(t) for t in _tensors(output)):
            found.append(names[module] or type(module).__name__)

    handles = [module.register_forward_hook(see) for module in names]
    try:
        with torch.no_grad():
            run()
    finally:
        for handle in handles:
            handle.remove()
    if found:
        return found[0] + _why(model, found[0])
    bad = [name for name, p in model.named_parameters() if gradients and not _finite(p.grad)]
    return f"the gradient of {bad[-1]}" if bad else ""


def _why(model: nn.Module, name: str) -> str:
    """Which of its parameters is to blame, if one is."""
    module = dict(model.named_modules()).get(name)
    own = module.named_parameters(recurse=False) if module is not None else ()
    bad = next((at for at, p in own if not _finite(p)), None)
    return f" (its {bad} is not finite)" if bad else ""


def _finite(value: Tensor | None) -> bool:
    return value is None or bool(torch.isfinite(value).all())


def _tensors(output: Any) -> Iterator[Tensor]:
    """The tensors with a fraction in what a module gives."""
    if isinstance(output, Tensor):
        if output.is_floating_point():
            yield output
    elif isinstance(output, dict):
        for value in cast(dict[str, Any], output).values():
            yield from _tensors(value)
    elif isinstance(output, tuple | list):
        for value in cast(tuple[Any, ...], output):
            yield from _tensors(value)
