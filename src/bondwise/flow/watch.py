"""What enters the layers of a model while it runs: the hook that all who look there build on."""

from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from operator import length_hint
from typing import Any

import torch
from torch import Tensor, nn

from bondwise.errors import DataError
from bondwise.flow.data import Batch, evaluating, feed
from bondwise.flow.padding import masks, matched, refilled, trimmed
from bondwise.layers.hosts.registry import rows_of
from bondwise.progress import Progress, silent

ROOM = 2**30  # bytes of inputs that are there at once
ALIKE = 1e-2  # rounding to bfloat16, several layers deep; other tokens change far more


@dataclass(frozen=True, eq=False)
class Entering:
    """What enters one layer.

    Attributes:
        name: of the layer.
        x: its input, (*any, in).
        mask: (*any), which rows are tokens and not padding; None where all are.
        first: the layer that got this very tensor first; the layer's own name where it is that.
        certain: whether the masks of the batch say which rows are tokens.
    """

    name: str
    x: Tensor
    mask: Tensor | None
    first: str
    certain: bool = True

    @property
    def tokens(self) -> Tensor:
        """The input without padding, (tokens, in)."""
        return (self.x if self.mask is None else self.x[self.mask]).reshape(-1, self.x.shape[-1])

    def check(self) -> None:
        """Refuse what is not finite.

        Raises:
            DataError: with the name of the layer.
        """
        if not bool(self.x.isfinite().all()):
            raise DataError(
                f"Inputs of {self.name} are not finite; give a model and data that are."
            )


See = Callable[[Entering], None]
Begin = Callable[[Any], None]


@contextmanager
def watching(layers: Mapping[str, nn.Module], see: See) -> Generator[Begin]:
    """While it lasts, ``see`` is told what enters each of some layers.

    It gives a function that is to be called before each batch with its masks (`padding.masks`), or
    one mask (samples, length); None where all positions are tokens. They are matched to the layout
    of each input as `bondwise.flow.padding` says.

    >>> with watching({"a": nn.Linear(3, 2)}, lambda entering: print(entering.name)) as begin:
    ...     begin(None)
    """
    own: tuple[Tensor, ...] = ()
    last: tuple[Tensor, str] | None = None

    def begin(given: Any) -> None:
        nonlocal own, last
        one = isinstance(given, Tensor)
        own, last = ((given.bool(),) if one else tuple(given or ())), None

    def hook(name: str) -> Callable[[nn.Module, tuple[Any, ...], dict[str, Any]], None]:
        rows = rows_of(layers[name])

        def look(_module: nn.Module, args: tuple[Any, ...], named: dict[str, Any]) -> None:
            nonlocal last
            x = rows(args, named)
            if last is None or last[0] is not x:
                last = (x, name)
            mask, certain = matched(own, tuple(x.shape))
            see(Entering(name, x, None if mask is None else mask.to(x.device), last[1], certain))

        return look

    handles = [
        m.register_forward_pre_hook(hook(name), with_kwargs=True) for name, m in layers.items()
    ]
    try:
        yield begin
    finally:
        for handle in handles:
            handle.remove()


def watch(
    model: nn.Module,
    layers: Mapping[str, nn.Module],
    batches: Iterable[Batch],
    see: See,
    progress: Progress = silent,
) -> None:
    """Run a model over batches; ``see`` is told what enters each layer.

    Raises:
        DataError: there was no batch, or whatever ``see`` raises.
    """
    core = without_head(model, layers.values())
    total, seen = length_hint(batches), 0
    progress("calibrate", 0, max(total, 1))
    with torch.no_grad(), evaluating(model), watching(layers, see) as begin:
        for batch in batches:
            begin(masks(batch))
            feed(core, batch)
            seen += 1
            progress("calibrate", seen, max(total, seen))
    if not seen:
        raise DataError("The data held no batch; give at least one.")


