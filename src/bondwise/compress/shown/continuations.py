"""More tokens than were given: a language model goes on by itself from the beginnings of windows.

A few thousand tokens are less than the numbers of one block, so what is fitted on them alone is
fitted to their noise. Samples of the dense model are text that it finds likely, in the style of the
beginnings; no other text is looked at (Liu et al. 2023, LLM-QAT).
"""

from collections.abc import Mapping, Sequence
from itertools import islice
from typing import Any, cast

import torch
from torch import Tensor, nn

from bondwise.compress.swap import apart
from bondwise.flow.chains.blocks import fast_bfloat16, of_precision
from bondwise.flow.data import Batch, feed
from bondwise.flow.watch import without_head
from bondwise.progress import Progress

PROMPT = 8  # one token in so many of a window is given, the others are drawn
ROWS = 64  # windows that are drawn at a time


def continuations(
    model: nn.Module, batches: Sequence[Batch], times: int, seed: int, progress: Progress
) -> list[Tensor]:
    """Windows like those of the batches, ``times`` as many, drawn from the model at temperature 1.

    Empty for a model that cannot go on by itself, or batches that are not token ids alone. Each
    round begins at another place of the windows. The global random state stays as it is.

    Args:
        model: the dense model, with ``generate`` as Hugging Face models have it.
        batches: token ids, (windows, tokens) each.
        times: how many windows to draw for each that is given.
        seed: of the draws.
        progress: called with ("draw", done, total).

    Raises:
        DataError: tokens or positions that the model lacks.
    """
    windows = [ids for ids in map(_ids, batches) if ids is not None]
    if not windows or not times or len(windows) < len(batches) or not _goes_on(model):
        return []
    length = min(ids.shape[1] for ids in windows)
    given = max(1, length // PROMPT)
    if length < 2 * PROMPT:
        return []
    feed(without_head(model), batches[0])  # tokens that the model lacks are named here
    every = torch.cat([ids[:, :length] for ids in windows])
    starts = [k * (length - given) // times for k in range(times)]
    beginnings = [rows[:, start : start + given] for start in starts for rows in every.split(ROWS)]
    writer = _writer(model)
    try:
        drawn = _drawn(writer, beginnings, length, seed, progress)
    except (RuntimeError, TypeError, ValueError) as error:
        if writer is model or not of_precision(error):
            raise
        drawn = _drawn(model, beginnings, length, seed, progress)
    size = len(windows[0])
    return list(islice(torch.cat(drawn).split(size), sum(map(len, drawn)) // size))


def _drawn(
    writer: Any, beginnings: Sequence[Tensor], length: int, seed: int, progress: Progress
) -> list[Tensor]:
    """All windows, one beginning after another; the global random state stays as it is."""
    found: list[Tensor] = []
    with torch.random.fork_rng(devices=_devices(beginnings[0])):
        torch.manual_seed(seed)  # pyright: ignore[reportUnknownMemberType]
        for done, rows in enumerate(beginnings):
            progress("draw", done, len(beginnings))
            found.append(_draw(writer, rows, length))
    progress("draw", len(beginnings), len(beginnings))
    return found


def _draw(writer: Any, beginnings: Tensor, length: int) -> Tensor:
    device = next(writer.parameters()).device
    ids = beginnings.to(device)
    more = length - ids.shape[1]
    with torch.no_grad():
        drawn = writer.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            do_sample=True,
            temperature=1.0,
            top_k=0,
            top_p=1.0,
            min_new_tokens=more,
            max_new_tokens=more,
            pad_token_id=0,
        )
    return drawn.to(beginnings.device)


def _ids(batch: Batch) -> Tensor | None:
    """The token ids of a batch that holds nothing else."""
    if isinstance(batch, Mapping):
        only = batch.get("input_ids")
        mask = batch.get("attention_mask")
        padded = isinstance(mask, Tensor) and not bool(mask.all())
        batch = cast(Batch, only if isinstance(only, Tensor) and not padded else {})
    plain = isinstance(batch, Tensor) and batch.ndim == 2 and not batch.is_floating_point()
    return cast(Tensor, batch) if plain else None


def _goes_on(model: nn.Module) -> bool:
    can = getattr(model, "can_generate", None)
    return callable(can) and bool(can()) and not model.config.is_encoder_decoder  # pyright: ignore


def _writer(model: nn.Module) -> Any:
    """The model, or a copy in bfloat16 where that is faster."""
    first = next(model.parameters())
    if first.dtype == torch.float32 and fast_bfloat16(first.device):
        return apart(model, kind=torch.bfloat16).to(torch.bfloat16)
    return model


def _devices(ids: Tensor) -> list[int]:
    return [ids.device.index or 0] if ids.device.type == "cuda" else []
