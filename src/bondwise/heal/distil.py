"""The task of a language model: the student learns what the teacher says of each token.

The loss goes over the vocabulary in chunks, and the teacher is asked once: its top tokens are on
disk, so that it need not be in memory while the student trains (Hinton, Vinyals and Dean 2015).
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from math import exp
from pathlib import Path

import torch
from jaxtyping import Int
from torch import Tensor, nn

from bondwise.errors import DataError
from bondwise.flow.data import IGNORED, feed
from bondwise.heal.head import head_weight, instead, logits_head
from bondwise.heal.losses import Top, logits_loss, relative_error, vocabulary_loss
from bondwise.heal.modes import judging, products
from bondwise.heal.teacher import TeacherCache, cache_teacher
from bondwise.progress import Progress
from bondwise.train.processes import agreed, wait
from bondwise.train.recipe import Healing, Mix
from bondwise.train.sampler import chunked, micro_batches, padded_shard, sample_order

Loads = Callable[[], nn.Module]


@dataclass
class Teacher:
    """A teacher that is loaded when it is first asked for, and let go when it is not needed.

    Attributes:
        source: the teacher, or what loads it.
    """

    source: nn.Module | Loads
    _loaded: nn.Module | None = None

    def get(self) -> nn.Module:
        """The teacher."""
        if isinstance(self.source, nn.Module):
            return self.source
        if self._loaded is None:
            self._loaded = self.source()
        return self._loaded

    def forget(self) -> None:
        """Let it go where it can be loaded again."""
        self._loaded = None


@dataclass
class LazyTeacherCache:
    """What the teacher says of the first windows: as many as are needed, made when they are.

    Attributes:
        teacher: who says it.
        windows: in the order in which they are first needed.
        folder: where it is kept.
        recipe: how many tokens, at which temperature.
        progress: is told windows done.
        per_window: seconds that one took.
    """

    teacher: Teacher
    windows: Int[Tensor, "count length"]
    folder: Path
    recipe: Healing
    progress: Progress
    per_window: float = 0.0
    _parts: list[tuple[int, TeacherCache]] = field(default_factory=list[tuple[int, TeacherCache]])

    @property
    def count(self) -> int:
        """Windows that it has answers to."""
        return sum(kept.count for _, kept in self._parts)

    def upto(self, count: int) -> None:
        """Have answers to so many windows, or to all."""
        start, stop = self.count, min(count, len(self.windows))
        if stop <= start:
            return
        began = time.perf_counter()
        kept = cache_teacher(
            self.teacher.get(),
            self.windows[start:stop],
            self.folder / f"{start}-{stop}",
            k=self.recipe.top_k,
            temperature=self.recipe.temperature,
            hidden=self.recipe.hidden > 0,
            batch=self.recipe.micro,
            progress=self.progress,
        )
        wait()  # other processes made a part of it
        self.per_window = (time.perf_counter() - began) / (stop - start)
        self._parts.append((start, kept))

    def of(self, rows: list[int]) -> tuple[Top, Tensor | None]:
        """What is kept of some windows, one row for each token but the first."""
        found = [self._one(row) for row in rows]
        tops, hidden = zip(*found, strict=True)
        ids, logs = torch.cat([t.ids for t in tops]), torch.cat([t.logs for t in tops])
        states = [h for h in hidden if h is not None]
        return Top(ids, logs), torch.cat(states) if states else None

    def _one(self, row: int) -> tuple[Top, Tensor | None]:
        start, kept = next(part for part in reversed(self._parts) if part[0] <= row)
        return kept.of([row - start])


@dataclass(frozen=True)
class _Told:
    """Which tokens of some windows count in a loss, (windows, length); None for all."""

    counts: Tensor | None

    def weight(self, rows: list[int]) -> float:
        """How much some windows weigh: by their number, or by the tokens that count."""
        if self.counts is None:
            return float(len(rows))
        return float(self.counts[rows, 1:].sum())

    def targets(self, windows: Tensor, rows: list[int]) -> Tensor:
        """The tokens that are to be said, one row of `Top` each; -100 for what does not count."""
        ids = windows[rows, 1:]
        if self.counts is not None:
            ids = ids.masked_fill(~self.counts[rows, 1:], IGNORED)
        return ids.flatten()


class LanguageTask:
    """The loss of a causal language model on windows of text, and its perplexity on others.

    Args:
        student: the model of transformers.
        called: the same as it is called, where it is wrapped (DDP).
        windows: token ids to train on.
        held: token ids to judge on.
        answers: the teacher's; None where it is not heard.
        recipe: how.
        head: the output embedding, as `head_of` finds it.
        told: of windows and held those tokens that count, as many; None for all.
    """

    def __init__(
        self,
        student: nn.Module,
        called: nn.Module,
        windows: Int[Tensor, "count length"],
        held: Int[Tensor, "held length"],
        answers: LazyTeacherCache | None,
        recipe: Healing,
        head: nn.Module | None,
        told: tuple[Tensor | None, Tensor | None] = (None, None),
    ) -> None:
        self.told, self.told_held = (_Told(each) for each in told)
        self.student, self.called, self.head = student, called, head
        self.windows, self.held, self.answers, self.recipe = windows, held, answers, recipe
        self.places = micro_batches(recipe.batch, recipe.micro)
        self.products = products(recipe.precision, self.student_device)
        if recipe.hidden and head is None:
            raise DataError(
                f"hidden={recipe.hidden} came for {type(student).__name__}, whose head does more "
                "than multiply its last hidden state; write hidden=0."
            )

    @property
    def parts(self) -> int:
        """Of a step."""
        return len(self.places)

    def loss(self, step: int, part: int) -> Tensor:
        """The share of the windows of one part of a step, of the mean over this process's."""
        drawn = sample_order(step, self.recipe.batch, len(self.windows), self.recipe.seed)
        rows = [drawn[place] for place in self.places[part]]
        top, hidden = (None, None) if self.answers is None else self.answers.of(rows)
        own = [drawn[place] for places in self.places for place in places]
        weight = self.told.weight(rows) / (self.told.weight(own) or 1.0)
        targets = self.told.targets(self.windows, rows)
        return weight * self._of(self.windows[rows], targets, top, hidden, self.recipe.mix)

    @torch.no_grad()
    def measure(self) -> float:
        """The perplexity of the windows held out: ``exp(mean nats per token)``."""
        total, counted = 0.0, 0.0
        alone = Mix(distil=0.0, task=1.0)
        with judging(self.student):
            for some in chunked(padded_shard(len(self.held)), self.recipe.micro):
                rows = [row for row, w in some if w]
                weight = self.told_held.weight(rows)
                rows = rows or [some[0][0]]  # FSDP wants as many calls from every process
                targets = self.told_held.targets(self.held, rows)
                total += weight * float(self._of(self.held[rows], targets, None, None, alone))
                counted += weight
        total, counted = agreed([total, counted], "sum", self.student_device)
        mean = total / counted
        return exp(mean) if mean < 700 else (float("inf") if mean == mean else mean)

    @property
    def student_device(self) -> torch.device:
        """Where the student is."""
        return next(self.student.parameters()).device

    def _of(
        self, ids: Tensor, targets: Tensor, top: Top | None, hidden: Tensor | None, mix: Mix
    ) -> Tensor:
        """The mean loss over the tokens that count of some windows, their first apart."""
        device = self.student_device
        ids, targets = ids.to(device), targets.to(device)
        top = None if top is None else top.to(device)
        asked = {"input_ids": ids} | self._no_cache

        def run() -> Tensor:
            if self.head is None:
                logits = feed(self.called, asked).logits[:, :-1].flatten(0, 1)
                return logits_loss(logits, top, targets, mix)
            gives = partial(_spoken, self.head, top=top, hidden=hidden, targets=targets, mix=mix)
            with instead(self.head, gives):
                return feed(self.called, asked).logits

        return self.products(run)

    @property
    def _no_cache(self) -> dict[str, bool]:
        has = hasattr(getattr(self.student, "config", None), "use_cache")
        return {"use_cache": False} if has else {}


