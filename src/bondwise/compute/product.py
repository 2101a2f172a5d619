"""One product of two values, and a row of them: how matmuls and views stand for an einsum."""

from collections.abc import Sequence
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor

from bondwise.compute.plan import Plan
from bondwise.compute.steps import Program, Step, View


def take(value: Tensor, view: View | None) -> Tensor:
    """A value as an operand."""
    if view is None:
        return value
    if view.sums:
        value = value.sum(view.sums)
    if view.order:
        value = value.permute(view.order)
    return value.reshape(view.shape)


def multiply(step: Step, left: Tensor, right: Tensor) -> Tensor:
    """One product of two operands, as `bondwise.compute.steps.Step` has them."""
    if step.kind == "linear":
        return F.linear(left, right)
    if step.kind == "bmm":
        return torch.bmm(left, right.mT)
    if torch.compiler.is_exporting():  # all as MatMul
        return torch.matmul(right, left) if step.kind == "push" else torch.matmul(left, right)
    if step.kind == "push":
        return torch.bmm(right.expand(left.shape[0], *right.shape), left)
    return left * right


def prepare(plan: Plan, cores: Sequence[Tensor]) -> list[Tensor]:
    """The weights of a plan's path, one per step: products of cores, as the matmuls take them."""
    values: list[Tensor | None] = [*cores, None]
    for step in plan.weights:
        values.append(_product(step, values))
    return [take(_value(values, step.right), step.right_view) for step in plan.path]


def contract(program: Program, operands: Sequence[Tensor]) -> Tensor:
    """Run a program: a loop over its steps, freeing each operand when it has been used."""
    values: list[Tensor | None] = list(operands)
    for step in program.steps:
        values.append(_product(step, values))
    return take(_value(values, -1), program.result)


def _product(step: Step, values: list[Tensor | None]) -> Tensor:
    left = take(_value(values, step.left), step.left_view)
    right = take(_value(values, step.right), step.right_view)
    return multiply(step, left, right).reshape(step.shape)


def _value(values: list[Tensor | None], at: int) -> Tensor:
    value = cast(Tensor, values[at])
    values[at] = None  # an operand is used once: free it before the next product
    return value
