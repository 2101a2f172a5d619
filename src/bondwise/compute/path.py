"""The input along its path: matmuls and views, in chunks that stay in the cache."""

from collections.abc import Callable, Sequence
from math import prod
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import forward_ad
from torch.utils.checkpoint import checkpoint

from bondwise.compute.plan import FEWEST_ROWS, Plan
from bondwise.compute.product import multiply, prepare, take
from bondwise.compute.steps import Step
from bondwise.errors import ShapeError

BACKWARD_ROWS = 1024  # the most at a time: what is computed again is not kept for all


def run(plan: Plan, weights: Sequence[Tensor], x: Tensor, bias: Tensor | None = None) -> Tensor:
    """``y = W x + b`` for every x of the batch, with the weights that `prepare` made.

    Raises:
        ShapeError: x is not as wide as the weight.
    """
    out, inp = plan.shape
    if x.shape[-1:] != (inp,):
        raise unlike(x, inp)
    if plan.whole:
        return F.linear(x, weights[0], bias)  # a weight made whole: nothing lies in between
    rows = x.reshape(-1, inp)
    if graded(x, *weights):
        y = in_one_dtype(_trained, plan, rows, *weights)
    elif _plain():
        y = walk(plan, weights, rows)
    else:
        y = in_chunks(plan, weights, rows, plan.chunk)
    y = y.reshape(*x.shape[:-1], out)
    return y if bias is None else y + bias.to(y.dtype)


def whole(plan: Plan, cores: Sequence[Tensor], rows: Tensor) -> Tensor:
    """``rows W^T`` by a plan that makes W whole, where gradients follow: W is not kept for them."""
    return in_one_dtype(lambda *given: remade(_linear, *given), plan, rows, *cores)


def _linear(plan: Plan, rows: Tensor, *cores: Tensor) -> Tensor:
    (weight,) = prepare(plan, cores)
    return F.linear(rows, weight)


def unlike(x: Tensor, inp: int) -> ShapeError:
    """What to say of an x that is not as wide as the weight."""
    return ShapeError(
        f"x of shape {tuple(x.shape)} came, of width {x.shape[-1] if x.ndim else 'none'}; "
        f"the weight has {inp} columns, so write x as (.., {inp})."
    )


def walk(plan: Plan, weights: Sequence[Tensor], rows: Tensor) -> Tensor:
    """All rows along the path at once."""
    value = rows.reshape(plan.entry)
    for step, weight in zip(plan.path, weights, strict=True):
        value = multiply(step, take(value, step.left_view), weight).reshape(step.shape)
    return take(value, plan.program.result).reshape(rows.shape[0], plan.shape[0])


def in_chunks(plan: Plan, weights: Sequence[Tensor], rows: Tensor, chunk: int | None) -> Tensor:
    """Rows along the path, so many at a time; all of them for None, and on other devices."""
    if chunk is None or rows.shape[0] <= chunk or rows.device.type != "cpu":
        return walk(plan, weights, rows)
    first, *others = rows.split(chunk)
    found = walk(plan, weights, first)
    y = found.new_empty(rows.shape[0], plan.shape[0])
    places = y.split(chunk)
    places[0].copy_(found)
    for place, part in zip(places[1:], others, strict=True):
        place.copy_(walk(plan, weights, part))
    return y


def graded(*values: Tensor) -> bool:
    """Whether gradients are asked for, by means that a function of ours can serve."""
    asked = torch.is_grad_enabled() and any(value.requires_grad for value in values)
    return asked and not _plain()


def in_one_dtype(work: Callable[..., Tensor], plan: Plan, *values: Tensor) -> Tensor:
    """Work by a plan on tensors, these in autocast's dtype where it is on: each is cast once."""
    kind = values[0].device.type
    if not torch.is_autocast_enabled(kind):
        return work(plan, *values)
    lower = torch.get_autocast_dtype(kind)
    with torch.autocast(kind, enabled=False):
        return work(plan, *(value.to(lower) for value in values))


def remade(work: Callable[..., Tensor], *values: object) -> Tensor:
    """What a work gives; what lies inside it is not kept for the gradient but computed again."""
    made = checkpoint(
        work, *values, use_reentrant=False, preserve_rng_state=False, determinism_check="none"
    )
    return cast(Tensor, made)


def _plain() -> bool:
    """Whether plain ops are wanted: by a compiler, ``torch.func`` or forward mode."""
    return torch.compiler.is_compiling() or bool(
        torch._C._are_functorch_transforms_active()  # pyright: ignore
        or forward_ad._current_level >= 0  # pyright: ignore
    )


def _trained(plan: Plan, rows: Tensor, *weights: Tensor) -> Tensor:
    """The path, where gradients follow; values on it that are large are not kept for them."""
    if _small(plan, rows.shape[0], weights):
        return walk(plan, weights, rows)
    parts = [remade(walk, plan, weights, part) for part in rows.split(_training_rows(plan))]
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def _small(plan: Plan, rows: int, weights: Sequence[Tensor]) -> bool:
    """Whether the values on the path take no more than what the dense weight would, beyond ours."""
    between = sum(step.extents[3] * _per_row(plan, step) for step in plan.path[1:])
    return rows * between <= prod(plan.shape) - sum(weight.numel() for weight in weights)


def _per_row(plan: Plan, step: Step) -> int:
    g, m, _, _ = step.extents
    return g * m // plan.batch


def _training_rows(plan: Plan) -> int:
    """As many at a time as the plan says, but values of at most half the weight's size."""
    out, inp = plan.shape
    few = max(FEWEST_ROWS, out * inp // (2 * plan.width))
    return min(plan.chunk or BACKWARD_ROWS, BACKWARD_ROWS, few)
