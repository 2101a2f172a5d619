"""What a model takes whatever the machine: multiplications of its linear layers, resident bytes."""

from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from bondwise.bench.run import Meter
from bondwise.layers.linear import TensorLinear
from bondwise.layers.module import TensorLayer


def macs(layer: Any, rows: int) -> int:
    """Multiplications of a linear layer (also GPT-2's ``Conv1D``) for so many rows of input.

    >>> macs(nn.Linear(4, 6), rows=10)
    240
    """
    if not isinstance(layer, TensorLinear):
        return rows * layer.weight.numel()
    return layer.macs(rows)


@contextmanager
def multiplications(model: nn.Module) -> Generator[Meter]:
    """A meter of the multiplications that the linear layers of a model make meanwhile.

    Attention's own products and fused experts are not linear layers, and not counted.

    >>> layer = nn.Linear(4, 6)
    >>> with multiplications(layer) as made:
    ...     _ = layer(layer.weight.new_zeros(3, 4))
    >>> made()
    72.0
    """
    total = 0

    def count(layer: nn.Module, _: Any, out: Tensor) -> None:
        nonlocal total
        total += macs(layer, out.numel() // out.shape[-1])

    hooks = [module.register_forward_hook(count) for module in model.modules() if _linear(module)]
    try:
        yield lambda: float(total)
    finally:
        for hook in hooks:
            hook.remove()


def networks(model: nn.Module) -> int:
    """How many layers of a model are tensor networks."""
    return sum(isinstance(module, TensorLayer) for module in model.modules())


def resident_bytes(model: nn.Module) -> int:
    """Bytes that a model holds: parameters, buffers, and what layers keep beside; shared ones once.

    >>> resident_bytes(nn.Linear(4, 6))
    120
    """
    held: dict[int, Tensor] = {}
    beside = 0
    for module in model.modules():
        own = (*module.parameters(recurse=False), *module.buffers(recurse=False))
        held |= {id(tensor): tensor for tensor in own}
        if hasattr(module, "resident_bytes"):
            beside += int(module.resident_bytes()) - sum(map(_bytes, own))  # pyright: ignore[reportCallIssue]
        else:
            kept = (value for value in vars(module).values() if isinstance(value, Tensor))
            held |= {id(tensor): tensor for tensor in kept}
    return beside + sum(map(_bytes, held.values()))


def _bytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()


def _linear(module: nn.Module) -> bool:
    return isinstance(module, nn.Linear | TensorLinear) or type(module).__name__ == "Conv1D"
