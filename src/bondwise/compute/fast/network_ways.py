"""The ways to run a network: orders of its products, weights laid out, rows at a time."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from bondwise.compute.fast.ready import (
    WIDE,
    Lay,
    Ready,
    Run,
    Way,
    as_it_lies,
    cast,
    lays,
    widened,
    widens,
)
from bondwise.compute.fast.ways import as_plan, programs
from bondwise.compute.plan import Plan
from bondwise.compute.product import multiply, prepare, take
from bondwise.compute.steps import Step, View
from bondwise.network.network import Network

CHUNKS = (512, 128, 32)  # rows at a time, where not all at once
Make = Callable[[Plan, Sequence[Tensor], str], Ready]


def network_ways(net: Network, cores: Sequence[Tensor], rows: int) -> Iterator[Way]:
    """Ways to push so many rows through a network, (.., in) -> (.., out).

    Each order of products comes with its weights as they lie, and has the rest in `Way.finer`. The
    whole weight is `bondwise.compute.fast.ready.matrix_ways`.

    Args:
        net: the network.
        cores: whole, in core-axis order.
        rows: how many.

    >>> from bondwise import lowrank
    >>> cores = [torch.ones(6, 2), torch.ones(2, 4)]
    >>> [way.name for way in network_ways(lowrank(6, 4, 2), cores, 1)]
    ['x 1 0']
    """
    seen = list[str]()
    for program in programs(net):
        plan = as_plan(net, program, rows)
        tree = named(plan)
        seen.append(tree)
        name = tree if seen.count(tree) == 1 else f"{tree} #{seen.count(tree)}"  # another layout
        if widens(cores[0]):
            yield _way(name, ", cast to float32", _cast, plan, cores, rows)
        yield _way(name, "", laid, plan, cores, rows)


def _way(name: str, kind: str, make: Make, plan: Plan, cores: Sequence[Tensor], rows: int) -> Way:
    own = name + kind
    return Way(
        own, partial(make, plan, cores, own), partial(_finer, name, kind, make, plan, cores, rows)
    )


def _finer(
    name: str, kind: str, make: Make, plan: Plan, cores: Sequence[Tensor], rows: int
) -> Iterator[Way]:
    """Other ways along the same order: matrices laid out in other ways, so many rows at a time."""
    like = cores[0]
    if any(step.kind == "linear" for step in plan.path) and not widens(like):
        for how, lay in lays(like, rows):
            if how:
                yield Way(name + how, partial(laid, plan, cores, name + how, lay))
    if kind:
        yield Way(f"{name}, in float32", partial(_wide, plan, cores, f"{name}, in float32"))
    if like.device.type == "cpu":
        for chunk in (chunk for chunk in CHUNKS if 2 * chunk <= rows):
            own = f"{name}{kind}, {chunk} rows"
            yield Way(own, partial(make, replace(plan, chunk=chunk), cores, own))


def laid(plan: Plan, cores: Sequence[Tensor], name: str, lay: Lay = as_it_lies) -> Ready:
    """The weights of a plan's path, made once; matrices laid out as asked."""
    steps, runs, kept = list[Callable[[Tensor], Tensor]](), list[Run](), list[Tensor]()
    for step, weight in zip(plan.path, prepare(plan, cores), strict=True):
        if step.kind == "linear":
            matrix = lay(weight)
            kept += matrix.kept
            runs.append(matrix.run)
            steps.append(partial(_linear, step, matrix.run))
        else:
            own = weight.contiguous()
            kept.append(own)
            steps.append(partial(_product, step, own))
    run = _chain(runs) if flat(plan) else partial(_along, plan, tuple(steps))
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


def flat(plan: Plan) -> bool:
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
