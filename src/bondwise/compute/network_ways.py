"""The ways to run a network: orders of its products, their weights laid out, so many rows at a time."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from bondwise.compute.plan import Plan
from bondwise.compute.product import multiply, prepare, take
from bondwise.compute.ready import (
    WIDE,
    Ready,
    Run,
    Way,
    as_it_lies,
    cast,
    packed,
    packs,
    transposed,
    widened,
    widens,
)
from bondwise.compute.steps import Step, View
from bondwise.compute.ways import as_plan, programs
from bondwise.network.network import Network

CHUNKS = (512, 128, 32)  # rows at a time, where not all at once
Lay = Callable[[Tensor], Ready]


def network_ways(net: Network, cores: Sequence[Tensor], rows: int) -> Iterator[Way]:
    """Ways to push so many rows through a network, (.., in) -> (.., out).

    Each order of products comes with its weights as they lie, and has the rest in `Way.finer`. The whole weight is `bondwise.compute.ready.matrix_ways`.

    Args:
        net: the network.
        cores: whole, in core-axis order.
        rows: how many.

    >>> from bondwise import lowrank
    >>> cores = [torch.ones(6, 2), torch.ones(2, 4)]
    >>> [way.name for way in network_ways(lowrank(6, 4, 2), cores, 1)]
    ['x 1 0']
    """
    for program in programs(net):
        plan = as_plan(net, program, rows)
        name = named(plan)
        yield Way(name, partial(laid, plan, cores, name), partial(finer, plan, cores, rows))


def finer(plan: Plan, cores: Sequence[Tensor], rows: int) -> Iterator[Way]:
    """Other ways along the same order: matrices packed or transposed, in float32, in chunks."""
    name, weights = named(plan), cores[0]
    first = next((step for step in plan.path if step.kind == "linear"), None)
    if first is not None:
        yield Way(
            f"{name}, transposed", partial(laid, plan, cores, f"{name}, transposed", transposed)
        )
    if first is not None and packs(weights, rows):
        lay = partial(packed, rows=rows)
        yield Way(f"{name}, packed", partial(laid, plan, cores, f"{name}, packed", lay))
    if widens(weights):
        yield Way(f"{name}, in float32", partial(_wide, plan, cores, f"{name}, in float32"))
        yield Way(
            f"{name}, cast to float32", partial(_cast, plan, cores, f"{name}, cast to float32")
        )
    for chunk in (chunk for chunk in CHUNKS if 2 * chunk <= rows and weights.device.type == "cpu"):
        own = replace(plan, chunk=chunk)
        yield Way(f"{name}, {chunk} rows", partial(laid, own, cores, f"{name}, {chunk} rows"))


def laid(plan: Plan, cores: Sequence[Tensor], name: str, lay: Lay = as_it_lies) -> Ready:
    """The weights of a plan's path, made once; matrices laid out as asked."""
    steps, kept = list[Callable[[Tensor], Tensor]](), list[Tensor]()
    for step, weight in zip(plan.path, prepare(plan, cores), strict=True):
        if step.kind == "linear":
            matrix = lay(weight)
            kept += matrix.kept
            steps.append(partial(_linear, step, matrix.run))
        else:
            own = weight.contiguous()
            kept.append(own)
            steps.append(partial(_product, step, own))
    if _flat(plan):
        run = _chain([step.args[1] for step in steps])  # pyright: ignore
    else:
        run = partial(_along, plan, tuple(steps))
    return Ready(name, tuple(kept), run)


def named(plan: Plan) -> str:
    """The tree: "x 2 (0 1)" meets core 2 first, and then the product of the first two.

    >>> from bondwise import lowrank
    >>> from bondwise.compute.plan import plan
    >>> named(plan(lowrank(6, 4, 1), batch=8))
    'x 1 0'
    """
    count = len(plan.core_shapes)
    words = [*map(str, range(count)), "x"]
    for step in plan.steps:
        left, right = words[step.left], words[step.right]
        words.append(f"{left} {right}" if step.grows is not None else f"({left} {right})")
    return words[-1]


def _flat(plan: Plan) -> bool:
    """Whether it is matrices alone, one after the other."""
    plain = all(step.kind == "linear" and _plain(step.left_view) for step in plan.path)
    return plain and (plan.program.result is None or not plan.program.result.order)


def _plain(view: View | None) -> bool:
    return view is None or not (view.order or view.sums)


def _chain(runs: Sequence[Run]) -> Run:
    *first, last = runs

    def run(x: Tensor, bias: Tensor | None) -> Tensor:
        for product in first:
            x = product(x, None)
        return last(x, bias)

    return run


def _linear(step: Step, run: Run, value: Tensor) -> Tensor:
    return run(take(value, step.left_view), None).reshape(step.shape)


def _product(step: Step, weight: Tensor, value: Tensor) -> Tensor:
    weight = weight.to(value.dtype)  # as `cast` does with matrices
    return multiply(step, take(value, step.left_view), weight).reshape(step.shape)


def _along(
    plan: Plan, steps: Sequence[Callable[[Tensor], Tensor]], x: Tensor, bias: Tensor | None
) -> Tensor:
    out, inp = plan.shape
    rows = x.reshape(-1, inp)
    if plan.chunk is None or torch.compiler.is_compiling() or rows.shape[0] <= plan.chunk:
        y = _walk(plan, steps, rows)
    else:
        y = rows.new_empty(rows.shape[0], out)
        places = zip(y.split(plan.chunk), rows.split(plan.chunk), strict=True)
        for place, part in places:
            place.copy_(_walk(plan, steps, part))
    y = y.reshape(*x.shape[:-1], out)
    return y if bias is None else y + bias


def _walk(plan: Plan, steps: Sequence[Callable[[Tensor], Tensor]], rows: Tensor) -> Tensor:
    value = rows.reshape(plan.entry)
    for step in steps:
        value = step(value)
    return take(value, plan.program.result).reshape(rows.shape[0], plan.shape[0])


def _wide(plan: Plan, cores: Sequence[Tensor], name: str) -> Ready:
    return widened(laid(plan, [core.to(WIDE) for core in cores], name))


def _cast(plan: Plan, cores: Sequence[Tensor], name: str) -> Ready:
    return widened(laid(plan, cores, name, cast))
