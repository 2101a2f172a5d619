"""The output embedding of a language model: found, checked, and used without its whole logits."""

from collections.abc import Callable, Generator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, cast

import torch
from torch import Tensor, nn

from bondwise.errors import DataError
from bondwise.flow.chains.calls import first
from bondwise.flow.data import evaluating, feed
from bondwise.layers.module import TensorLayer

LOUD = 1000.0  # logits so large that whatever caps or scales them shows


def logits_head(model: nn.Module, ids: Tensor) -> tuple[nn.Module, nn.Module] | None:
    """The module that gives the last hidden state, and the output embedding that it enters.

    None where the model's logits are not plainly ``head(base(ids))``: where they are capped or
    scaled afterwards (Gemma 2, Cohere, Granite), the hidden state is changed before (BERT), or
    there is no output embedding. This is seen once: the head is made to give large numbers, which
    have to be the very logits of the model, and what entered it to be what the base gave.

    Args:
        model: of transformers; not wrapped by DDP or FSDP.
        ids: token ids (samples, length); a few are enough.
    """
    head, base = _part(model, "get_output_embeddings"), getattr(model, "base_model", None)
    if head is None or not isinstance(base, nn.Module) or base is model:
        return None
    entered, left, loud = list[Tensor](), list[Tensor](), list[Tensor]()

    def enter(_module: nn.Module, args: tuple[Any, ...]) -> None:
        entered.append(args[0])

    def leave(_module: nn.Module, _args: Any, output: Any) -> None:
        left.append(_state(output))

    def shout(_module: nn.Module, _args: Any, output: Tensor) -> Tensor:
        loud.append(torch.linspace(-LOUD, LOUD, output.numel()).view(output.shape).to(output))
        return loud[-1]

    with torch.no_grad(), evaluating(model), ExitStack() as hooks:
        hooks.callback(head.register_forward_pre_hook(enter).remove)
        hooks.callback(head.register_forward_hook(shout).remove)
        hooks.callback(base.register_forward_hook(leave).remove)
        given = getattr(feed(model, ids), "logits", None)
    if not isinstance(given, Tensor) or len(entered) != 1 or len(left) != 1:
        return None
    if given.shape != loud[0].shape or not torch.equal(given.float(), loud[0].float()):
        return None
    return (base, head) if torch.equal(entered[0], left[0]) else None


def last_hidden(base: nn.Module, ids: Tensor) -> Tensor:
    """The last hidden state that the base of `logits_head` gives: (samples, length, width)."""
    return _state(feed(base, ids))


def head_weight(head: nn.Module) -> tuple[Tensor, Tensor | None]:
    """The weight (words, width) and the bias of an output embedding, for `vocabulary_loss`.

    That of a network is made whole, and gradients go through it to the cores.
    """
    bias = cast("Tensor | None", getattr(head, "bias", None))
    if isinstance(head, TensorLayer):
        return head.dense(), bias
    return cast(Tensor, head.weight), bias


@contextmanager
def instead(head: nn.Module, gives: Callable[[Tensor], Tensor]) -> Generator[None]:
    """For a while a call of the head gives something else: the loss, inside the model's own call.

    The model then gives it as its logits. So a student that is wrapped by DDP or FSDP is called as
    the wrapper wants, and the head's weight is whole while it is used.

    >>> model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 9))
    >>> with instead(model[1], lambda hidden: hidden.sum()):
    ...     model(torch.zeros(1, 2)).shape
    torch.Size([])
    """
    head.forward = gives
    try:
        yield
    finally:
        del head.forward


def vocabulary_size(model: nn.Module) -> int | None:
    """How many tokens a model knows; None where it does not say."""
    for name in ("get_output_embeddings", "get_input_embeddings"):
        found = _part(model, name)
        if isinstance(found, TensorLayer):
            return found.shape[0]
        weight = getattr(found, "weight", None)
        if isinstance(weight, Tensor) and weight.ndim == 2:
            return len(weight)
    return None


def check_vocabularies(
    student: nn.Module, teacher: nn.Module, tokenizers: Sequence[Any] | None = None
) -> None:
    """Refuse a teacher that speaks of other tokens than the student.

    Args:
        student: the model that is healed.
        teacher: the model that it is healed towards.
        tokenizers: the student's and the teacher's, where both are there.

    Raises:
        DataError: vocabularies of two sizes, or a token that has another number in the other one.
    """
    ours, theirs = vocabulary_size(student), vocabulary_size(teacher)
    if ours != theirs and ours is not None and theirs is not None:
        raise DataError(
            f"The student has a vocabulary of {ours}, the teacher of {theirs}; "
            "give a teacher with the student's vocabulary."
        )
    if tokenizers is None:
        return
    one, two = (cast("dict[str, int]", tokenizer.get_vocab()) for tokenizer in tokenizers)
    other = sorted(token for token in one.keys() | two.keys() if one.get(token) != two.get(token))
    if other:
        ours, theirs = (vocabulary.get(other[0], "none") for vocabulary in (one, two))
        raise DataError(
            f"{len(other)} tokens differ, such as {other[0]!r}: its number is {ours} in the "
            f"student's tokenizer and {theirs} in the teacher's; give models of one tokenizer."
        )


def _part(model: nn.Module, name: str) -> nn.Module | None:
    """What a method of a transformers model finds; None where it has none."""
    finds = getattr(model, name, None)
    try:
        found = finds() if callable(finds) else None
    except NotImplementedError:
        return None
    return found if isinstance(found, nn.Module) else None


def _state(output: Any) -> Tensor:
    state = getattr(output, "last_hidden_state", None)
    return state if isinstance(state, Tensor) else first(output)
