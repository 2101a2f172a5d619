"""The input along its path: matmuls and views, in chunks that stay in the cache, and back."""

from collections.abc import Sequence
from functools import cache
from math import prod
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import forward_ad

from bondwise.compute.plan import FEWEST_ROWS, Plan
from bondwise.compute.product import multiply, take
from bondwise.compute.steps import Step, View
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
    asked = graded(x, *weights)
    if asked and not fits(plan, rows.shape[0], rows.requires_grad):
        y = through(_Chunked, plan, rows, *weights)
    elif asked or _plain():
        y = walk(plan, weights, rows)
    else:
        y = in_chunks(plan, weights, rows, plan.chunk)
    y = y.reshape(*x.shape[:-1], out)
    return y if bias is None else y + bias.to(y.dtype)


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


def through(function: type[torch.autograd.Function], plan: Plan, *values: Tensor) -> Tensor:
    """A function of a plan and tensors, these in autocast's dtype where it is on."""
    kind = values[0].device.type
    if kind == "meta" or not torch.is_autocast_enabled(kind):
        return cast(Tensor, function.apply(plan, *values))
    lower = torch.get_autocast_dtype(kind)
    with torch.autocast(kind, enabled=False):
        return cast(Tensor, function.apply(plan, *(value.to(lower) for value in values)))


def _plain() -> bool:
    """Whether plain ops are wanted: by a compiler, ``torch.func`` or forward mode."""
    return torch.compiler.is_compiling() or bool(
        torch._C._are_functorch_transforms_active()  # pyright: ignore
        or forward_ad._current_level >= 0  # pyright: ignore
    )


class _Chunked(torch.autograd.Function):
    """The path, whose values are computed again for the gradient, so many rows at a time."""

    @staticmethod
    def forward(ctx: Any, plan: Plan, rows: Tensor, *weights: Tensor) -> Tensor:
        ctx.plan = plan
        ctx.save_for_backward(rows, *weights)
        return in_chunks(plan, weights, rows, _training_rows(plan))

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        rows, *weights = ctx.saved_tensors
        wanted = ctx.needs_input_grad[1:]
        return (None, *_backward(ctx.plan, rows, weights, grads[0], wanted))


@cache
def _peaks(plan: Plan) -> tuple[tuple[int, int], ...]:
    """Numbers held at each step back by autograd: for each row, and for any number of them.

    Those of the inputs, the outputs and the gradient of these are not counted, which dense has too.
    """
    weights = [
        prod(step.extents[2:]) * (step.extents[0] if step.kind in ("bmm", "mul") else 1)
        for step in plan.path
    ]
    held = plan.network.parameters + sum(step.numbers for step in plan.weights)
    found = list[tuple[int, int]]()
    kept, last = 0, len(plan.path) - 1
    for at, step in enumerate(plan.path):
        entering, leaving = step.extents[3] * _per_row(plan, step), step.numbers // plan.batch
        copied = bool(step.left_view and step.left_view.order)
        kept += entering if at or copied else 0
        moved = at < last or bool(plan.program.result and plan.program.result.order)
        spread = step.extents[0] // plan.batch * weights[at] if step.kind == "push" else 0
        own = kept + entering * (2 if copied else 1) + leaving * moved + spread
        found.append((own, held + sum(weights[at:])))
    return (*found, (plan.shape[1], 2 * held))


def fits(plan: Plan, rows: int, grows: bool = True) -> bool:
    """Whether a layer that keeps the values on the path trains in no more memory than dense.

    Which holds its weight and the gradient of that and, at the end, that of the inputs.

    Args:
        plan: whose weight is not made whole.
        rows: of the input.
        grows: whether the gradient of the inputs is asked for.

    >>> from bondwise import lowrank
    >>> from bondwise.compute.plan import plan
    >>> [fits(plan(lowrank(64, 64, 16)), rows) for rows in (64, 1024)]
    [True, False]
    """
    room = 2 * prod(plan.shape) + rows * plan.shape[1] * grows
    return all(rows * each + fixed <= room for each, fixed in _peaks(plan))


def _per_row(plan: Plan, step: Step) -> int:
    g, m, _, _ = step.extents
    return g * m // plan.batch


