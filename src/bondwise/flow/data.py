"""Batches: what they hold, whether a model can run them, and what it gives for one."""

from collections.abc import Generator, Iterable, Mapping
from contextlib import contextmanager
from inspect import signature
from typing import Any

import torch
from torch import Tensor, nn

from bondwise.errors import BondwiseError, DataError

Batch = Mapping[str, Any] | Tensor
SAMPLES = 8  # rows of a tensor, or windows of text, that the model sees at once
IGNORED = -100  # a label that no loss counts


def is_vectors(batch: Batch) -> bool:
    """Whether each sample is one vector, and not a sequence of tokens."""
    return isinstance(batch, Tensor) and batch.ndim == 2 and batch.is_floating_point()


def samples(batch: Batch) -> int:
    """How many samples a batch has; 1 where its tensors do not agree."""
    sizes = {len(t) if t.ndim else 1 for t in _tensors(batch)}
    return sizes.pop() if len(sizes) == 1 else 1


def part(batch: Batch, start: int, stop: int) -> Batch:
    """Some samples of a batch."""
    if isinstance(batch, Tensor):
        return batch[start:stop]
    rows = {n: v for n, v in batch.items() if isinstance(v, Tensor) and v.ndim}
    return {**batch} | {n: v[start:stop] for n, v in rows.items()}


def one_sample(batch: Batch) -> Batch:
    """The first sample of a batch; the batch itself where it is one."""
    return part(batch, 0, 1) if samples(batch) > 1 else batch


def fitted_on(count: int, held_out: Iterable[int]) -> list[int]:
    """Which of so many batches are fitted on: those that are not held out.

    >>> fitted_on(4, [2])
    [0, 1, 3]
    """
    return sorted(set(range(count)) - set(held_out))


def _tensors(batch: Batch) -> list[Tensor]:
    given = [batch] if isinstance(batch, Tensor) else batch.values()
    return [value for value in given if isinstance(value, Tensor)]


@contextmanager
def evaluating(model: nn.Module) -> Generator[None]:
    """The model as it is used, without dropout, for a while; every module then is as it was."""
    training = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, was in training.items():
            module.training = was


def checked(model: nn.Module, batches: Iterable[Batch]) -> list[Batch]:
    """The batches, if the model can run them: one sample of each kind is tried, the longest.

    A model with an encoder and a decoder gets ``decoder_attention_mask`` from labels that are -100
    in padding, where it takes one and none came.

    Raises:
        DataError: another width, dtype or number of axes than the model takes, tokens or positions
            that it lacks.

    >>> checked(nn.Sequential(nn.Linear(3, 2)), [torch.zeros(5, 4)])
    Traceback (most recent call last):
    bondwise.errors.DataError: Sequential cannot run on the data, float32 (5, 4): layer 0 takes 3
    numbers, and float32 (1, 4) came (mat1 and mat2 shapes cannot be multiplied (1x4 and 3x2));
    give what the model takes.
    """
    found = [_with_decoder_mask(model, batch) for batch in batches]
    longest: dict[Any, Batch] = {}
    for batch in found:
        _check_tokens(model, batch)
        kind = _kind(batch)
        if kind not in longest or _length(batch) > _length(longest[kind]):
            longest[kind] = batch
    with torch.no_grad(), evaluating(model):
        for batch in longest.values():
            _try(model, batch)
    return found


def _try(model: nn.Module, batch: Batch) -> None:
    """Run one sample, and say of an error which layer got what."""
    entered = list[tuple[str, nn.Module, Any]]()

    def enter(name: str) -> Any:
        def look(module: nn.Module, args: tuple[Any, ...]) -> None:
            entered.append((name, module, args[0] if args else None))

        return look

    leaves = [(n, m) for n, m in model.named_modules() if not any(m.children())]
    handles = [m.register_forward_pre_hook(enter(name)) for name, m in leaves]
    try:
        feed(model, one_sample(batch))
    except (BondwiseError, torch.OutOfMemoryError):
        raise
    except (RuntimeError, TypeError, ValueError, KeyError, AttributeError) as error:
        name, module, given = entered[-1] if entered else ("", model, None)
        width = getattr(module, "in_features", None)
        wrong = isinstance(width, int) and isinstance(given, Tensor)
        layer = name or type(module).__name__
        where = f": layer {layer} takes {width} numbers, and {_said(given)} came" if wrong else ""
        reason = str(error).strip().split("\n")[0].rstrip(".")[:200]
        whole = isinstance(batch, Tensor) and not batch.is_floating_point()
        floats = "data.float(), if it takes numbers and not tokens"
        raise DataError(
            f"{type(model).__name__} cannot run on the data, {_said(batch)}{where} ({reason}); "
            f"give {floats if whole else 'what the model takes'}."
        ) from error
    finally:
        for handle in handles:
            handle.remove()


