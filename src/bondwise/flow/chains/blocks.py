"""A model as a chain of blocks: what enters each, so that one block at a time is worked on."""

from collections.abc import Callable, Iterable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from operator import length_hint
from typing import Any, TypeVar, cast

import torch
from torch import Tensor, nn

from bondwise.errors import DataError
from bondwise.flow.calibrate import Inputs
from bondwise.flow.chains.calls import Call, Copies, called_with, first, is_state, same
from bondwise.flow.data import Batch, evaluating, feed
from bondwise.flow.padding import masks, tokens
from bondwise.flow.watch import watching
from bondwise.progress import Progress

T = TypeVar("T")
OF_PRECISION = ("bfloat16", "dtype", "scalar type", "overflow", "nan or infinity", "not finite")


@dataclass(frozen=True)
class Stream:
    """What enters a block, batch by batch.

    Attributes:
        hidden: the first argument of the block, one tensor per batch; dimension 0 is samples.
        calls: the other arguments of the block.
        masks: per batch which rows of the state are tokens and not padding; None where all are.
        dtype: what a block gets them in; None for the dtype that they are kept in.
        later: the other arguments of each block that follows; empty where they are the same.
        beside: what the block before gave beside the state of batch 0; None for the state alone.
        padding: per batch all of its masks, for layers that see other rows than the state's (cross
            attention); empty where those of the state are all.
    """

    hidden: tuple[Tensor, ...]
    calls: tuple[Call, ...]
    masks: tuple[Tensor | None, ...]
    dtype: torch.dtype | None = None
    later: tuple[tuple[Call, ...], ...] = ()
    beside: tuple[Any, ...] | None = None
    padding: tuple[tuple[Tensor, ...], ...] = ()

    def __len__(self) -> int:
        return len(self.hidden)

    @property
    def bytes(self) -> int:
        """Of the states and of the tensors beside them, as if none were there twice."""
        return _bytes(self.hidden, (call for block in (self.calls, *self.later) for call in block))

    def part(self, which: Iterable[int]) -> "Stream":
        """Some of the batches."""
        chosen = list(which)
        return Stream(
            tuple(self.hidden[k] for k in chosen),
            tuple(self.calls[k] for k in chosen),
            tuple(self.masks[k] for k in chosen),
            self.dtype,
            tuple(tuple(calls[k] for k in chosen) for calls in self.later),
            self.beside if chosen[:1] == [0] else None,
            tuple(self.padding[k] for k in chosen) if self.padding else (),
        )

    def to(self, dtype: torch.dtype) -> "Stream":
        """The same for a block of another dtype, cast batch by batch as it runs."""
        return replace(self, dtype=dtype)

    def after(self, block: nn.Module, inputs: Inputs | None = None) -> "Stream":
        """What enters the next block; ``inputs`` see what enters their layers on the way.

        Where the block cannot run in bfloat16, or gives NaN or infinity in it, it runs in float32.
        """
        if not self.hidden:
            return self
        products = Products.of(self.hidden[0].device, self.hidden[0].dtype)
        return products(
            lambda: self._after(block, inputs),
            usable=lambda found: all(bool(x.isfinite().all()) for x in found.hidden),
            again=None if inputs is None else inputs.forget,
        )

    def _after(self, block: nn.Module, inputs: Inputs | None) -> "Stream":
        hidden: list[Tensor] = []
        beside: tuple[Any, ...] | None = None
        look = nullcontext() if inputs is None else watching(inputs.layers, inputs.see)
        with torch.no_grad(), look as begin:
            for batch, x in enumerate(self.hidden):
                if begin is not None:
                    begin(self.padding[batch] if self.padding else self.masks[batch])
                output = self._output(block, batch)
                hidden.append(first(output).to(x.dtype))
                if batch == 0 and isinstance(output, tuple):
                    beside = cast(tuple[Any, ...], output)[1:]
        calls, *later = self.later or (self.calls,)
        return replace(self, hidden=tuple(hidden), calls=calls, later=tuple(later), beside=beside)

    def run(self, block: nn.Module, batch: int) -> Tensor:
        """The state that the block gives for one batch."""
        return first(self._output(block, batch))

    def _output(self, block: nn.Module, batch: int) -> Any:
        """All that the block gives; it may write into a copy of what enters it."""
        x, rest, named = _cast((self.hidden[batch].clone(), *self.calls[batch]), self.dtype)
        return block(x, *rest, **named)


