"""The way of a weight into a network: select, calibrate, survey, budget, fit, store, swap."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, SupportsFloat, SupportsIndex

import torch
from torch import nn

from bondwise.checkpoint.hub import attach
from bondwise.choose import cost
from bondwise.choose.allocations import Budget
from bondwise.choose.candidates import Candidate, Group
from bondwise.choose.dry_run import bits_of, planned
from bondwise.choose.losses.reference import Reference
from bondwise.choose.scout import scout
from bondwise.choose.seconds.clock import Clock
from bondwise.choose.seconds.place import Place
from bondwise.choose.select import Patterns, check_finite, listed
from bondwise.choose.survey import Survey, survey, survey_groups
from bondwise.choose.table import Line, Table, decided
from bondwise.compress.blockwise import Fitted, Fitting, Picks, best, fit_chains, fit_layers
from bondwise.compress.effort import EFFORT, Effort
from bondwise.compress.fold import folded, pairs
from bondwise.compress.measured import clock_of
from bondwise.compress.recipe import Recipe, check_choices, dtype_name
from bondwise.compress.recipe import dtype as dtype_of
from bondwise.compress.result import Result
from bondwise.compress.shown.calibrated import (
    SAMPLES,
    Calibrated,
    calibrate,
    held_apart,
    listed_batches,
)
from bondwise.compress.swap import apart, cast, check_copy, footprint, swap, with_modules
from bondwise.errors import BudgetError, number, whole_number
from bondwise.flow.chains.blocks import holds
from bondwise.flow.copies import normal
from bondwise.flow.data import Batch, evaluating, part, samples
from bondwise.flow.doors import check_call, check_switch, check_tokenizer, check_whole
from bondwise.flow.first_run import FirstRun
from bondwise.flow.watch import unpadded
from bondwise.layers.hosts.convolution import convolves, geometry_of
from bondwise.layers.hosts.registry import matrix_of
from bondwise.progress import Progress, Steps, silent


def tensorize(
    model: nn.Module,
    keep: SupportsFloat = 0.6,
    data: Any = None,
    *,
    tokenizer: Any = None,
    targets: Patterns = "auto",
    ignore: Patterns = (),
    protect: Patterns = (),
    format: str = "auto",  # noqa: A002
    effort: str = "fast",
    prefer: str = "speed",
    unit: str = "params",
    measurements: str | Path | None = None,
    seed: SupportsIndex = 0,
    windows: SupportsIndex = 64,
    length: SupportsIndex = 256,
    dtype: torch.dtype | None = None,
    fold: bool = True,
    inplace: bool = False,
    progress: Progress = silent,
) -> Result:
    """A model whose dense weights are tensor networks, at a budget of stored numbers.

    With data, every network is fitted in the metric of its weight's own inputs,
    ``min ||(W - W~) X||`` (low rank in closed form: Wang et al. 2024, SVD-LLM), block by block on
    what the compressed blocks before it give, and each block is then refined to the output of the
    dense one (Wang et al. 2025, AA-SVD). With ``format="auto"`` one budget is spread over all
    weights by how much their errors change the model's output. Networks are stored gauge-free:
    ``r(m+n-r)`` numbers for low rank.

    Args:
        model: any module. It is left as it was, and shares nothing with the result: what did not
            change is copied, which takes its bytes once more. ``inplace=True`` swaps in the given
            one and copies nothing. What was frozen stays so: a parameter that is kept asks for
            gradients where it did, and a network where the weight that it stands for did.
        keep: fraction of the targeted weights' numbers that stays; met within 2 %, never exceeded.
        data: text (a path, a string or a list of strings) or chats, with ``tokenizer``; a tensor, a
            list of rows or batches, a ``datasets.Dataset``, a DataLoader, a generator: see
            `bondwise.flow.forms.door`.
        tokenizer: a Hugging Face tokenizer, for text, chats and padding.
        targets: see `plan_model`.
        ignore: see `plan_model`.
        protect: see `plan_model`.
        format: see `plan_model`.
        effort: "fast" or "best": how long blocks are refined, and how many allocations are tried.
        prefer: "speed" leaves out what needs as many multiplications as dense or more, and says so
            where the budget cannot be met that way; "size" and "quality" leave out nothing. With
            data and ``format="auto"``.
        unit: what ``keep`` is a fraction of: "params", or "seconds" of prepared layers; with data
            and ``format="auto"`` also "bytes", or "macs" for a token. A note of the table says what
            was kept in another unit.
        measurements: the file that seconds are read off, as `bondwise bench MODEL --measurements
            FILE` writes it: of the machine that the result is for, which need not be this one. The
            numbers of rows in the file count alike; the same file gives the same result.
        seed: which windows of the text, and the starts of fits that have random ones.
        windows: windows of text, rows of a data set, or samples of a generator, at most.
        length: tokens of a window, or of a piece of a chat; at most as many as the model has
            positions for.
        dtype: of the result's parameters, each by default its own. Networks are rounded to it
            where they are stored, in the metric of their inputs: a cast afterwards loses more.
        fold: with data, multiply the scale of a BatchNorm into the targeted layer before it, so
            that errors are those of what leaves the norm; see `bondwise.compress.fold`.
        inplace: change the given model.
        progress: called with (stage, done, total).

    Raises:
        SelectionError: a target matches nothing, the model's numbers are not all here (on meta,
            offloaded, sharded, quantised), or the result does not run on the first batch.
        FitError: a weight is not finite.
        BudgetError: keep is outside (0, 1] or out of reach, or a choice is none.
        DataError: data, a tokenizer or measurements that cannot be used, such as those of a model
            with other shapes.

    >>> from bondwise import tensorize
    >>> result = tensorize(nn.Sequential(nn.Linear(64, 64)), keep=0.6, data=torch.randn(500, 64))
    >>> result.model(torch.zeros(2, 64)).shape
    torch.Size([2, 64])
    """
    recipe = Recipe(
        type(model).__name__,
        keep=number("keep", keep, BudgetError),
        targets=tuple(listed(targets)),
        ignore=tuple(listed(ignore)),
        protect=tuple(listed(protect)),
        format=format,
        effort=effort,
        prefer=prefer,
        unit=unit,
        measurements=str(measurements) if isinstance(measurements, Path) else measurements,
        seed=whole_number("seed", seed, BudgetError, 0),
        windows=whole_number("windows", windows),
        length=whole_number("length", length, example=256),
        dtype=dtype_name(dtype),
        fold=fold,
    )
    return follow(recipe, model, data, tokenizer, inplace=inplace, progress=progress)


@torch.inference_mode(False)
def follow(
    recipe: Recipe,
    model: nn.Module,
    data: Any = None,
    tokenizer: Any = None,
    *,
    inplace: bool = False,
    progress: Progress = silent,
) -> Result:
    """What `tensorize` does, with its choices in a recipe: every station once, in their order."""
    check_whole(model)
    check_choices(recipe, given=data is not None)
    check_switch("inplace", inplace)
    check_switch("fold", recipe.fold)
    check_tokenizer(tokenizer)
    check_call("progress", progress)
    steps = Steps()
    work = _select(normal(model), recipe, data is not None, clock_of(recipe))
    if data is None:
        if not inplace:
            check_copy(model)
        with steps("fit"):
            done = _without_data(work, progress)
    else:
        check_copy(model)
        done = _with_data(work, data, tokenizer, steps, progress)
    table = work.table.with_lines(done.lines)
    table = replace(table, notes=(*table.notes, *done.notes))
    before = footprint(model)
    result = _changed(model, work, done, inplace)
    attach(result)
    after = footprint(result)
    return Result(result, table, recipe.seed, steps.done, before, after, done.fitted.refined)


FOLDED, ALIKE = 4, 1e-4  # samples on which norms are moved, and the squared error of rounding


@dataclass(frozen=True, eq=False)
class _Work:
    """The weights of a model that may change, and what was asked; nothing is computed yet."""

    model: nn.Module
    recipe: Recipe
    table: Table
    lines: Mapping[str, Line]
    clock: Clock | None = None

    @property
    def effort(self) -> Effort:
        return EFFORT[self.recipe.effort]

    @property
    def dtype(self) -> torch.dtype | None:
        return dtype_of(self.recipe.dtype)

    @property
    def how(self) -> Fitting:
        return Fitting(self.effort.steps, self.effort.rate, self.recipe.seed, self.dtype)

    @property
    def budget(self) -> Budget:
        r = self.recipe
        protect = frozenset(n for n, line in self.lines.items() if line.weight.protected)
        return Budget(r.keep, r.unit, r.prefer, protect, self.effort.alphas)


@dataclass(frozen=True, eq=False)
class _Done:
    """New modules, the lines of the table that are known better now, notes, and a first run.

    ``folded`` are layers and norms that were the same in another form before anything was fitted.
    """

    fitted: Fitted
    lines: dict[str, Line]
    notes: Sequence[str]
    first: FirstRun | None = None
    folded: Mapping[str, nn.Module] = field(default_factory=dict[str, nn.Module])

    @property
    def modules(self) -> dict[str, nn.Module]:
        """All that takes the place of what was there."""
        new = self.fitted.modules
        left = {p: m for p, m in self.folded.items() if not any(holds(path, p) for path in new)}
        return left | new


def _changed(model: nn.Module, work: _Work, done: _Done, inplace: bool) -> nn.Module:
    """The model with its new layers, or a copy; where it does not run, all is as it was."""
    modules, name = done.modules, work.recipe.dtype
    if inplace:
        if done.first:
            shared = work.dtype is None
            trial = with_modules(model, modules) if shared else apart(model, modules, work.dtype)
            cast(trial, name)
            done.first.check(trial)
        swap(model, modules)
    result = model if inplace else apart(model, modules, work.dtype)
    cast(result, name)
    if done.first and not inplace:
        done.first.check(result)
    return result


def _select(model: nn.Module, recipe: Recipe, data: bool, clock: Clock | None) -> _Work:
    """Which weights may change; with data and no format asked, any that the patterns chose."""
    r = recipe
    free = data and r.format == "auto" and r.keep < 1
    own = None if free else clock  # what is chosen with data is timed once it is known
    table = planned(model, r.keep, r.targets, r.ignore, r.format, r.protect, own)
    for line in table:
        if line.changes:
            check_finite(line.name, matrix_of(model.get_submodule(line.name)))
    lines = {line.name: line for line in table if line.changes or (free and line.weight.chosen)}
    if clock is not None:
        layers = {name: model.get_submodule(name) for name in lines}
        clock.check({n: Place.of(m) for n, m in layers.items() if geometry_of(m) is None})
    if free:  # what the dry run could not meet says nothing of the budget to come
        table = replace(table, notes=tuple(note for note in table.notes if "coarse" not in note))
    return _Work(model, recipe, table, lines, clock)


def _without_data(work: _Work, progress: Progress) -> _Done:
    """Every weight for itself, in the format and at the rank that the dry run gave it."""
    picks = _asked(work)
    weights = {name: matrix_of(work.model.get_submodule(name)) for name in picks}
    groups = [Group({name: weight}) for name, weight in weights.items()]
    fitted = fit_layers(work.model, groups, picks, work.how, progress)
    return _Done(fitted, _lines(work, picks, None, fitted), [])


def _with_data(work: _Work, data: Any, tokenizer: Any, steps: Steps, progress: Progress) -> _Done:
    """One budget over all weights, fitted block by block to what the model is shown."""
    model, recipe = work.model, work.recipe
    listed, notes = listed_batches(model, recipe, data, tokenizer)
    if not work.lines:
        return _Done(Fitted(), {}, notes)
    most = SAMPLES if convolves(model) else None
    first = FirstRun.of(model, held_apart(listed).first)
    scaled = _folded(work, listed[0])
    if scaled:
        model = with_modules(model, scaled)
        work = replace(work, model=model)
        notes.append(f"{len(scaled) // 2} norms have their scale in the layer before them")
    with evaluating(model):
        layers = {name: model.get_submodule(name) for name in work.lines}
        shown = held_apart(unpadded(model, layers, listed), most)
        with steps("draw"):
            shown = shown.with_drawn(model, work.effort.drawn, recipe.seed, progress)
        with steps("calibrate"):
            seen = calibrate(model, work.lines, shown, progress)
        with steps("survey"):
            reference, found = _survey(work, seen, progress)
            if found is not None and work.clock is not None:
                found, timed = found.timed(work.clock)
                notes += timed
            allocations, missed = work.budget.allocations(found) if found else ([_asked(work)], [])
        with steps("fit"):
            picks = best(model, seen, allocations, reference, work.how)
            fitted = fit_chains(model, seen, picks, work.how, progress)
            outside = {n: picks[n] for group in seen.outside for n in group.weights if n in picks}
            fitted.add(fit_layers(model, seen.outside, outside, work.how))
    notes += [f"no token but zeros reached {n}: fitted to the weight alone" for n in fitted.unseen]
    notes += missed + (work.budget.spent(found, picks) if found else [])
    if not shown.held_out:
        notes.append("one sample came: errors are those of the tokens that were fitted on")
    return _Done(fitted, _lines(work, picks, found, fitted), notes, first, scaled)


def _folded(work: _Work, batch: Batch) -> dict[str, nn.Module]:
    """Targeted layers with the scale of the norm behind them, and those norms without."""
    if not work.recipe.fold:
        return {}
    found = pairs(work.model, batch)
    made = folded(work.model, [pair for pair in found if pair.layer in work.lines])
    if made:  # code that reads a norm's or a layer's numbers itself would see others
        few = part(batch, 0, min(FOLDED, samples(batch)))
        reference = Reference.of(work.model, few)
        same = reference is None or reference.distance(with_modules(work.model, made)) < ALIKE
        made = made if same else {}
    return made


def _survey(
    work: _Work, seen: Calibrated, progress: Progress
) -> tuple[Reference | None, Survey | None]:
    """Candidates and sensitivities of all weights; none where a format was asked for."""
    recipe, effort, model = work.recipe, work.effort, work.model
    if recipe.format != "auto":
        return None, None
    kernels = convolves(model)
    units = [block for chain in seen.chains for block in chain.blocks] if kernels else []
    reference = Reference.of(model, seen.shown.compared, units)
    bits = bits_of(model.get_submodule(next(iter(work.lines))))
    found = Survey([], {})
    for chain in seen.as_given().chains:
        alike = len(chain.blocks) > 1  # what is like no other is not worth a scout
        scouted = scout(
            model, chain,
            keep=recipe.keep, bits=bits, prefer=recipe.prefer, formats=effort.formats * alike,
        )  # fmt: skip
        more = survey(
            model, chain, reference,
            bits=bits, every=effort.every, formats=effort.exact, scouted=scouted, progress=progress,
        )  # fmt: skip
        found = found.with_rest(more)
    more = survey_groups(model, seen.outside, reference, bits, effort.exact, curves=kernels)
    return reference, found.with_rest(more)


def _asked(work: _Work) -> dict[str, Candidate]:
    """What the dry run chose, as candidates whose errors are not known yet."""
    found: dict[str, Candidate] = {}
    for name, line in work.lines.items():
        if line.network is not None:
            price = cost.network(line.network, bits_of(work.model.get_submodule(name)))
            form = line.format or work.recipe.format
            found[name] = Candidate.of(name, form, (line.network,), price, 1.0)
    return found


def _lines(work: _Work, picks: Picks, found: Survey | None, fitted: Fitted) -> dict[str, Line]:
    """The lines of the table, with what was chosen and the errors of the fits."""
    groups = {c.weight: g for g in (found.groups if found else []) for c in g}
    lines: dict[str, Line] = {}
    for name, line in work.lines.items():
        if name in groups:
            line = decided(line.weight, picks[name], groups[name])
        if name in fitted.errors:
            error, held_out = fitted.errors[name]
            line = replace(line, error=error, held_out=held_out)
        lines[name] = line
    return lines
