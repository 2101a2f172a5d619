"""The loss over a vocabulary and its gradient, made together, some rows of logits at a time."""

from dataclasses import dataclass
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

IGNORED = -100  # the target of a token that does not count
ROWS = 64  # of them a softmax takes at a time: 13 MB for 49,152 words, which a cache holds


@dataclass(frozen=True, eq=False)
class Goal:
    """What the logits of some tokens are held against, and how much each part weighs.

    Attributes:
        ids: (tokens, k) the tokens of which the teacher says something; None without a teacher.
        logs: (tokens, k) the logarithms of the teacher's probabilities.
        targets: (tokens,) the text; None where it does not matter.
        counts: (tokens,) 1 for the tokens that count and 0 for others, in the dtype of the softmax.
        temperature: of the teacher's part.
        distil: the weight of the teacher's part.
        task: the weight of the text's part.
        chunk: rows of logits that exist at a time.
    """

    ids: Tensor | None
    logs: Tensor | None
    targets: Tensor | None
    counts: Tensor
    temperature: float
    distil: float
    task: float
    chunk: int

    @property
    def total(self) -> Tensor:
        """How many tokens count; at least 1, so that a batch without any has a loss of 0."""
        return self.counts.sum().clamp_min(1)

    def chunks(self) -> list[slice]:
        """Which rows exist at a time."""
        return _cut(len(self.counts), self.chunk)

    def over(self, z: Tensor, at: slice, total: Tensor | None) -> Tensor:
        """The sum of the loss over some rows; the gradient by each logit is written over it.

        The gradient is added up in ``total`` where there is one, and rounded to the logits' dtype
        afterwards: the longer numbers of a softmax exist for a few rows only.
        """
        nats = self.counts.new_zeros(())
        for rows in _cut(len(z), ROWS):
            own = slice(at.start + rows.start, at.start + rows.stop)
            more, grad = self.part(z[rows].to(self.counts.dtype), own)
            z[rows] = grad
            nats += more
            if total is not None:
                total += grad.sum(0)
        return nats

    def part(self, z: Tensor, at: slice) -> tuple[Tensor, Tensor]:
        """The sum of the loss over some rows, and its gradient by their logits, written over them.

        The gradient is of the sum, not of the mean: in float16 the parts of a mean would vanish.
        """
        counts = self.counts[at]
        if self.ids is None or self.logs is None:
            assert self.targets is not None
            return surprise(z, self.targets[at], counts * self.task)
        ids, logs, weights = self.ids[at], self.logs[at], counts * self.distil
        if self.targets is None:
            return divergence(z, ids, logs, self.temperature, weights)
        nats, grad = surprise(z.clone(), self.targets[at], counts * self.task)
        more, other = divergence(z, ids, logs, self.temperature, weights)
        return nats + more, grad.add_(other)


def _cut(count: int, size: int) -> list[slice]:
    return [slice(k, min(k + size, count)) for k in range(0, count, size)]


def divergence(
    z: Tensor, ids: Tensor, logs: Tensor, temperature: float, weights: Tensor
) -> tuple[Tensor, Tensor]:
    """The weighted sum over rows of ``T^2 KL``, and its gradient, written over the logits ``z``.

    Only ``e = exp(z / T - max)`` is ever made. With ``S`` its sum, and ``R`` its sum outside the
    teacher's top, the gradient by ``z`` is ``T (e / S - p)`` in the top, and outside, where only
    the probability of all together is known, ``T e (1 / S - p_rest / R)``.
    """
    ids, p = ids.long(), logs.to(z.dtype).exp()
    known = p.sum(-1, keepdim=True)
    whole = ids.shape[-1] == z.shape[-1]
    p = p / (known if whole else known.clamp_min(1))  # rounded logarithms do not sum to 1
    p_rest = torch.zeros_like(known) if whole else (1 - known).clamp_min(0)
    z.div_(temperature)
    z.sub_(z.amax(-1, keepdim=True))
    inside = z.gather(1, ids)
    z.exp_().scatter_(1, ids, 0)
    e = inside.exp()
    R = z.sum(-1, keepdim=True)
    S = R + e.sum(-1, keepdim=True)
    rest = R.clamp_min(torch.finfo(z.dtype).tiny)  # 0 where a student is surer than exp can tell
    nats = (torch.xlogy(p, p) - p * (inside - S.log())).sum(-1, keepdim=True)
    nats += torch.xlogy(p_rest, p_rest) - p_rest * (rest.log() - S.log())
    scale = weights.unsqueeze(-1) * temperature
    z.mul_(scale * (1 / S - p_rest / rest)).scatter_(1, ids, scale * (e / S - p))
    return (nats * scale).sum() * temperature, z