def chains(
    model: nn.Module,
    targets: Iterable[str],
    runs: Callable[[tuple[str, ...]], bool] = lambda _: True,
) -> list[tuple[str, ...]]:
    """Paths of the blocks of every stack of blocks that holds targets, outermost stacks only.

    A stack is a ``ModuleList`` or ``Sequential`` with two or more members that hold targets. Its
    members may still not run one after another: `capture` finds out.

    Args:
        model: it is only read.
        targets: paths of modules.
        runs: whether the blocks of a stack will do; where they do not, stacks in it are looked at.

    >>> model = nn.Sequential(nn.Linear(4, 4), nn.GELU(), nn.Linear(4, 4))
    >>> chains(model, ["0", "2"])
    [('0', '1', '2')]
    """
    names, found = list(targets), list[tuple[str, ...]]()
    for path, module in model.named_modules():
        if not isinstance(module, nn.ModuleList | nn.Sequential):
            continue
        if any(holds(block, path) for chain in found for block in chain):
            continue
        blocks = tuple(f"{path}.{name}".lstrip(".") for name, _ in module.named_children())
        if sum(any(holds(block, name) for name in names) for block in blocks) > 1 and runs(blocks):
            found.append(blocks)
    return found


def holds(block: str, name: str) -> bool:
    """Whether a path is a block's or lies in it."""
    return name == block or name.startswith(f"{block}.")


def capture(
    model: nn.Module, blocks: Sequence[str], batches: Iterable[Batch], progress: Progress
) -> Stream | None:
    """What enters the first block; None where the blocks do not run one after another.

    They do where each is called once and gets the very tensor that the one before it gave. This is
    checked on the first batch. A block alone is taken as it is first called.

    Raises:
        DataError: there was no batch, or what enters is not finite.
    """
    grown, total = Growing.of(model, blocks), length_hint(batches)
    with torch.no_grad(), evaluating(model):
        for k, batch in enumerate(batches):
            check = k == 0 and len(blocks) > 1
            (found,) = entered(model, [grown.modules], batch, check)
            if found is None:
                return None
            grown.add(batch, found)
            progress("calibrate", k + 1, max(total, k + 1))
    return grown.stream()


Entered = tuple[Tensor, list[Call]]
"""What enters the first of some blocks, and the other arguments of each."""


@dataclass(eq=False)
class Growing:
    """A stream to which batches are added one by one.

    Attributes:
        blocks: paths of the blocks.
        modules: those to look at: all, or the first where all get the same beside their states.
        bytes: of what was kept, as of a stream.
        keeps: whether what comes is kept, and not only looked at.
    """

    blocks: Sequence[str]
    modules: Sequence[nn.Module]
    bytes: int = 0
    keeps: bool = True
    _hidden: list[Tensor] = field(default_factory=list[Tensor])
    _calls: list[list[Call]] = field(default_factory=list[list[Call]])
    _masks: list[Tensor | None] = field(default_factory=list["Tensor | None"])
    _padding: list[tuple[Tensor, ...]] = field(default_factory=list[tuple[Tensor, ...]])

    @classmethod
    def of(cls, model: nn.Module, blocks: Sequence[str]) -> "Growing":
        """That of blocks of a model, without a batch yet."""
        return cls(blocks, [model.get_submodule(name) for name in blocks])

    def add(self, batch: Batch, found: Entered) -> None:
        """What a batch lets enter.

        Raises:
            DataError: it is not finite.
        """
        x, others = found
        if not torch.isfinite(x).all():
            raise DataError(
                f"Inputs of {self.blocks[0]} with NaN or infinity came; clean the data."
            )
        if not self._hidden and all(same(call, others[0]) for call in others):
            self.modules = self.modules[:1]
        if self.keeps:
            self._hidden.append(x)
            self._calls.append(others[: len(self.modules)])
            self._masks.append(tokens(batch, x))
            self._padding.append(masks(batch))
            self.bytes += _bytes([x], self._calls[-1])

    def forget(self) -> None:
        """Keep nothing of what came, and of what comes."""
        self.keeps, self.bytes = False, 0
        for kept in (self._hidden, self._calls, self._masks, self._padding):
            kept.clear()

    def stream(self) -> Stream:
        """What came.

        Raises:
            DataError: there was no batch.
        """
        if not self._hidden:
            raise DataError("The data held no batch; give at least one.")
        own, *later = zip(*self._calls, strict=True)
        hidden, own_masks = tuple(self._hidden), tuple(self._masks)
        return Stream(hidden, own, own_masks, later=tuple(later), padding=tuple(self._padding))


def _bytes(states: Iterable[Tensor], calls: Iterable[Call]) -> int:
    """Of some states and of the tensors beside them, as if none were there twice."""
    beside = [x for args, named in calls for x in (*args, *named.values())]
    every = [x for x in (*states, *beside) if isinstance(x, Tensor)]
    return sum(x.numel() * x.element_size() for x in every)


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


