"""Which rows of a tensor are tokens and not padding: the masks of a batch, in any layout.

A model is given its masks as (samples, length), but its layers see the tokens as they are laid out
inside it. A mask of B samples and L positions says which rows of (*lead, width) count where the
sizes leave one reading only:

- ``(B, L)``; ``(B, .., L, ..)`` with any other axes (heads), all of which share a token's mask;
- ``(L, B)``, where the two differ; ``(B * heads, L)``, heads next to each other;
- ``(B * L,)``, sample by sample;
- ``(B,)``, one row for each sample, and ``(tokens,)``, padding taken out: all rows count.

An encoder's and a decoder's mask are told apart by their lengths. Sizes alone may still mislead
(length before samples, flattened), so a reading is tried too: the rows that it calls tokens must
stay as they are when something else stands in the padding (`refilled`). Where readings differ, or
fail that, or there is none (experts, cross attention at equal lengths), nothing is guessed:
`trimmed` takes the padding out of the batch itself, and every row counts.
"""

from collections.abc import Iterator, Mapping
from math import prod
from typing import Any

import torch
from torch import Tensor

from bondwise.flow.data import Batch

Span = tuple[int, int]
WITH_TWO = 2  # axes of a mask: samples and positions


def masks(batch: Batch) -> tuple[Tensor, ...]:
    """The masks of a batch, (samples, length) each, True for tokens; none where all are tokens.

    The encoder's comes first, the decoder's last. Read are ``attention_mask`` and
    ``.._attention_mask`` (1 or True for a token, or 0 beside large negative numbers) and
    ``.._key_padding_mask`` (True for padding); of one with more axes a position is a token where
    anything looks at it.

    >>> masks({"attention_mask": torch.tensor([[1, 1, 0]])})
    (tensor([[ True,  True, False]]),)
    """
    if isinstance(batch, Tensor):
        return ()
    encoder, decoder = list[Tensor](), list[Tensor]()
    for name, value in batch.items():
        mask = _mask(name, value)
        if mask is not None:
            (decoder if _of_decoder(name) else encoder).append(mask)
    ids = batch.get("decoder_input_ids")
    if not decoder and isinstance(ids, Tensor) and ids.ndim == WITH_TWO:
        decoder.append(torch.ones_like(ids, dtype=torch.bool))
    found = (*encoder, *decoder)
    return () if all(bool(mask.all()) for mask in found) else found


def matched(own: tuple[Tensor, ...], shape: tuple[int, ...]) -> tuple[Tensor | None, bool]:
    """Which rows of (*lead, width) are tokens, as a mask (*lead), and whether that is certain.

    None where all rows count, or where it is not certain.

    >>> mask = torch.tensor([[True, True, False], [True, False, False]])
    >>> matched((mask,), (6, 8))[0].tolist()
    [True, True, False, True, False, False]
    >>> matched((mask,), (5, 8))
    (None, False)
    """
    if not own:
        return None, True
    lead = shape[:-1]
    found = [reading for mask in own for reading in _readings(mask, lead)]
    if not found:
        plain = tuple(size for size in lead if size > 1)
        one_each = any(plain == (len(mask),) or not plain for mask in own)
        taken_out = any(plain == (int(mask.sum()),) for mask in own)
        return None, one_each or taken_out
    if not all(torch.equal(found[0], other) for other in found[1:]):
        return None, False
    return (None if bool(found[0].all()) else found[0]), True


def tokens(batch: Batch, like: Tensor) -> Tensor | None:
    """Which rows of a model's state or output are tokens; None where all are, or it is not known.

    Where a decoder's mask and an encoder's would both do, it is the decoder's.
    """
    own = masks(batch)
    mask, certain = matched(own, tuple(like.shape))
    if not certain:
        mask, _ = matched(own[-1:], tuple(like.shape))
    return None if mask is None else mask.to(like.device)


