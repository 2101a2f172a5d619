"""Conversations as tokens, and which of the tokens the assistant said."""

import re
from collections.abc import Mapping, Sequence
from typing import Any, cast

from bondwise.errors import DataError

GENERATION = re.compile(r"\{%-?\s*generation\s*-?%\}")
Message = Mapping[str, Any]


def is_message(value: object) -> bool:
    """Whether a value is one message of a chat.

    >>> is_message({"role": "user", "content": "What is a bond?"})
    True
    """
    return isinstance(value, Mapping) and {"role", "content"} <= value.keys()


def is_chat(value: object) -> bool:
    """Whether a value is the messages of a chat, at least one."""
    if not isinstance(value, Sequence) or isinstance(value, str):
        return False
    messages = cast(Sequence[Any], value)
    return bool(messages) and all(is_message(message) for message in messages)


def rendered(tokenizer: Any, chat: Sequence[Message]) -> tuple[list[int], list[bool]]:
    """The tokens of a chat by the tokenizer's template, and of each whether the assistant said it.

    That is what the template marks with ``{% generation %}``, where it does. Otherwise it is, of
    each turn of the assistant, what stands between the chat before it, opened for an answer, and
    the chat up to its end.

    Raises:
        DataError: no tokenizer, one without a chat template, or a chat that the template refuses.
    """
    if tokenizer is None:
        raise DataError("A chat came without a tokenizer; add tokenizer=.., one with a template.")
    template = getattr(tokenizer, "chat_template", None)
    if not template or not hasattr(tokenizer, "apply_chat_template"):
        raise DataError(
            f"A chat came, but {type(tokenizer).__name__} has no chat template; "
            "set tokenizer.chat_template, or give the chat as text."
        )
    if isinstance(template, str) and GENERATION.search(template):
        found = _marked(tokenizer, chat)
        if found is not None:
            return found
    return _by_prefixes(tokenizer, chat)


def _marked(tokenizer: Any, chat: Sequence[Message]) -> tuple[list[int], list[bool]] | None:
    """By the template's own marks; None where this tokenizer cannot follow them."""
    try:
        found: Any = tokenizer.apply_chat_template(
            list(chat), tokenize=True, return_dict=True, return_assistant_tokens_mask=True
        )
        ids, said = found["input_ids"], found["assistant_masks"]
    except (KeyError, TypeError, ValueError, NotImplementedError):
        return None
    return list(ids), [bool(mark) for mark in said]


def _by_prefixes(tokenizer: Any, chat: Sequence[Message]) -> tuple[list[int], list[bool]]:
    """By what the chat looks like before and after each turn of the assistant."""
    ids = _ids(tokenizer, chat)
    said = [False] * len(ids)
    for turn, message in enumerate(chat):
        if message["role"] == "assistant":
            start = _common(ids, _ids(tokenizer, chat[:turn], opened=True)) if turn else 0
            stop = _common(ids, _ids(tokenizer, chat[: turn + 1]))
            said[start:stop] = [True] * max(0, stop - start)
    return ids, said


def _ids(tokenizer: Any, chat: Sequence[Message], opened: bool = False) -> list[int]:
    try:
        text = tokenizer.apply_chat_template(
            list(chat), tokenize=False, add_generation_prompt=opened
        )
    except Exception as error:  # jinja's own, and whatever a template raises
        raise DataError(
            f"The chat template of {type(tokenizer).__name__} refuses a chat of the roles "
            f"{', '.join(str(m['role']) for m in chat)} ({str(error).splitlines()[0]}); "
            "give chats as it has them."
        ) from error
    return list(cast("list[int]", tokenizer(text, add_special_tokens=False)["input_ids"]))


def _common(one: Sequence[int], two: Sequence[int]) -> int:
    """How many tokens two begin with alike."""
    pairs = enumerate(zip(one, two, strict=False))
    return next((k for k, (a, b) in pairs if a != b), min(len(one), len(two)))
