"""What a student lost of what its teacher says: the loss over the vocabulary, some rows at a time.

Logits of 2,048 tokens over 49,152 words are 400 MB in float32, and as much again for every step of
a softmax and for its gradient. Here only ``chunk`` rows of them exist at a time: the gradient is
made together with the loss, row by row, and only what goes on to the hidden states and to the
output embedding is kept.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from bondwise.errors import DataError
from bondwise.heal.chunks import IGNORED, ROWS, Goal, of_logits, through_head
from bondwise.train.recipe import Mix

CHUNK = 512  # rows of logits at a time
TINY = 1e-6  # of the mean squared length: tokens shorter than that would weigh too much


@dataclass(frozen=True)
class Top:
    """What a teacher says of the tokens that follow: its ``k`` most probable ones; rows are tokens.

    Attributes:
        ids: (tokens, k) int32, no token twice in a row.
        logs: (tokens, k) natural logarithms of their probabilities at the temperature, float16 or
            float32. What a row lacks to 1 is the probability of all other tokens together.
    """

    ids: Int[Tensor, "tokens k"]
    logs: Float[Tensor, "tokens k"]

    def __len__(self) -> int:
        return len(self.ids)

    def rows(self, which: slice | Tensor | Sequence[int]) -> "Top":
        """Some of the tokens."""
        return Top(self.ids[which], self.logs[which])

    def to(self, device: torch.device | str) -> "Top":
        """The same on another device."""
        return Top(self.ids.to(device), self.logs.to(device))


@torch.no_grad()
def top(logits: Float[Tensor, "tokens words"], k: int, temperature: float = 1.0) -> Top:
    """The ``k`` most probable tokens of ``softmax(logits / temperature)``, most probable first.

    Raises:
        DataError: k beyond the vocabulary or below 1, or a temperature that is not above 0.

    >>> said = top(torch.tensor([[2.0, 0.0, 1.0]]), 2)
    >>> said.ids, said.logs
    (tensor([[0, 2]], dtype=torch.int32), tensor([[-0.4076, -1.4076]]))
    """
    words = logits.shape[-1]
    if not 1 <= k <= words:
        raise DataError(f"top_k={k} came for {words} tokens; write 1 to {words}.")
    Mix(temperature)
    ids, logs = list[Tensor](), list[Tensor]()
    for rows in logits.split(ROWS):
        z = rows.to(_exact(rows.dtype), copy=True).div_(temperature)
        found = z.topk(k)
        most = found.values[:, :1].clone()
        ids.append(found.indices.int())
        logs.append(found.values - most - z.sub_(most).exp_().sum(-1, keepdim=True).log())
    if not ids:
        return Top(logits.new_zeros((0, k), dtype=torch.int32), logits.new_zeros((0, k)))
    return Top(torch.cat(ids), torch.cat(logs))


def vocabulary_loss(
    hidden: Float[Tensor, "tokens width"],
    head_weight: Float[Tensor, "words width"],
    bias: Float[Tensor, " words"] | None,
    wanted: Top | None,
    targets: Tensor | None,
    mix: Mix,
    chunk: int = CHUNK,
) -> Float[Tensor, ""]:
    """The mean over tokens of a student's loss, its logits ``hidden W^T + b`` never whole.

    With ``p`` the teacher's and ``q = softmax(logits / T)`` the student's probabilities, the part
    for distillation is the divergence over the teacher's top tokens and one bucket for the others:

        T^2 ( sum_k p_k log(p_k / q_k)  +  p_rest log(p_rest / q_rest) )

    which is the whole ``KL(p || q)`` where the top is the whole vocabulary, and never more than it.
    The part for the task is the cross entropy of ``targets``. The part ``mix.hidden`` is no matter
    of logits: see `relative_error`.

    The products run in the dtype of autocast where it is on, the softmax in float32. Gradients go
    to ``hidden``, ``head_weight`` and ``bias``, as asked; there is no second derivative.

    Args:
        hidden: what enters the output embedding, one row per token.
        head_weight: the output embedding.
        bias: of the output embedding.
        wanted: what the teacher says of each token, at the mix's temperature.
        targets: the tokens of the text; those that are -100 count in no part.
        mix: the weights of the parts; a part of weight 0 needs no data.
        chunk: rows of logits that exist at a time.

    Raises:
        DataError: a part without its data, or data for another number of tokens.

    >>> _ = torch.manual_seed(0)
    >>> h, W = torch.randn(5, 4), torch.randn(7, 4)
    >>> said = top(h @ W.T, k=3)
    >>> float(vocabulary_loss(h, W, None, said, None, Mix())) < 1e-6     # who says the same
    True
    """
    goal = _goal(hidden, len(head_weight), wanted, targets, mix, chunk)
    return through_head(hidden, head_weight, bias, goal)


def logits_loss(
    logits: Float[Tensor, "tokens words"],
    wanted: Top | None,
    targets: Tensor | None,
    mix: Mix,
    chunk: int = CHUNK,
) -> Float[Tensor, ""]:
    """The same loss of logits that are there, for models that do more than multiply to make them.

    Raises:
        DataError: as `vocabulary_loss`.
    """
    goal = _goal(logits, logits.shape[-1], wanted, targets, mix, chunk)
    return of_logits(logits, goal)


def relative_error(
    given: Float[Tensor, "*tokens width"],
    wanted: Tensor,
    mask: Tensor | None = None,
) -> Float[Tensor, ""]:
    """The mean over tokens of ``||y~ - y||^2 / ||y||^2``; every token weighs alike.

    Args:
        given: the student's; the last dimension is the vector of one token.
        wanted: the teacher's.
        mask: which tokens count; None for all.

    Raises:
        DataError: another shape than the teacher's, or no token that counts.

    >>> relative_error(torch.tensor([[3.0, 0.0]]), torch.tensor([[2.0, 0.0]]))
    tensor(0.2500)
    """
    if given.shape != wanted.shape:
        raise DataError(
            f"The student gives {tuple(given.shape)}, the teacher {tuple(wanted.shape)}; "
            "give both the same data, and models of one width."
        )
    y = wanted.detach().to(device=given.device, dtype=_exact(given.dtype))
    if mask is not None:
        mask = mask.to(given.device).bool()
        given, y = given[mask], y[mask]
    if not y.numel():
        raise DataError("No token counts in the loss; give data of which some do.")
    lengths = y.square().sum(-1)
    tiny = TINY * lengths.mean() + torch.finfo(y.dtype).tiny
    return ((given.to(y.dtype) - y).square().sum(-1) / (lengths + tiny)).mean()


def _goal(
    like: Tensor, words: int, wanted: Top | None, targets: Tensor | None, mix: Mix, chunk: int
) -> Goal:
    """All that was given, checked, and nothing of a part whose weight is 0."""
    _check(len(like), words, wanted, targets, mix)
    if chunk < 1:
        raise DataError(f"chunk={chunk} came; write at least 1 row of logits at a time.")
    counts = torch.ones(len(like), dtype=_exact(like.dtype), device=like.device)
    if targets is not None:
        targets = targets.to(like.device)
        counts *= targets.ne(IGNORED)
    said = wanted.to(like.device) if wanted is not None and mix.distil else None
    return Goal(
        ids=None if said is None else said.ids,
        logs=None if said is None else said.logs,
        targets=targets if mix.task else None,
        counts=counts,
        temperature=mix.temperature,
        distil=mix.distil,
        task=mix.task,
        chunk=chunk,
    )


def _check(tokens: int, words: int, wanted: Top | None, targets: Tensor | None, mix: Mix) -> None:
    parts = {"distil": ("the teacher's top", wanted), "task": ("targets", targets)}
    for part, (name, rows) in parts.items():
        weight = getattr(mix, part)
        if rows is None and weight:
            raise DataError(f"{part}={weight} came without {name}; give them, or write {part}=0.")
        if rows is not None and len(rows) != tokens:
            raise DataError(
                f"{tokens} tokens came with {name} of {len(rows)}; give one row for each token."
            )
    if not mix.distil and not mix.task:
        raise DataError("distil=0 and task=0 came for a loss over words; write one above 0.")
    if wanted is not None and wanted.ids.shape[-1] > words:
        raise DataError(
            f"The teacher's top {wanted.ids.shape[-1]} came for {words} words; "
            "give a student of the teacher's vocabulary."
        )


def _exact(dtype: torch.dtype) -> torch.dtype:
    """The dtype of softmax and sums: float32, or float64 for float64."""
    return torch.promote_types(dtype, torch.float32)