def _said(value: Any) -> str:
    """Dtype and shape of what came, by name where it has names."""
    if isinstance(value, Tensor):
        return f"{str(value.dtype).removeprefix('torch.')} {tuple(value.shape)}"
    if isinstance(value, Mapping):
        own: Mapping[str, Any] = value
        return ", ".join(f"{name} {_said(each)}" for name, each in own.items())
    return type(value).__name__


def _check_tokens(model: nn.Module, batch: Batch) -> None:
    """Refuse token ids that are none, where the model says how many it knows."""
    ids = batch if isinstance(batch, Tensor) else batch.get("input_ids")
    finds = getattr(model, "get_input_embeddings", None)
    if not isinstance(ids, Tensor) or finds is None or not ids.numel():
        return
    if getattr(model, "main_input_name", "input_ids") != "input_ids":
        return
    if ids.is_floating_point():
        raise DataError(
            f"{_said(ids)} came where {type(model).__name__} takes token ids; give whole numbers, "
            "as data.long() or what its tokenizer gives."
        )
    known, most, least = _vocabulary(finds), int(ids.max()), int(ids.min())
    if known is not None and not 0 <= least <= most < known:
        odd = least if least < 0 else most
        raise DataError(
            f"Token {odd} came for a {type(model).__name__} of {known} tokens: the data has tokens "
            "or positions that the model lacks; use the model's own tokenizer."
        )


def _vocabulary(finds: Any) -> int | None:
    try:
        known = getattr(finds(), "num_embeddings", None)
    except NotImplementedError:
        return None
    return known if isinstance(known, int) else None


def _with_decoder_mask(model: nn.Module, batch: Batch) -> Batch:
    """The batch with the mask of its labels, where a decoder is shown them."""
    name = "decoder_attention_mask"
    of_two = getattr(getattr(model, "config", None), "is_encoder_decoder", False)
    if not of_two or isinstance(batch, Tensor) or name in batch or "decoder_input_ids" in batch:
        return batch
    labels = batch.get("labels")
    takes = name in signature(model.forward).parameters
    if not takes or not isinstance(labels, Tensor) or labels.ndim != 2:
        return batch
    return {**batch, name: labels.ne(IGNORED).long()}


def _kind(batch: Batch) -> Any:
    """Batches of one kind can be run or cannot, but for their length."""
    if isinstance(batch, Tensor):
        width = batch.shape[2 if batch.ndim > 3 else -1 :] if batch.is_floating_point() else None
        return batch.dtype, batch.ndim, width
    return tuple((name, _kind(v)) for name, v in batch.items() if isinstance(v, Tensor))


def _length(batch: Batch) -> int:
    return max((t.shape[1] for t in _tensors(batch) if t.ndim > 1), default=0)


def feed(model: nn.Module, batch: Batch) -> Any:
    """What a model gives for one batch, on the device and in the dtype of its parameters.

    Raises:
        DataError: tokens or positions that the model lacks.
    """
    try:
        return _run(model, batch)
    except IndexError as error:
        raise DataError(
            f"{type(model).__name__} cannot read the data ({error}): it has tokens or positions "
            "that the model lacks; use the model's own tokenizer, or shorter windows."
        ) from error


def _run(model: nn.Module, batch: Batch) -> Any:
    kinds = {p.dtype for p in model.parameters() if p.is_floating_point()}
    device, kind = next(model.parameters()).device, kinds.pop() if len(kinds) == 1 else None
    if isinstance(batch, Tensor):
        return model(_placed(batch, device, kind))
    takes = signature(model.forward).parameters
    anything = any(p.kind is p.VAR_KEYWORD for p in takes.values())
    known = {name: value for name, value in batch.items() if anything or name in takes}
    placed = {n: _placed(v, device, kind) for n, v in known.items()}
    if not placed and batch:  # a plain module, whose argument has another name
        return model(_placed(next(iter(batch.values())), device, kind))
    return model(**placed)


def _placed(value: Any, device: torch.device, kind: torch.dtype | None) -> Any:
    """A tensor where a model is, one with fractions in the dtype that all of the model has."""
    if not isinstance(value, Tensor):
        return value
    return value.to(device, kind if value.is_floating_point() else None)
