"""A model as a chain of blocks: what enters each, so that one block at a time is worked on."""

from collections.abc import Generator, Iterable, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from operator import length_hint
from typing import Any, cast

import torch
from torch import Tensor, nn

from bondwise.errors import DataError
from bondwise.model.calibrate import Inputs, Progress
from bondwise.model.data import Batch, evaluating, feed, tokens

Call = tuple[tuple[Any, ...], dict[str, Any]]


@dataclass(frozen=True)
class Stream:
    """What enters a block, batch by batch.

    Attributes:
        hidden: the first argument of the block, one tensor per batch; dimension 0 is samples.
        calls: the other arguments, the same for every block of the chain.
        masks: per batch which positions are tokens and not padding; None where all are.
        dtype: what a block gets them in; None for the dtype that they are kept in.
    """

    hidden: tuple[Tensor, ...]
    calls: tuple[Call, ...]
    masks: tuple[Tensor | None, ...]
    dtype: torch.dtype | None = None

    def __len__(self) -> int:
        return len(self.hidden)

    def part(self, which: Iterable[int]) -> "Stream":
        """Some of the batches."""
        chosen = list(which)
        return Stream(
            tuple(self.hidden[k] for k in chosen),
            tuple(self.calls[k] for k in chosen),
            tuple(self.masks[k] for k in chosen),
            self.dtype,
        )

    def to(self, dtype: torch.dtype) -> "Stream":
        """The same for a block of another dtype, cast batch by batch as it runs."""
        return replace(self, dtype=dtype)

    def after(self, block: nn.Module, inputs: Inputs | None = None) -> "Stream":
        """What enters the next block; ``inputs`` see what enters their layers on the way."""
        if not self.hidden:
            return self
        hidden: list[Tensor] = []
        watching = nullcontext() if inputs is None else inputs.watching()
        with torch.no_grad(), watching, precision(self.hidden[0].device, self.hidden[0].dtype):
            for batch, x in enumerate(self.hidden):
                if inputs is not None:
                    inputs.begin(self.masks[batch])
                hidden.append(self.run(block, batch).to(x.dtype))
        return replace(self, hidden=tuple(hidden))

    def run(self, block: nn.Module, batch: int) -> Tensor:
        """The block's output for one batch."""
        x, rest, named = _cast((self.hidden[batch], *self.calls[batch]), self.dtype)
        return first(block(x, *rest, **named))


def chains(model: nn.Module, targets: Iterable[str]) -> list[tuple[str, ...]]:
    """Paths of the blocks of every stack of blocks that holds targets, outermost stacks only.

    A stack is a ``ModuleList`` or ``Sequential`` with two or more members that hold targets. Its
    members may still not run one after another: `capture` finds out.

    >>> model = nn.Sequential(nn.Linear(4, 4), nn.GELU(), nn.Linear(4, 4))
    >>> chains(model, ["0", "2"])
    [('0', '1', '2')]
    """
    names, found = list(targets), list[tuple[str, ...]]()
    for path, module in model.named_modules():
        if not isinstance(module, nn.ModuleList | nn.Sequential):
            continue
        if any(path.startswith(f"{block}.") for chain in found for block in chain):
            continue
        blocks = tuple(f"{path}.{name}".lstrip(".") for name, _ in module.named_children())
        if sum(any(holds(block, name) for name in names) for block in blocks) > 1:
            found.append(blocks)
    return found


def holds(block: str, name: str) -> bool:
    """Whether a path is a block's or lies in it."""
    return name == block or name.startswith(f"{block}.")


def capture(
    model: nn.Module, blocks: Sequence[str], batches: Iterable[Batch], progress: Progress
) -> Stream | None:
    """What enters the first block; None where the blocks do not run one after another.

    They do where each is called once, gets the very tensor that the one before it gave, and the
    same other arguments as the first. This is checked on the first batch.

    Raises:
        DataError: there was no batch, or what enters is not finite.
    """
    modules = [model.get_submodule(name) for name in blocks]
    hidden: list[Tensor] = []
    calls: list[Call] = []
    masks: list[Tensor | None] = []
    total = length_hint(batches)
    with torch.no_grad(), evaluating(model):
        for k, batch in enumerate(batches):
            if k == 0 and not _in_a_row(model, modules, batch):
                return None
            x, *rest, named = _entering(model, modules[0], batch)
            if not torch.isfinite(x).all():
                raise DataError(f"Inputs of {blocks[0]} with NaN or infinity came; clean the data.")
            hidden.append(x.detach().clone())
            calls.append((tuple(rest), named))
            masks.append(tokens(batch, x))
            progress("calibrate", k + 1, max(total, k + 1))
    if not hidden:
        raise DataError("The data held no batch; give at least one.")
    return Stream(tuple(hidden), tuple(calls), tuple(masks))