def unpadded(
    model: nn.Module, layers: Mapping[str, nn.Module], batches: Iterable[Batch]
) -> list[Batch]:
    """The batches; without padding where some layer has its rows in a layout that hides it.

    That is seen by running padded ones, one of each shape, until it is found; from there on all
    are cut (`bondwise.flow.padding.trimmed`).

    >>> model = nn.Sequential(nn.Linear(2, 3))
    >>> len(unpadded(model, {"0": model[0]}, [torch.ones(4, 2)]))
    1
    """
    found, seen, hidden = list[Batch](), set[tuple[int, ...]](), False
    for batch in batches:
        own = masks(batch)
        shape = tuple(size for mask in own for size in mask.shape)
        if own and not hidden and (len(own) > 1 or shape not in seen):
            seen.add(shape)
            hidden = not _certain(model, layers, batch, own)
        found += trimmed(batch) if own and hidden else [batch]
    return found


def _certain(
    model: nn.Module, layers: Mapping[str, nn.Module], batch: Batch, own: tuple[Tensor, ...]
) -> bool:
    """Whether the masks of a batch say of the input of each layer which rows are tokens.

    They do where those rows stay as they are whatever stands in the padding.
    """
    told: dict[str, Tensor | None] = {}

    def see(entering: Entering) -> None:
        x = entering.tokens
        if not x.is_floating_point():  # token ids, of an embedding
            return
        probe = torch.linspace(0, 9, x.shape[-1], device=x.device).cos()  # each row as one number
        told[f"{len(told)} {entering.name}"] = x.float() @ probe if entering.certain else None

    core, runs = without_head(model, layers.values()), list[dict[str, Tensor | None]]()
    with torch.no_grad(), evaluating(model), watching(layers, see) as begin:
        for each in (batch, refilled(batch)):
            told = {}
            begin(own)
            feed(core, each)
            runs.append(told)
            if None in told.values():
                return False
    one, two = runs
    return one.keys() == two.keys() and all(_alike(one[name], two[name]) for name in one)


def _alike(one: Tensor | None, two: Tensor | None) -> bool:
    """Whether rows are the same up to rounding."""
    if one is None or two is None or one.shape != two.shape:
        return False
    return bool((one - two).abs().max() <= ALIKE * one.abs().max()) if one.numel() else True


def collect(
    model: nn.Module, names: Sequence[str], batches: Sequence[Batch], limit: int
) -> dict[str, Tensor]:
    """The first so many inputs of some layers, each (tokens, in), of those that were reached.

    Layers that get the same tensor share one. For many layers see `in_turns`.

    Raises:
        DataError: there was no batch, or an input was not finite.
    """
    kept: dict[str, list[Tensor]] = {name: [] for name in names}
    seen = dict.fromkeys(names, 0)
    last: tuple[Tensor, Tensor] | None = None

    def see(entering: Entering) -> None:
        nonlocal last
        entering.check()
        room = limit - seen[entering.name]
        if room <= 0:
            return
        if last is None or last[0] is not entering.x:
            last = (entering.x, entering.tokens.detach().clone())
        new = last[1][:room]
        kept[entering.name].append(new)
        seen[entering.name] += len(new)

    layers = {name: model.get_submodule(name) for name in names}
    watch(model, layers, unpadded(model, layers, batches), see)
    return {name: torch.cat(parts) for name, parts in kept.items() if parts}


def in_turns(sizes: Mapping[str, int], limit: int) -> list[list[str]]:
    """Layers in groups whose inputs fit into the `ROOM` together, so many tokens each.

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


def without_head(model: nn.Module, layers: Iterable[nn.Module] = ()) -> nn.Module:
    """The part of a Hugging Face model below its head, where no layer to watch lies in the head."""
    base = getattr(model, "base_model", model)
    if base is model or not isinstance(base, nn.Module):
        return model
    below = set(base.modules())
    return base if all(layer in below for layer in layers) else model
