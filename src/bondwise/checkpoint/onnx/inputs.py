"""What an exported model takes: inputs by name, which of their axes are free, and examples."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from inspect import Parameter, signature
from typing import Any

import torch
from torch import Tensor, nn

from bondwise.checkpoint.hub import is_hub_model
from bondwise.checkpoint.sources.program import Program
from bondwise.errors import DataError
from bondwise.flow.data import Batch, checked, samples
from bondwise.flow.forms.door import opened
from bondwise.flow.forms.samples import is_samples, read_samples
from bondwise.flow.text import fitting

BATCH, TOKENS = "batch", "sequence"
FOLLOWED = 2, 8  # samples and tokens of a text that torch follows; sizes of 1 would stay fixed
ENDLESS = 2**31  # tokens, where a model has no limit
_TEXT = ("input_ids", "attention_mask", "token_type_ids", "decoder_input_ids")

Values = dict[str, Tensor]
Axes = Mapping[str, Mapping[int, str]]


@dataclass(frozen=True)
class Inputs:
    """The inputs of a model.

    Attributes:
        free: for each input in order the names of its free axes; others keep their size.
        draw: values for so many samples, and sizes of other free axes by name; the same for the
            same sizes. An axis that is not named has its usual size.
        named: whether the model takes them by name; else the only one is its first argument.
        longest: the most tokens of a text model; None for others.
        may: names of axes that stay fixed where the model's code fixes them.
    """

    free: Axes
    draw: Callable[[int, Mapping[str, int]], Values]
    named: bool = True
    longest: int | None = None
    may: frozenset[str] = frozenset()

    @property
    def has_batch(self) -> bool:
        """Whether the number of samples is free."""
        return any(BATCH in axes.values() for axes in self.free.values())

    def example(self, batch: int, tokens: int | None = None) -> Values:
        """Values for so many samples of so many tokens, or as many as there can be.

        Args:
            batch: samples; a model of a fixed number gets that.
            tokens: on each free axis of tokens; None for the usual number.
        """
        if tokens is None:
            return self.draw(batch, {})
        most = min(tokens, self.longest or ENDLESS)
        names = {name for axes in self.free.values() for name in axes.values()} - {BATCH}
        return self.draw(batch, dict.fromkeys(names, most))

    def settled(self, sizes: Sequence[Sequence[int | str]]) -> "Inputs":
        """Without the free axes that have a size in a graph."""
        free = {
            name: {axis: own for axis, own in axes.items() if isinstance(size[axis], str)}
            for (name, axes), size in zip(self.free.items(), sizes, strict=True)
        }
        return replace(self, free=free)


def inputs_of(
    model: nn.Module, tokenizer: Any = None, data: str | None = None, *, source: str, seed: int = 0
) -> Inputs:
    """What a model takes.

    A text model of Hugging Face takes token ids, their mask, and types where its tokenizer gives
    them; samples and tokens are free. Any other model takes what its samples are, and an exported
    program what it was exported for; the number of samples is free, and that of tokens.

    Args:
        model: in evaluation mode.
        tokenizer: its own, or None.
        data: a file of samples; None where the model says what it takes.
        source: what an error calls the model.
        seed: of values that are drawn.

    Raises:
        DataError: it does not say what it takes, or cannot run the samples.

    >>> inputs_of(nn.Linear(3, 2), source="nets:linear")
    Traceback (most recent call last):
    bondwise.errors.DataError: nets:linear does not say what it takes; add samples of it, as
    --data samples.pt.
    """
    if data is not None:
        return _of_samples(model, data)
    if isinstance(model, Program):
        kind = _dtype(model)
        return _of_program(model, lambda batch, _: _cast(_drawn(model, batch, seed), kind))
    if is_hub_model(model) and getattr(model, "main_input_name", None) == _TEXT[0]:
        return _of_text(model, tokenizer, seed)
    raise DataError(
        f"{source} does not say what it takes; add samples of it, as --data samples.pt."
    )


def _of_text(model: Any, tokenizer: Any, seed: int) -> Inputs:
    names = [name for name in _TEXT if _wants(model, tokenizer, name)]
    free = {name: {0: BATCH, 1: _tokens_of(name)} for name in names}
    entries = model.get_input_embeddings().num_embeddings

    def draw(batch: int, sizes: Mapping[str, int]) -> Values:
        drawn = torch.Generator().manual_seed(seed)
        counts = {name: sizes.get(free[name][1], FOLLOWED[1]) for name in names}
        return {name: _tokens(name, (batch, counts[name]), entries, drawn) for name in names}

    found = Inputs(free, draw, longest=fitting(model, ENDLESS))
    checked(model, [found.example(*FOLLOWED)])
    return found


def _tokens_of(name: str) -> str:
    """The name of its axis of tokens."""
    return f"decoder_{TOKENS}" if name.startswith("decoder") else TOKENS


def _wants(model: Any, tokenizer: Any, name: str) -> bool:
    if name not in signature(model.forward).parameters:
        return name == _TEXT[0]
    if name.startswith("decoder"):
        return bool(model.config.is_encoder_decoder)
    if name != "token_type_ids":
        return True
    types = getattr(model.config, "type_vocab_size", None) or 0
    given = getattr(tokenizer, "model_input_names", None)
    return types > 1 if given is None else types > 0 and name in given


def _tokens(name: str, size: tuple[int, int], entries: int, draw: torch.Generator) -> Tensor:
    """Ids at random; masks with padding at the end of the last of several texts; types of one."""
    if name.endswith("input_ids"):
        return torch.randint(entries, size, generator=draw)
    if not name.endswith("mask"):
        return torch.zeros(size, dtype=torch.long)
    mask = torch.ones(size, dtype=torch.long)
    if size[0] > 1:
        mask[-1, max(1, 2 * size[1] // 3) :] = 0
    return mask


def _of_program(model: Program, draw: Callable[[int, Mapping[str, int]], Values]) -> Inputs:
    sizes = {name: model.sizes[name] for name in draw(FOLLOWED[0], {})}
    free = {
        name: {
            axis: f"{name}_{axis}" if axis else BATCH
            for axis, size in enumerate(own)
            if size is None
        }
        for name, own in sizes.items()
    }
    return Inputs(free, draw)


def _drawn(model: Program, batch: int, seed: int) -> Values:
    return model.example(1 if model.batch == 1 else batch, seed)


def _dtype(model: nn.Module) -> torch.dtype | None:
    """That of all numbers of a model; None where they are of several."""
    kinds = {p.dtype for p in model.parameters() if p.is_floating_point()}
    return kinds.pop() if len(kinds) == 1 else None


def _cast(values: Values, kind: torch.dtype | None) -> Values:
    """Values as a model takes them: numbers with a point in the dtype that all of it has."""
    return {n: own.to(kind) if own.is_floating_point() else own for n, own in values.items()}


def _of_samples(model: nn.Module, data: str) -> Inputs:
    if not is_samples(data):
        raise DataError(
            f"{data} came as samples; write a file of tensors (.pt, .safetensors, .npy). A text "
            "model of Hugging Face needs none."
        )
    found = opened(read_samples(data))
    assert isinstance(found, list)
    batch = _joined(found)
    checked(model, [batch])
    given, named = _by_name(model, batch)
    given = _cast(given, _dtype(model))
    tokens = _token_axes(given)
    count = samples(given)
    draw = partial(_picked, given, tokens, count)
    if isinstance(model, Program):
        return _of_program(model, draw)
    free = {name: {0: BATCH} if len(own) == count else {} for name, own in given.items()}
    axes = {name: own | ({1: tokens[name]} if name in tokens else {}) for name, own in free.items()}
    return Inputs(axes, draw, named, may=frozenset(tokens.values()))


def _joined(batches: Sequence[Batch]) -> Batch:
    """All samples in one batch; the first of batches that do not fit together."""
    first = batches[0]
    try:
        if isinstance(first, Tensor):
            return torch.cat([own for own in batches if isinstance(own, Tensor)])
        tables = [own for own in batches if not isinstance(own, Tensor)]
        return {name: torch.cat([own[name] for own in tables]) for name in first}
    except (RuntimeError, KeyError, TypeError):
        return first


def _by_name(model: nn.Module, batch: Batch) -> tuple[Values, bool]:
    """The tensors by name, and whether the model knows the names."""
    takes = signature(model.forward).parameters
    if isinstance(model, Program):
        names = list(model.sizes)
        values = [batch] if isinstance(batch, Tensor) else [batch[name] for name in names]
        return dict(zip(names, values, strict=False)), True
    if isinstance(batch, Tensor):
        return {next(iter(takes), "input"): batch}, False
    tensors = {name: own for name, own in batch.items() if isinstance(own, Tensor)}
    anything = any(own.kind is Parameter.VAR_KEYWORD for own in takes.values())
    known = {name: own for name, own in tensors.items() if anything or name in takes}
    return (known, True) if known else (dict([next(iter(tensors.items()))]), False)


def _token_axes(given: Values) -> dict[str, str]:
    """The inputs that are token ids or go with them: whole numbers, so many samples of so many.

    Axes of one name are of one size to a runtime, so those of another size have another name.
    """
    found, names = dict[str, str](), dict[int, str]()
    for name, own in given.items():
        if own.ndim == 2 and not own.is_floating_point():
            found[name] = names.setdefault(own.shape[1], f"{name}_{TOKENS}" if names else TOKENS)
    return found


def _picked(
    given: Values, tokens: Mapping[str, str], count: int, batch: int, sizes: Mapping[str, int]
) -> Values:
    """So many of the samples, from the first again where there are fewer; no more tokens."""
    found = Values()
    for name, own in given.items():
        if len(own) == count:
            own = own[torch.arange(batch) % count]
        if tokens.get(name) in sizes:
            own = own[:, : sizes[tokens[name]]]
        found[name] = own
    return found
