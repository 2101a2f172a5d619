"""The dry run: every parameter, what it would become at a budget, or why it is left alone."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import SupportsFloat, cast

import torch
from torch import Tensor, nn

from bondwise.choose.by_rank import ByRank, builder, check_keep, format_of, uniform
from bondwise.choose.select import Patterns, Weight, listed, matches, select
from bondwise.choose.table import Line, Table, changed
from bondwise.errors import BudgetError, number


def plan_model(
    model: nn.Module,
    keep: SupportsFloat = 0.6,
    targets: Patterns = "auto",
    ignore: Patterns = (),
    format: str = "auto",  # noqa: A002
    protect: Patterns = (),
) -> Table:
    """Dry run: every parameter, what it would become at this budget, or why it is left alone.

    Args:
        model: any module; it is only looked at.
        keep: fraction of the targeted weights' numbers that stays, in (0, 1].
        targets: patterns of what to change (see `bondwise.choose.select.select`).
        ignore: patterns of what to leave alone, on top of the head, tied weights and routers.
        format: "auto", a topology's name, or an einsum whose sizes are chosen for each weight.
        protect: patterns of weights that count in the budget but stay dense.

    Raises:
        SelectionError: a target matches nothing.
        BudgetError: keep is outside (0, 1] or out of reach.

    >>> from bondwise import plan_model
    >>> print(plan_model(nn.Sequential(nn.Linear(64, 64)), keep=0.6))
    0                                             64x64 lowrank 23, 4,096 -> 2,417
    0.bias                                           64 left alone: not a matrix
    targeted: 4,096 -> 2,417 stored numbers, kept 0.5901 of 0.6 asked
    """
    keep = number("keep", keep, BudgetError)
    check_keep(keep)
    weights, notes = select(model, targets, ignore)
    build = builder(format)
    modules = dict(model.named_modules(remove_duplicate=False))
    patterns = listed(protect)
    weights = [replace(w, protected=_guards(patterns, w, modules)) for w in weights]
    notes += [
        f"protect pattern {pattern!r} matches nothing that was chosen"
        for pattern in patterns
        if not any(_guards([pattern], w, modules) for w in weights)
    ]
    bits = {w.name: bits_of(modules[w.name]) for w in weights if w.chosen}
    networks = uniform([ByRank(w, build, bits[w.name]) for w in weights if w.chosen], keep)
    lines = [
        changed(w, format_of(format, w), networks[w.name], bits[w.name])
        if w.name in networks
        else Line(w, w.reason or _why_dense(w, keep, format), w.numbers)
        for w in weights
    ]
    table = Table(tuple(lines), keep, tuple(notes))
    if 0.98 * keep <= table.kept <= keep:
        return table
    coarse = f"ranks of {_known(format)} are coarse for these weights"
    note = f"kept {table.kept:.4f} of {keep:g} asked: {coarse}"
    return replace(table, notes=(*table.notes, note))


def bits_of(module: nn.Module) -> int:
    """Bits of a number of a module's weight."""
    return torch.finfo(cast(Tensor, module.weight).dtype).bits


def _guards(patterns: Sequence[str], weight: Weight, modules: Mapping[str, nn.Module]) -> bool:
    names = (weight.name, *weight.aliases)
    return weight.chosen and any(
        matches(pattern, name, modules[weight.name]) for pattern in patterns for name in names
    )


def _why_dense(weight: Weight, keep: float, form: str) -> str:
    if weight.protected:
        return "protected"
    return "keep is 1" if keep == 1 else f"{format_of(form, weight)} would be larger than dense"


def _known(form: str) -> str:
    return "lowrank" if form == "auto" else form
