"""What a language model lost: perplexity, divergence from its teacher, agreement, a sample."""

import math
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, SupportsIndex

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from bondwise.errors import DataError, whole_number
from bondwise.flow.forms.door import batches
from bondwise.heal.training_data import as_windows

Progress = Callable[[int, int], None]

# Positions with float32 logits at a time: 128 of 49,152 tokens are 25 MB, which the allocator
# hands out again; from 32 MB on it returns them to the system each time, at three times the cost.
_CHUNK = 128
_RESAMPLES = 2000


@dataclass(frozen=True)
class Score:
    """Perplexity over all predicted tokens, and the mean nats per token of each window."""

    perplexity: float
    nats: Float[Tensor, " windows"]


@dataclass(frozen=True)
class Comparison:
    """A model beside its teacher on the same windows.

    `kl` is `KL(teacher || model)` in nats per predicted token, `top1` the share of positions where
    both put the same token first, `ratio` the model's perplexity over the teacher's, with a 95 %
    interval (`ratio_low`, `ratio_high`) from a bootstrap that draws windows, both models' together.
    """

    model: Score
    teacher: Score
    kl: float
    top1: float
    ratio: float
    ratio_low: float
    ratio_high: float

    def entry(self, text: str) -> dict[str, Any]:
        """The comparison as plain data, under the name of the text it was made on."""
        windows = self.model.nats.numel()
        after = {"perplexity": self.model.perplexity, "kl": self.kl, "top1": self.top1}
        return {
            "text": text,
            "windows": windows,
            "before": {"perplexity": self.teacher.perplexity},
            "after": after,
            "ratio": self.ratio,
            "ratio_low": self.ratio_low,
            "ratio_high": self.ratio_high,
        }


def perplexity(
    model: nn.Module,
    windows: Any,
    batch: int = 1,
    dtype: torch.dtype | None = None,
    progress: Progress | None = None,
    tokenizer: Any = None,
    length: SupportsIndex = 256,
) -> Score:
    """`exp(mean of -log p(token | tokens before it in its window))`, first tokens not predicted.

    `windows` are token ids (count, length), or data in any form (`bondwise.flow.forms.door`), of
    which all windows of `length` are taken, text and chats with a `tokenizer`. `dtype` computes in
    another type than the model's (the model itself stays as it is); `progress` is told windows
    done and windows in all.

    Raises:
        DataError: windows of one token, tokens outside the vocabulary, or a loss that is not
            finite.
    """
    windows = _ids(windows, tokenizer, length)
    _check(windows)
    with _ready(model, dtype) as logits, torch.no_grad():
        nats = [_nats(logits(ids), ids) for ids in _batches(windows, batch, progress)]
    return _score(torch.cat(nats), model)


def compare(
    model: nn.Module,
    teacher: nn.Module,
    windows: Any,
    batch: int = 1,
    dtype: torch.dtype | None = None,
    progress: Progress | None = None,
    seed: int = 0,
    tokenizer: Any = None,
    length: SupportsIndex = 256,
) -> Comparison:
    """Both models over the same windows in one pass; `seed` draws the bootstrap.

    What windows are, see `perplexity`.

    Both compute in `dtype` (None: each in its own). A batch of one window is no slower than a
    larger one for windows of some hundred tokens, and keeps the logits small.

    Raises:
        DataError: as `perplexity`, and for two models that do not share a vocabulary.
    """
    windows = _ids(windows, tokenizer, length)
    _check(windows)
    with _ready(model, dtype) as student, _ready(teacher, dtype) as dense, torch.no_grad():
        rows = [
            _compare_batch(student(ids), dense(ids), ids)
            for ids in _batches(windows, batch, progress)
        ]
    ours, theirs, kl, top1 = torch.cat(rows, dim=1)
    low, high = _interval(ours - theirs, seed)
    return Comparison(
        model=_score(ours, model),
        teacher=_score(theirs, teacher),
        kl=kl.mean().item(),
        top1=top1.mean().item(),
        ratio=math.exp((ours - theirs).mean().item()),
        ratio_low=low,
        ratio_high=high,
    )


def _ids(data: Any, tokenizer: Any, length: SupportsIndex) -> Tensor:
    """Data in any form as windows of token ids, padding left out."""
    if isinstance(data, Tensor):
        return data
    size = whole_number("length", length)
    return as_windows(batches(data, tokenizer, count=None, length=size), size)


def _check(windows: Tensor) -> None:
    if windows.ndim != 2 or windows.is_floating_point():
        raise DataError(
            f"Windows of shape {tuple(windows.shape)} and {windows.dtype} came; "
            "give token ids (count, length)."
        )
    count, length = windows.shape
    if count < 1 or length < 2:
        raise DataError(
            f"{count} windows of {length} tokens predict nothing; give at least one window of two"
        )


def _batches(windows: Tensor, batch: int, progress: Progress | None) -> Iterator[Tensor]:
    done = 0
    for ids in windows.split(batch):
        yield ids
        done += len(ids)
        if progress is not None:
            progress(done, len(windows))