@dataclass
class Products:
    """How products of matrices run: in bfloat16 or as the weights are; sums are in float32.

    What cannot be run in bfloat16, or gives no usable numbers in it, runs again in float32, and so
    does all that follows: whether a machine is built for bfloat16 decides how fast a result comes,
    never whether there is one (DeBERTa fills its masks with the least float32).

    Attributes:
        device: where.
        fast: whether in bfloat16.
        asked: whether that was asked for; then it is kept to, and an error is raised.

    >>> Products(torch.device("cpu"), fast=False)(lambda: torch.eye(2) @ torch.eye(2)).dtype
    torch.float32
    """

    device: torch.device
    fast: bool
    asked: bool = False

    @classmethod
    def of(cls, device: torch.device, dtype: torch.dtype | None = None) -> "Products":
        """In bfloat16 where the machine is built for it, for weights of a dtype."""
        return cls(device, fast_bfloat16(device) and dtype in (None, torch.float32, torch.bfloat16))

    def __call__(
        self,
        run: Callable[[], T],
        usable: Callable[[T], bool] = lambda _: True,
        again: Callable[[], None] | None = None,
    ) -> T:
        """What ``run`` gives; ``again`` is called before it runs a second time."""
        if self.fast:
            try:
                with torch.autocast(self.device.type, torch.bfloat16):
                    found = run()
                if self.asked or usable(found):
                    return found
            except (RuntimeError, TypeError, ValueError) as error:
                if self.asked or not of_precision(error):
                    raise
            self.fast = False
            if again is not None:
                again()
        with torch.autocast(self.device.type, torch.bfloat16, enabled=False):
            return run()


def of_precision(error: Exception) -> bool:
    """Whether an error may come of bfloat16, by its words.

    >>> of_precision(RuntimeError("value cannot be converted to BFloat16 without overflow"))
    True
    """
    return any(word in str(error).lower() for word in OF_PRECISION)


def fast_bfloat16(device: torch.device) -> bool:
    """Whether products of bfloat16 matrices are much faster than of float32 ones there."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported()
    has = torch.cpu
    built = has._is_amx_tile_supported() or has._is_avx512_bf16_supported()  # pyright: ignore[reportPrivateUsage]
    return device.type == "cpu" and bool(built)


class _ReachedError(Exception):
    """Stops a model as soon as the last block to look at is reached."""


class _Watch:
    """What enters some blocks, and whether each gets the very tensor that the one before gave.

    Blocks that hand on a second state of that shape, such as a residual, are not in a row.
    """

    def __init__(
        self, modules: Sequence[nn.Module], stop: bool, keep: Callable[[Call], Call]
    ) -> None:
        self.modules, self.stop, self.keep = modules, stop, keep
        self.hidden: Tensor | None = None
        self.calls: list[Call] = []
        self.in_a_row = True
        self._left: Any = None
        self._more: list[Tensor] = []

    @property
    def ended(self) -> bool:
        """Whether no more has to be seen: the last block is reached, or they are not in a row."""
        return self.stop and (len(self.calls) == len(self.modules) or not self.in_a_row)

    def before(self, module: nn.Module, args: tuple[Any, ...], named: dict[str, Any]) -> None:
        """A block is called."""
        if self.ended:
            return
        at = len(self.calls)
        found = called_with(module, args, named)
        expected = at < len(self.modules) and module is self.modules[at]
        if found is None or not expected:
            self.in_a_row = False
            return
        x, others = found
        if at == 0:
            self.hidden = x.detach().clone()
        elif not self.stop:
            given = [*others[0], *others[1].values()]
            second = any(v is more and v.shape == x.shape for v in given for more in self._more)
            self.in_a_row &= x is self._left and not second
        self.calls.append(self.keep(others))

    def after(self, _module: nn.Module, _args: Any, output: Any) -> None:
        """A block gives its output."""
        self._left = first(output)
        more = cast(Sequence[Any], output)[1:] if isinstance(output, tuple | list) else ()
        self._more = [value for value in more if isinstance(value, Tensor)]
        self.in_a_row &= is_state(self._left)


def _as_it_is(call: Call) -> Call:
    return call


def entered(
    model: nn.Module, chains: Sequence[Sequence[nn.Module]], batch: Batch, check: bool
) -> list[Entered | None]:
    """What enters the first block of each of some chains, and the other arguments of all blocks.

    None for a chain that was not reached. The model stops when all are, or runs to its end to check
    that blocks run in a row. Where it goes on for another chain, arguments are copied, since it may
    write into them.
    """
    keep = Copies() if len(chains) > 1 else _as_it_is
    watches = [_Watch(modules, not check, keep) for modules in chains]

    def look(watch: _Watch) -> Callable[[nn.Module, tuple[Any, ...], dict[str, Any]], None]:
        def before(module: nn.Module, args: tuple[Any, ...], named: dict[str, Any]) -> None:
            watch.before(module, args, named)
            if all(each.ended for each in watches):
                raise _ReachedError

        return before

    handles: list[Any] = []
    for watch in watches:
        handles += [m.register_forward_pre_hook(look(watch), with_kwargs=True)
                    for m in watch.modules]  # fmt: skip
        handles += [m.register_forward_hook(watch.after) for m in watch.modules if check]
    try:
        feed(model, batch)
    except _ReachedError:
        pass
    finally:
        for handle in handles:
            handle.remove()
    return [
        None
        if watch.hidden is None or not watch.in_a_row or len(watch.calls) < len(watch.modules)
        else (watch.hidden, watch.calls)
        for watch in watches
    ]