def _training_rows(plan: Plan) -> int:
    """As many at a time as the plan says, but few enough that a layer trains in dense's memory."""
    room, inp = 2 * prod(plan.shape), plan.shape[1]
    few = min((room - fixed) // (each + 2 * inp) for each, fixed in _peaks(plan))
    return max(FEWEST_ROWS, min(plan.chunk or BACKWARD_ROWS, BACKWARD_ROWS, few))


def _backward(
    plan: Plan,
    rows: Tensor,
    weights: Sequence[Tensor],
    grad: Tensor,
    wanted: Sequence[bool],
) -> list[Tensor | None]:
    """Gradients of the rows and of each weight, where wanted."""
    size = _training_rows(plan)
    found = rows.new_empty(rows.shape) if wanted[0] else None
    totals: list[Tensor | None] = [None] * len(weights)
    for start in range(0, max(1, rows.shape[0]), size):
        chunk, d_chunk = rows[start : start + size], grad[start : start + size]
        lefts = _lefts(plan, chunk, weights)
        d_rows, totals = _back(plan, chunk, weights, lefts, d_chunk, wanted, totals)
        if d_rows is not None and found is not None:
            found[start : start + size] = d_rows
    return [found, *totals]


def _lefts(plan: Plan, rows: Tensor, weights: Sequence[Tensor]) -> list[Tensor]:
    """The left operand of each step."""
    value, found = rows.reshape(plan.entry), list[Tensor]()
    for step, weight in zip(plan.path, weights, strict=True):
        found.append(take(value, step.left_view))
        if step is not plan.path[-1]:
            value = multiply(step, found[-1], weight).reshape(step.shape)
    return found


def _back(
    plan: Plan,
    rows: Tensor,
    weights: Sequence[Tensor],
    lefts: list[Tensor],
    grad: Tensor,
    wanted: Sequence[bool],
    totals: Sequence[Tensor | None],
) -> tuple[Tensor | None, list[Tensor | None]]:
    """Gradients of the rows and of each weight, from the last step to the first.

    Those of the weights are added to the totals of earlier rows.
    """
    path = plan.path
    shapes = [plan.entry, *(step.shape for step in path)]
    grad = _untake(grad, plan.program.result, _sized(shapes[-1], rows.shape[0]))
    found = list(totals)
    for at in reversed(range(len(path))):
        step, left, weight = path[at], lefts.pop(), weights[at]
        grad = grad.reshape(_result(step, left, weight))
        if wanted[at + 1]:
            found[at] = _weight_gradient(step, left, weight, grad, found[at])
        if not any(wanted[: at + 1]):
            return None, found
        grad = _left_gradient(step, grad, weight, left)
        grad = _untake(grad, step.left_view, _sized(shapes[at], rows.shape[0]))
    return grad.reshape(rows.shape), found


def _sized(shape: Sequence[int], rows: int) -> list[int]:
    return [rows if size < 0 else size for size in shape]


def _untake(grad: Tensor, view: View | None, shape: Sequence[int]) -> Tensor:
    """The gradient of a value from that of the operand taken from it; sums do not occur."""
    if view is None or not view.order:
        return grad.reshape(shape)
    grad = grad.reshape([shape[axis] for axis in view.order])
    back = sorted(range(len(view.order)), key=lambda axis: view.order[axis])
    return grad.permute(back)


def _result(step: Step, left: Tensor, weight: Tensor) -> tuple[int, ...]:
    if step.kind == "linear":
        return left.shape[0], weight.shape[0]
    if step.kind == "push":
        return left.shape[0], weight.shape[0], left.shape[2]
    return weight.shape[0], left.shape[1], weight.shape[1 if step.kind == "bmm" else 2]


def _weight_gradient(
    step: Step, left: Tensor, weight: Tensor, grad: Tensor, total: Tensor | None
) -> Tensor:
    if total is not None and step.kind in ("linear", "bmm") and not torch.is_grad_enabled():
        add = total.addmm_ if step.kind == "linear" else total.baddbmm_
        return add(grad.mT, left)
    own = _own_gradient(step, left, weight, grad)
    if total is None:
        return own
    return total + own if torch.is_grad_enabled() else total.add_(own)


def _own_gradient(step: Step, left: Tensor, weight: Tensor, grad: Tensor) -> Tensor:
    if step.kind == "linear":
        return grad.mT @ left
    if step.kind == "push":  # (G N M), (G K M)
        out, inp = weight.shape
        if out * inp <= (out + inp) * left.shape[2]:
            return torch.bmm(grad, left.mT).sum(0)
        return grad.transpose(0, 1).reshape(out, -1) @ left.transpose(0, 1).reshape(inp, -1).mT
    if step.kind == "bmm":
        return torch.bmm(grad.mT, left)
    return (grad * left).sum(1, keepdim=True)


def _left_gradient(step: Step, grad: Tensor, weight: Tensor, left: Tensor) -> Tensor:
    if step.kind == "linear":
        return grad @ weight
    if step.kind == "push":
        return torch.bmm(weight.mT.expand(left.shape[0], *weight.mT.shape), grad)
    if step.kind == "bmm":
        return torch.bmm(grad, weight)
    return (grad * weight).sum(2, keepdim=True)
