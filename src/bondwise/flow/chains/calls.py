"""What a block is called with and what it gives: its state, and all else."""

from collections.abc import Iterator, Mapping, Sequence
from inspect import signature
from typing import Any, cast

from torch import Tensor, nn

Call = tuple[tuple[Any, ...], dict[str, Any]]
TOKENS = 3  # axes of tokens: samples, positions, width


def first(output: Any) -> Tensor:
    """The hidden state among what a block gives."""
    return cast(Tensor, output[0] if isinstance(output, tuple | list) else output)


def called_with(
    block: nn.Module, args: tuple[Any, ...], named: Mapping[str, Any]
) -> tuple[Tensor, Call] | None:
    """The hidden state and the other arguments, without a cache of keys.

    None where the state is not the first argument, so that no other can be put in its place.
    """
    named = {k: None if _is_cache(v) else v for k, v in named.items()}
    if "use_cache" in named:
        named["use_cache"] = False
    rest: tuple[Any, ...] = tuple(None if _is_cache(v) else v for v in args)
    if not rest:
        takes = next(iter(signature(block.forward).parameters.values()), None)
        if takes is None or takes.kind is takes.KEYWORD_ONLY or takes.name not in named:
            return None
        rest = (named.pop(takes.name),)
    return (rest[0], (rest[1:], named)) if is_state(rest[0]) else None


def is_state(value: Any) -> bool:
    """Whether a value is a tensor of numbers with a fraction."""
    return isinstance(value, Tensor) and value.is_floating_point()


def is_image(module: nn.Module, state: Tensor) -> bool:
    """Whether a state that a module gives has channels in axis 1, and positions behind them.

    Tokens have their numbers in the last axis. A state is an image where a convolution in the
    module gives one of as many axes; of three axes, which tokens have too, only where it has as
    many channels as that convolution gives and the last axis has not.

    >>> import torch
    >>> is_image(nn.Conv1d(2, 6, 3), torch.zeros(5, 6, 9))
    True
    >>> is_image(nn.Sequential(nn.Conv2d(2, 6, 4), nn.Flatten(2)), torch.zeros(5, 6, 9))
    False
    """
    found = {
        channels
        for m in module.modules()
        if isinstance(kernel := getattr(m, "kernel_size", None), tuple)
        and len(cast(tuple[int, ...], kernel)) == state.ndim - 2
        and isinstance(channels := getattr(m, "out_channels", None), int)
    }
    if state.ndim == TOKENS:
        return state.shape[1] in found and state.shape[2] not in found
    return bool(found)


def gives_state(output: Any) -> bool:
    """Whether what a block gives is a state, or one and more beside it."""
    if isinstance(output, tuple | list):
        output = output[0] if output else None
    return is_state(output)


def _is_cache(value: Any) -> bool:
    """Whether an argument is a cache of keys and values, which every call would add to."""
    return hasattr(value, "get_seq_length")


class Copies:
    """Copies of values: of their tensors, wherever they are in tuples, lists and mappings.

    What comes again, and was not written into since, is copied once.

    >>> import torch
    >>> x, copied = torch.zeros(2), Copies()
    >>> one, two = copied((x, {"mask": x}))
    >>> one is x, one is two["mask"]
    (False, True)
    """

    def __init__(self) -> None:
        self._known: dict[tuple[int, int], tuple[Tensor, Tensor]] = {}

    def __call__(self, value: Any) -> Any:
        """A copy of a value."""
        if isinstance(value, Tensor):
            key = (id(value), written(value))
            if key not in self._known:
                self._known[key] = (value, value.detach().clone())  # kept, or ids come again
            return self._known[key][1]
        if type(value) in (tuple, list):
            return type(value)(self(item) for item in cast(Sequence[Any], value))
        if type(value) is dict:
            return {k: self(v) for k, v in cast(dict[str, Any], value).items()}
        return value


def tensors(value: Any) -> Iterator[Tensor]:
    """The tensors in a value, wherever they are in tuples, lists and mappings."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        yield from tensors(list(cast(Mapping[Any, Any], value).values()))
    elif isinstance(value, tuple | list):
        for item in cast(Sequence[Any], value):
            yield from tensors(item)


def written(value: Tensor) -> int:
    """How often a tensor was written into; never, for all that is known, in inference mode."""
    return 0 if value.is_inference() else value._version


def same(one: Any, two: Any) -> bool:
    """Whether arguments are the same objects, or equal where they are plain values."""
    if isinstance(one, Tensor) or isinstance(two, Tensor):
        return one is two
    if isinstance(one, Mapping) and isinstance(two, Mapping):
        keys: set[Any] = set(cast(Mapping[Any, Any], one)) | set(cast(Mapping[Any, Any], two))
        return all(same(one.get(k), two.get(k)) for k in keys)  # pyright: ignore[reportUnknownMemberType]
    if isinstance(one, tuple | list) and isinstance(two, tuple | list):
        pair = cast(tuple[Sequence[Any], Sequence[Any]], (one, two))
        return len(pair[0]) == len(pair[1]) and all(map(same, *pair))
    return one is two or (type(one) is type(two) and one == two)
