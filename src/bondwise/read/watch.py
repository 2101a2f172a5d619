"""What enters the layers of a model while it runs: a sample of inputs, and each batch in turn."""

from collections.abc import Callable, Generator, Iterable, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from bondwise.errors import DataError
from bondwise.flow.calibrate import without_head
from bondwise.flow.data import Batch, evaluating, feed, tokens

See = Callable[[str, Tensor, Tensor | None], None]
"""Is told a layer, what enters it, and which positions are tokens (None: all)."""

ROOM = 2**30  # bytes of inputs that are there at once


@contextmanager
def seeing(
    model: nn.Module, names: Iterable[str], see: Callable[[str, Tensor], None]
) -> Generator[None]:
    """For a while ``see(name, x)`` is called with what enters each of some layers."""
    found = {name: model.get_submodule(name) for name in names}

    def hook(name: str) -> Callable[[nn.Module, tuple[Any, ...]], None]:
        return lambda _module, args: see(name, args[0])

    handles = [m.register_forward_pre_hook(hook(name)) for name, m in found.items()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def watch(model: nn.Module, names: Sequence[str], batches: Iterable[Batch], see: See) -> int:
    """Run a model over batches; ``see(name, x, mask)`` gets what enters each layer.

    The mask says which positions are tokens and not padding; None where all are.

    Returns:
        How many batches there were.

    Raises:
        DataError: there was none, or an input was not finite (the layer is named).
    """
    found = {name: model.get_submodule(name) for name in names}
    core = without_head(model, found.values())
    current: list[Batch] = []

    def look(name: str, x: Tensor) -> None:
        if not bool(x.isfinite().all()):
            raise DataError(f"Inputs of {name} are not finite; give a model and data that are.")
        see(name, x, tokens(current[-1], x))

    count = 0
    with torch.no_grad(), evaluating(model), seeing(model, names, look):
        for batch in batches:
            current[:] = [batch]
            feed(core, batch)
            count += 1
    if not count:
        raise DataError("The data held no batch; give at least one.")
    return count


def inputs(
    model: nn.Module, names: Sequence[str], batches: Sequence[Batch], limit: int
) -> dict[str, Tensor]:
    """The first so many inputs of some layers, each (samples, in); in bounded memory only if few.

    Layers that get the same tensor share one.

    Raises:
        DataError: there was no batch, or an input was not finite.
    """
    kept: dict[str, list[Tensor]] = {name: [] for name in names}
    seen = dict.fromkeys(names, 0)
    last: list[Any] = [None, None]

    def see(name: str, x: Tensor, mask: Tensor | None) -> None:
        room = limit - seen[name]
        if room <= 0:
            return
        if last[0] is not x:
            flat = (x if mask is None else x[mask]).reshape(-1, x.shape[-1])
            last[:] = [x, flat.detach().clone()]
        rows = last[1][:room]
        kept[name].append(rows)
        seen[name] += len(rows)

    watch(model, names, batches, see)
    return {name: torch.cat(rows) for name, rows in kept.items() if rows}


def in_turns(sizes: dict[str, int], limit: int) -> list[list[str]]:
    """Layers in groups whose inputs fit into the `ROOM` together, so many samples each.

    >>> in_turns({"a": 4, "b": 4}, 8)
    [['a', 'b']]
    """
    groups, used = [list[str]()], 0
    for name, width in sizes.items():
        need = 4 * width * limit
        if groups[-1] and used + need > ROOM:
            groups.append([])
            used = 0
        groups[-1].append(name)
        used += need
    return groups