@contextmanager
def _ready(model: nn.Module, dtype: torch.dtype | None) -> Generator[Callable[[Tensor], Tensor]]:
    """The model as token ids -> logits, in evaluation mode and in `dtype`, and then as before.

    Only parameters are cast, and beside the model: casting buffers would round the frequencies of
    rotary position embeddings, which models keep in float32 whatever the type of their weights.
    """
    device = next(model.parameters()).device
    vocabulary = getattr(getattr(model, "config", None), "vocab_size", None)
    cast = {
        name: p.detach().to(dtype)
        for name, p in model.named_parameters()
        if dtype is not None and p.dtype != dtype and p.is_floating_point()
    }

    def logits(ids: Tensor) -> Tensor:
        if vocabulary is not None and int(ids.max()) >= vocabulary:
            raise DataError(
                f"Token {int(ids.max())} is outside the model's vocabulary of {vocabulary}; "
                "make the windows with the model's own tokenizer"
            )
        ids = ids.to(device)
        out = functional_call(model, cast, (ids,)) if cast else model(ids)
        return out.logits

    training = model.training
    model.eval()
    try:
        yield logits
    finally:
        model.train(training)


def _nats(logits: Tensor, ids: Tensor) -> Float[Tensor, " batch"]:
    """Mean nats per predicted token of each window."""
    flat, target = logits[:, :-1].flatten(0, 1), ids[:, 1:].reshape(-1).to(logits.device)
    parts = [
        F.cross_entropy(chunk.float(), tokens, reduction="none")
        for chunk, tokens in zip(flat.split(_CHUNK), target.split(_CHUNK), strict=True)
    ]
    return torch.cat(parts).view(len(ids), -1).double().mean(dim=1).cpu()


def _compare_batch(student: Tensor, dense: Tensor, ids: Tensor) -> Float[Tensor, "four batch"]:
    """Per window: the nats of both models, the divergence, the agreement."""
    if student.shape[-1] != dense.shape[-1]:
        raise DataError(
            f"The model has a vocabulary of {student.shape[-1]}, its teacher of {dense.shape[-1]}; "
            "compare models with the same tokenizer"
        )
    ours, theirs = student[:, :-1].flatten(0, 1), dense[:, :-1].flatten(0, 1).to(student.device)
    target = ids[:, 1:].reshape(-1, 1).to(student.device)
    chunks = zip(ours.split(_CHUNK), theirs.split(_CHUNK), target.split(_CHUNK), strict=True)
    rows = torch.cat([_compare_chunk(*chunk) for chunk in chunks], dim=1)
    return rows.view(4, len(ids), -1).mean(dim=2).cpu()


def _compare_chunk(ours: Tensor, theirs: Tensor, target: Tensor) -> Float[Tensor, "four tokens"]:
    log_q = F.log_softmax(ours, dim=-1, dtype=torch.float32)
    log_p = F.log_softmax(theirs, dim=-1, dtype=torch.float32)
    same = log_q.argmax(dim=-1) == log_p.argmax(dim=-1)
    nats = -log_q.gather(1, target)[:, 0], -log_p.gather(1, target)[:, 0]
    difference = torch.sub(log_p, log_q, out=log_q)
    kl = difference.mul_(log_p.exp_()).sum(dim=-1)
    return torch.stack([*nats, kl, same]).double()


def _score(nats: Tensor, model: nn.Module) -> Score:
    if not bool(torch.isfinite(nats).all()):
        bad = int((~torch.isfinite(nats)).nonzero()[0, 0])
        raise DataError(
            f"The loss of {type(model).__name__} is not finite on window {bad}; check its weights "
            "for NaN, or compute in float32"
        )
    mean = nats.mean().item()
    return Score(math.exp(mean) if mean < 700 else math.inf, nats)


def _interval(differences: Float[Tensor, " windows"], seed: int) -> tuple[float, float]:
    """95 % of the ratios `exp(mean difference)` that drawing windows with replacement gives."""
    count = len(differences)
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randint(count, (_RESAMPLES, count), generator=generator)
    means = differences[drawn].mean(dim=1)
    low, high = torch.quantile(means, torch.tensor([0.025, 0.975], dtype=means.dtype)).exp()
    return low.item(), high.item()


@torch.no_grad()
def generate_sample(model: nn.Module, tokenizer: Any, prompt: str, tokens: int = 40) -> str:
    """The most likely `tokens` after a prompt, taken one by one (greedy, no template)."""
    device = next(model.parameters()).device
    step = torch.tensor([tokenizer(prompt)["input_ids"]], device=device)
    ids: list[int] = []
    past = None
    training = model.training
    model.eval()
    try:
        for _ in range(tokens):
            out = model(input_ids=step, past_key_values=past, use_cache=True)
            step, past = out.logits[:, -1:].argmax(dim=-1), out.past_key_values
            if step.item() == tokenizer.eos_token_id:
                break
            ids.append(int(step.item()))
    finally:
        model.train(training)
    return tokenizer.decode(ids, skip_special_tokens=True)