def _spoken(
    head: nn.Module,
    states: Tensor,
    *,
    top: Top | None,
    hidden: Tensor | None,
    targets: Tensor,
    mix: Mix,
) -> Tensor:
    """The loss in the place of the logits."""
    given = states[:, :-1].flatten(0, 1)
    weight, bias = head_weight(head)
    heard = top is not None and mix.distil > 0
    read = mix.task > 0
    loss = given.new_zeros(())
    if heard or read:
        loss = vocabulary_loss(
            given, weight, bias, top if heard else None, targets if read else None, mix
        )
    if hidden is not None and mix.hidden:
        counts = targets.ne(IGNORED)
        if bool(counts.any()):
            some = None if bool(counts.all()) else counts
            loss = loss + mix.hidden * relative_error(given, hidden.to(given.device), some)
    return loss


def is_causal(model: nn.Module, ids: Int[Tensor, "count length"]) -> bool:
    """Whether a model is a causal language model: what it says does not depend on what follows.

    It is asked: a later token is changed, and the logits before it must stay.
    """
    finds = getattr(model, "get_output_embeddings", None)
    if finds is None or finds() is None:
        return False
    if getattr(getattr(model, "config", None), "is_encoder_decoder", False):
        return False  # token ids alone do not run it
    some = ids[:1, :8].clone()
    other = some.clone()
    other[0, -1] = (other[0, -1] + 1) % int(ids.max().clamp_min(1))
    with torch.no_grad(), judging(model):
        one, two = (getattr(feed(model, each), "logits", None) for each in (some, other))
    if not isinstance(one, Tensor) or not isinstance(two, Tensor) or one.ndim != 3:
        return False
    return torch.allclose(one[:, :-1], two[:, :-1], rtol=1e-3, atol=1e-4)


def head_of(student: nn.Module, ids: Int[Tensor, "count length"]) -> nn.Module | None:
    """The output embedding whose product with the last hidden state is the logits, if it is."""
    found = logits_head(student, ids[:1, :8])
    return None if found is None else found[1]