def _cast(value: Any, dtype: torch.dtype | None) -> Any:
    """Floating-point tensors in another dtype, wherever they are in tuples and mappings."""
    if dtype is None:
        return value
    if isinstance(value, Tensor):
        return value.to(dtype) if value.is_floating_point() else value
    if isinstance(value, tuple | list):
        return tuple(_cast(item, dtype) for item in cast(Sequence[Any], value))
    if isinstance(value, dict):
        return {k: _cast(v, dtype) for k, v in cast(dict[str, Any], value).items()}
    return value


def first(output: Any) -> Tensor:
    """The hidden state among what a block gives."""
    return cast(Tensor, output[0] if isinstance(output, tuple | list) else output)


@contextmanager
def precision(device: torch.device, dtype: torch.dtype | None = None) -> Generator[None]:
    """Products of matrices in bfloat16 where the machine is built for it, sums in float32."""
    fast = fast_bfloat16(device) and dtype in (None, torch.float32, torch.bfloat16)
    with torch.autocast(device.type, torch.bfloat16, enabled=fast):
        yield


def fast_bfloat16(device: torch.device) -> bool:
    """Whether products of bfloat16 matrices are much faster than of float32 ones there."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported()
    has = torch.cpu
    built = has._is_amx_tile_supported() or has._is_avx512_bf16_supported()  # pyright: ignore[reportPrivateUsage]
    return device.type == "cpu" and bool(built)


class _EnteredError(Exception):
    """Stops a model as soon as its first block is reached."""


def _entering(model: nn.Module, block: nn.Module, batch: Batch) -> Any:
    seen: list[Any] = []

    def stop(_module: nn.Module, args: tuple[Any, ...], named: dict[str, Any]) -> None:
        seen.extend(_call(args, named))
        raise _EnteredError

    handle = block.register_forward_pre_hook(stop, with_kwargs=True)
    try:
        feed(model, batch)
    except _EnteredError:
        pass
    finally:
        handle.remove()
    return seen


def _call(args: tuple[Any, ...], named: Mapping[str, Any]) -> list[Any]:
    """The hidden state, the other arguments, and those with a name, without a cache of keys."""
    named = {k: None if _is_cache(v) else v for k, v in named.items()}
    if "use_cache" in named:
        named["use_cache"] = False
    if args:
        return [*(None if _is_cache(v) else v for v in args), named]
    return [named.pop("hidden_states"), named]


def _is_cache(value: Any) -> bool:
    """Whether an argument is a cache of keys and values, which every call would add to."""
    return hasattr(value, "get_seq_length")


def _in_a_row(model: nn.Module, modules: Sequence[nn.Module], batch: Batch) -> bool:
    entered: list[tuple[nn.Module, list[Any]]] = []
    left: list[Any] = []

    def before(module: nn.Module, args: tuple[Any, ...], named: dict[str, Any]) -> None:
        entered.append((module, _call(args, named) if args or "hidden_states" in named else []))

    def after(_module: nn.Module, _args: Any, output: Any) -> None:
        left.append(first(output))

    handles = [m.register_forward_pre_hook(before, with_kwargs=True) for m in modules]
    handles += [m.register_forward_hook(after) for m in modules]
    try:
        feed(model, batch)
    finally:
        for handle in handles:
            handle.remove()
    if [module for module, _ in entered] != list(modules) or not all(call for _, call in entered):
        return False
    start = entered[0][1]
    follows = all(call[0] is out for (_, call), out in zip(entered[1:], left, strict=False))
    plain = all(isinstance(out, Tensor) and out.is_floating_point() for out in [start[0], *left])
    return follows and plain and all(_same(call[1:], start[1:]) for _, call in entered)


def _same(one: Any, two: Any) -> bool:
    """Whether arguments are the same objects, or equal where they are plain values."""
    if isinstance(one, Tensor) or isinstance(two, Tensor):
        return one is two
    if isinstance(one, Mapping) and isinstance(two, Mapping):
        keys: set[Any] = set(cast(Mapping[Any, Any], one)) | set(cast(Mapping[Any, Any], two))
        return all(_same(one.get(k), two.get(k)) for k in keys)  # pyright: ignore[reportUnknownMemberType]
    if isinstance(one, tuple | list) and isinstance(two, tuple | list):
        pair = cast(tuple[Sequence[Any], Sequence[Any]], (one, two))
        return len(pair[0]) == len(pair[1]) and all(map(_same, *pair))
    return one is two or (type(one) is type(two) and one == two)