def surprise(z: Tensor, targets: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """The weighted sum over rows of ``-log q(target)``, and its gradient, written over ``z``."""
    ids, scale = targets.long().clamp_min(0).unsqueeze(-1), weights.unsqueeze(-1)
    z.sub_(z.amax(-1, keepdim=True))
    at_target = z.gather(1, ids)
    S = z.exp_().sum(-1, keepdim=True)
    total = ((S.log() - at_target) * scale).sum()
    return total, z.mul_(scale / S).scatter_add_(1, ids, -scale)


def through_head(hidden: Tensor, weight: Tensor, bias: Tensor | None, goal: Goal) -> Tensor:
    """The mean loss of the logits ``hidden W^T + b``."""
    asked = tuple(
        torch.is_grad_enabled() and t is not None and t.requires_grad
        for t in (hidden, weight, bias)
    )
    return cast(Any, _ThroughHead.apply(hidden, weight, bias, goal, asked))[0]


def of_logits(logits: Tensor, goal: Goal) -> Tensor:
    """The mean loss of logits that are there."""
    return cast(Any, _OfLogits.apply(logits, goal))[0]


class _ThroughHead(torch.autograd.Function):
    """The loss of hidden states, with its gradients by them and by the output embedding."""

    @staticmethod
    def forward(  # type: ignore[override]
        hidden: Tensor, weight: Tensor, bias: Tensor | None, goal: Goal, asked: tuple[bool, ...]
    ) -> tuple[Tensor | None, ...]:
        kind, exact = hidden.device.type, goal.counts.dtype
        fast = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else hidden.dtype
        h, W, b = hidden.to(fast), weight.to(fast), None if bias is None else bias.to(fast)
        given = (hidden, weight, hidden.new_empty(len(W)))
        made = [
            torch.zeros_like(t, dtype=exact) if a else None
            for t, a in zip(given, asked, strict=True)
        ]
        nats = goal.counts.new_zeros(())
        with torch.autocast(kind, enabled=False):
            for at in goal.chunks():
                grad = F.linear(h[at], W, b)
                nats += goal.over(grad, at, made[2])
                if made[0] is not None:
                    made[0][at] = grad @ W
                if made[1] is not None:
                    made[1] += grad.mT @ h[at]
        kinds = (hidden.dtype, weight.dtype, None if bias is None else bias.dtype)
        means = (
            None if g is None else g.div_(goal.total).to(k)
            for g, k in zip(made, kinds, strict=True)
        )
        return nats / goal.total, *means

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Any, ...]) -> None:  # noqa: ARG004
        made = output[1:]
        ctx.set_materialize_grads(False)  # of gradients nobody asks for gradients
        ctx.mark_non_differentiable(*(grad for grad in made if grad is not None))
        ctx.save_for_backward(*made)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        by = grads[0]
        saved = (None if by is None or g is None else g * by.to(g.dtype) for g in ctx.saved_tensors)
        return *saved, None, None


class _OfLogits(torch.autograd.Function):
    """The loss of logits, with its gradient by them in their dtype."""

    @staticmethod
    def forward(logits: Tensor, goal: Goal) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        nats, made = goal.counts.new_zeros(()), torch.empty_like(logits)
        for at in goal.chunks():
            more, grad = goal.part(logits[at].to(goal.counts.dtype, copy=True), at)
            nats += more
            made[at] = grad / goal.total
        return nats / goal.total, made

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Any, ...]) -> None:  # noqa: ARG004
        ctx.set_materialize_grads(False)
        ctx.mark_non_differentiable(output[1])
        ctx.save_for_backward(output[1])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        by, (made,) = grads[0], ctx.saved_tensors
        return None if by is None else made * by.to(made.dtype), None
