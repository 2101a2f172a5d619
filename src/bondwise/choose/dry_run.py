"""The dry run: every parameter, what it would become at a budget, or why it is left alone."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from math import inf, isfinite
from pathlib import Path
from typing import SupportsFloat, cast

import torch
from torch import Tensor, nn

from bondwise.choose.by_rank import ByRank, builder, check_keep, format_of, uniform
from bondwise.choose.seconds.clock import WRITE, Clock, Watch, check_measured
from bondwise.choose.select import Patterns, Weight, listed, matches, select
from bondwise.choose.table import Line, Table, changed
from bondwise.errors import BudgetError, DataError, number
from bondwise.network.network import Network


def plan_model(
    model: nn.Module,
    keep: SupportsFloat = 0.6,
    targets: Patterns = "auto",
    ignore: Patterns = (),
    format: str = "auto",  # noqa: A002
    protect: Patterns = (),
    unit: str = "params",
    measurements: str | Path | None = None,
) -> Table:
    """Dry run: every parameter, what it would become at this budget, or why it is left alone.

    Args:
        model: any module; it is only looked at.
        keep: fraction of the targeted weights' numbers that stays, in (0, 1].
        targets: patterns of what to change (see `bondwise.choose.select.select`).
        ignore: patterns of what to leave alone, on top of the head, tied weights and routers.
        format: "auto", a topology's name, or an einsum whose sizes are chosen for each weight.
        protect: patterns of weights that count in the budget but stay dense.
        unit: what ``keep`` is a fraction of: "params", or "seconds" of prepared layers, the numbers
            of rows in the file counting alike.
        measurements: the file of measurements that seconds are read off, as `bondwise bench MODEL
            --measurements FILE` writes it.

    Raises:
        SelectionError: a target matches nothing.
        BudgetError: keep is outside (0, 1] or out of reach, or there are no seconds without a file.
        DataError: the file cannot be used, or a weight was not measured.

    >>> from bondwise import plan_model
    >>> print(plan_model(nn.Sequential(nn.Linear(64, 64)), keep=0.6))
    0                                             64x64 lowrank 23, 4,096 -> 2,417
    0.bias                                           64 left alone: not a matrix
    targeted: 4,096 -> 2,417 stored numbers, kept 0.5901 of 0.6 asked
    """
    keep = number("keep", keep, BudgetError)
    check_unit(unit, measurements)
    clock = None if measurements is None else Clock.read(measurements)
    return planned(model, keep, targets, ignore, format, protect, clock)


def planned(
    model: nn.Module,
    keep: float,
    targets: Patterns,
    ignore: Patterns,
    format: str,  # noqa: A002
    protect: Patterns,
    clock: Clock | None = None,
) -> Table:
    """What `plan_model` does, with the clock of the seconds that it counts, or None for numbers."""
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
    chosen = {w.name: modules[w.name] for w in weights if w.chosen}
    watch = None if clock is None else clock.on({n: clock.placed(m) for n, m in chosen.items()})
    bits = {name: bits_of(module) for name, module in chosen.items()}
    series = [
        ByRank(w, build, bits[w.name], None if watch is None else partial(_share, watch, w.name))
        for w in weights
        if w.chosen
    ]
    left = [] if watch is None else _unmeasured(watch, series, format)
    networks = uniform(series, keep)
    lines = [
        changed(w, format_of(format, w), networks[w.name], bits[w.name])
        if w.name in networks
        else Line(w, w.reason or _why_dense(w, keep, format, clock), w.numbers)
        for w in weights
    ]
    table = Table(tuple(lines), keep, (*notes, *left))
    note = _kept(table, format) if watch is None else _spent(series, networks, keep)
    return replace(table, notes=(*table.notes, *note))


def _share(watch: Watch, name: str, net: Network | None) -> float:
    """What a network, or the dense weight, takes of the seconds of all; infinite where unknown."""
    seconds = watch.seconds(name, () if net is None else (net,))
    return inf if seconds is None else watch.share(seconds)


def _unmeasured(watch: Watch, series: Sequence[ByRank], form: str) -> list[str]:
    """Where the seconds are from, and what was not measured.

    Raises:
        DataError: nothing was in this format.
    """
    left = [(format_of(form, n.weight), n.weight.name) for n in series if not isfinite(n.spent(1))]
    notes = watch.unmeasured(left)
    if notes and len(left) == len(series):
        raise DataError(f"{notes[0]}; {WRITE}, or write another format.")
    return [watch.told, *notes]


def _kept(table: Table, form: str) -> list[str]:
    """A note where the budget is not met as well as ranks could."""
    if 0.98 * table.keep <= table.kept <= table.keep:
        return []
    coarse = f"ranks of {_known(form)} are coarse for these weights"
    return [f"kept {table.kept:.4f} of {table.keep:g} asked: {coarse}"]


def _spent(series: Sequence[ByRank], networks: Mapping[str, Network], keep: float) -> list[str]:
    """A note on the seconds that are left."""
    kept = sum(
        n.dense if net is None or n.price is None else n.price(net)
        for n in series
        for net in [networks.get(n.weight.name)]
    )
    return [f"kept {kept:.4f} of {keep:g} asked, counted in seconds"]


def check_unit(unit: str, measurements: object) -> None:
    """Refuse a unit that a dry run does not count, and seconds without a file.

    Raises:
        BudgetError: saying what to write.
    """
    if unit not in ("params", "seconds"):
        raise BudgetError(
            f"unit={unit!r} came; a plan counts params or seconds: write one of them, or compress "
            "with data."
        )
    check_measured(unit, measurements)


def bits_of(module: nn.Module) -> int:
    """Bits of a number of a module's weight."""
    return torch.finfo(cast(Tensor, module.weight).dtype).bits


def _guards(patterns: Sequence[str], weight: Weight, modules: Mapping[str, nn.Module]) -> bool:
    names = (weight.name, *weight.aliases)
    return weight.chosen and any(
        matches(pattern, name, modules[weight.name]) for pattern in patterns for name in names
    )


def _why_dense(weight: Weight, keep: float, form: str, clock: Clock | None) -> str:
    if weight.protected:
        return "protected"
    if keep == 1:
        return "keep is 1"
    own = format_of(form, weight)
    if clock is not None:
        return f"{own} would take as long as dense, or was not measured"
    return f"{own} would be larger than dense"


def _known(form: str) -> str:
    return "lowrank" if form == "auto" else form