def refilled(batch: Batch) -> Batch:
    """The batch with other tokens in its padding, which its masks hide.

    >>> ids = torch.tensor([[5, 6, 0]])
    >>> refilled({"input_ids": ids, "attention_mask": ids > 0})["input_ids"]
    tensor([[5, 6, 6]])
    """
    own = masks(batch)
    if not own or isinstance(batch, Tensor):
        return batch
    found = dict(batch)
    for name, value in batch.items():
        mask = own[-1 if _of_decoder(name) else 0]
        is_input = isinstance(value, Tensor) and not name.endswith(("mask", "labels"))
        if is_input and value.shape[:2] == mask.shape and bool(mask.any()) and not mask.all():
            real, hidden = value[mask].flatten(), value[~mask].flatten()
            other = real.max() if real.max() != hidden[0] else real.min()
            keep = mask.reshape(*mask.shape, *(1 for _ in value.shape[2:]))
            found[name] = value.where(keep, other)
    return found


def trimmed(batch: Batch) -> list[Batch]:
    """The samples of a batch without the padding at their ends, those of one place together.

    Samples without any token are left out. Padding inside a sample stays, and so does its mask.

    >>> ids = torch.tensor([[5, 6, 0], [7, 0, 0]])
    >>> [part["input_ids"] for part in trimmed({"input_ids": ids, "attention_mask": ids > 0})]
    [tensor([[5, 6]]), tensor([[7]])]
    """
    own = masks(batch)
    if not own or isinstance(batch, Tensor):
        return [batch]
    by_place: dict[tuple[Span, ...], list[int]] = {}
    for row in range(len(own[0])):
        spans = tuple(_span(mask[row]) for mask in own)
        if all(start < stop for start, stop in spans):
            by_place.setdefault(spans, []).append(row)
    lengths = tuple(mask.shape[1] for mask in own)
    return [_cut(batch, rows, spans, lengths) for spans, rows in by_place.items()]


def _mask(name: str, value: Any) -> Tensor | None:
    """A mask as (samples, length), True for tokens; None where a value is none."""
    if not isinstance(value, Tensor) or value.ndim < WITH_TWO:
        return None
    if name.endswith("key_padding_mask"):
        kept = ~value if value.dtype == torch.bool else value == 0
    elif name.endswith("attention_mask"):
        additive = value.dtype != torch.bool and bool((value < 0).any())
        kept = value >= 0 if additive else value != 0
    else:
        return None
    return kept.flatten(1, -2).any(1) if kept.ndim > WITH_TWO else kept


def _of_decoder(name: str) -> bool:
    return name.startswith(("decoder_", "tgt_"))


def _readings(mask: Tensor, lead: tuple[int, ...]) -> Iterator[Tensor]:
    """What a mask may say of rows (*lead), each as a mask of that shape."""
    samples, length = mask.shape
    if tuple(size for size in lead if size > 1) == (samples * length,):
        yield mask.reshape(lead)
        return
    places = [
        (i, j)
        for i, rows in enumerate(lead)
        for j, positions in enumerate(lead)
        if i != j and (rows, positions) == (samples, length)
    ]
    first = [place for place in places if place[0] == 0]
    for i, j in first or places:
        view = [1] * len(lead)
        view[i], view[j] = samples, length
        yield (mask if i < j else mask.T).reshape(view).expand(lead)
    folded = len(lead) == WITH_TWO and lead[1] == length and prod(lead) > mask.numel()
    if folded and lead[0] % samples == 0:
        yield mask.repeat_interleave(lead[0] // samples, 0)


def _span(row: Tensor) -> Span:
    """From the first token of a sample to behind its last one."""
    where = row.nonzero().flatten()
    return (int(where[0]), int(where[-1]) + 1) if len(where) else (0, 0)


def _cut(
    batch: Mapping[str, Any], rows: list[int], spans: tuple[Span, ...], lengths: tuple[int, ...]
) -> Batch:
    """Some samples of a batch, from and to one position."""
    samples = max(len(v) for k, v in batch.items() if _mask(k, v) is not None)
    has_decoder = any(_of_decoder(name) for name in batch)
    found: dict[str, Any] = {}
    for name, value in batch.items():
        if not isinstance(value, Tensor) or not value.ndim:
            found[name] = value
            continue
        at = -1 if _of_decoder(name) or (name == "labels" and has_decoder) else 0
        value = value[rows] if len(value) == samples else value
        axes = range(1, value.ndim) if name.endswith("mask") else range(1, min(2, value.ndim))
        start, stop = spans[at]
        for axis in axes:
            if value.shape[axis] == lengths[at]:
                value = value.narrow(axis, start, stop - start)
        found[name] = value
    return found
