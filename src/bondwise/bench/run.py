"""One run of a model: a prompt read at once and tokens written one by one, or texts only read."""

from collections.abc import Callable
from dataclasses import dataclass
from inspect import signature
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from bondwise.errors import DataError

BATCH = 8
"""Texts that an encoder reads at a time, besides one alone."""

Meter = Callable[[], float]
"""What a run is measured by: a clock, or a count of multiplications. It only grows."""

Parts = dict[str, float]
"""How far the meter went in each part of a run."""


@dataclass(frozen=True)
class Load:
    """What a model is given to do.

    Attributes:
        prompt: tokens that it reads at once.
        tokens: tokens that it then writes, one by one; an encoder writes none.
        seed: of the prompt, whose tokens are drawn at random: speed does not depend on them.
    """

    prompt: int = 256
    tokens: int = 32
    seed: int = 0


def writes(model: Any) -> bool:
    """Whether a Hugging Face model continues a text, rather than only reads one."""
    return bool(model.can_generate()) and not model.config.is_encoder_decoder


def vocabulary(model: Any) -> int | None:
    """How many token ids a Hugging Face model knows; None for one that takes no token ids."""
    try:
        return getattr(model.get_input_embeddings(), "num_embeddings", None)
    except NotImplementedError:
        return None


def prompts(load: Load, entries: int, device: Any) -> Int[Tensor, "texts prompt"]:
    """Texts of random tokens, the same for the same seed.

    Raises:
        DataError: so many tokens do not fit in memory.

    >>> prompts(Load(prompt=3), 10, "cpu").shape
    torch.Size([8, 3])
    """
    draw = torch.Generator().manual_seed(load.seed)
    try:
        return torch.randint(entries, (BATCH, load.prompt), generator=draw).to(device)
    except RuntimeError as error:
        raise DataError(
            f"A prompt of {load.prompt} tokens came, which memory does not hold; write a smaller "
            "--prompt"
        ) from error


def run(model: Any, ids: Int[Tensor, "texts prompt"], load: Load, meter: Meter) -> Parts:
    """What the meter says of each part of one run.

    A model that writes reads the first text, in ``prefill``: up to its next token, with the logits
    of the last position alone where the model can leave out the others. Then it writes, in
    ``decode``: greedily, one token per call, with the keys and values of those before it kept.
    Any other model reads the first text alone, in ``forward``, and all of them, in ``batched``.

    Raises:
        DataError: the model keeps no keys and values between tokens.
    """
    with torch.no_grad():
        if writes(model):
            return _written(model, ids[:1], load.tokens, meter)
        return _read(model, ids, meter)


def _written(model: Any, ids: Tensor, tokens: int, meter: Meter) -> Parts:
    last = {"logits_to_keep": 1} if "logits_to_keep" in signature(model.forward).parameters else {}
    start = meter()
    out = model(input_ids=ids, use_cache=True, **last)
    token = out.logits[:, -1:].argmax(-1)
    first = meter()
    for _ in range(tokens):
        cache = getattr(out, "past_key_values", None)
        if cache is None:
            raise DataError(
                f"{type(model).__name__} keeps no keys and values between tokens, so its decoding "
                "cannot be measured; give a causal language model that does"
            )
        out = model(input_ids=token, past_key_values=cache, use_cache=True)
        token = out.logits[:, -1:].argmax(-1)
    return {"prefill": first - start, "decode": meter() - first}


def _read(model: Any, ids: Tensor, meter: Meter) -> Parts:
    start = meter()
    model(input_ids=ids[:1])
    alone = meter()
    model(input_ids=ids)
    return {"forward": alone - start, "batched": meter() - alone}
