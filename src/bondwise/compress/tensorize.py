"""Look at everything, fit everything, then swap: dense model to tensor networks, and back."""

from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import asdict, dataclass, field, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from bondwise.checkpoint.hub import attach, detach
from bondwise.choose.budget import UNITS
from bondwise.choose.ladder import Ladder, builder, check_keep, uniform
from bondwise.choose.select import Patterns, Weight, check_finite, matches, select
from bondwise.choose.table import Row, Table, changed
from bondwise.compress.refine import Refined
from bondwise.compress.whole import Outcome, Settings, compress_whole
from bondwise.errors import BudgetError, SelectionError
from bondwise.fit.fit import fit
from bondwise.flow.data import batches
from bondwise.flow.text import fitting
from bondwise.gauge.compact import compact
from bondwise.layers.embedding import TensorEmbedding
from bondwise.layers.layers import TensorLayer, TensorLinear, dense_weight
from bondwise.progress import Progress, Steps, silent

EFFORTS, PREFERENCES = ("fast", "best"), ("speed", "size", "quality")


@dataclass(frozen=True)
class Result:
    """A tensorized model, the table of what changed, and what each step took.

    ``result.report()`` is the same as plain data, ready for JSON.
    """

    model: nn.Module
    table: Table
    seed: int
    steps: Sequence[Mapping[str, Any]]
    before: Mapping[str, int]
    after: Mapping[str, int]
    blocks: Mapping[str, Refined] = field(default_factory=dict[str, Refined])

    def report(self) -> dict[str, Any]:
        """What was asked, what was reached, and every weight, as plain data."""
        targeted = self.table.targeted
        return {
            "bondwise": version("bondwise"),
            "keep": self.table.keep,
            "kept": self.table.kept,
            "seed": self.seed,
            "targeted": {"before": targeted[0], "after": targeted[1]},
            "parameters": {"before": self.before["numbers"], "after": self.after["numbers"]},
            "weights": [row.as_dict() for row in self.table],
            "blocks": [{"name": name, **asdict(found)} for name, found in self.blocks.items()],
            "notes": list(self.table.notes),
            "steps": [dict(step) for step in self.steps],
        }


def plan_model(
    model: nn.Module,
    keep: float = 0.6,
    targets: Patterns = "linear",
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
    check_keep(keep)
    weights, notes = select(model, targets, ignore)
    build = builder(format)
    modules = dict(model.named_modules(remove_duplicate=False))
    patterns = [protect] if isinstance(protect, str) else protect
    weights = [replace(w, protected=_guards(patterns, w, modules)) for w in weights]
    notes += [
        f"protect pattern {pattern!r} matches nothing that was chosen"
        for pattern in patterns
        if not any(_guards([pattern], w, modules) for w in weights)
    ]
    bits = {w.name: _bits(modules[w.name]) for w in weights if w.chosen}
    ladders = [Ladder(w, build, bits[w.name]) for w in weights if w.chosen]
    networks = uniform(ladders, keep)
    name = "lowrank" if format == "auto" else format
    rows = [
        changed(w, name, networks[w.name], bits[w.name])
        if w.name in networks
        else Row(w, w.reason or _why_dense(w, keep, name), w.numbers)
        for w in weights
    ]
    table = Table(tuple(rows), keep, tuple(notes))
    if not 0.98 * keep <= table.kept <= keep:
        coarse = (
            f"kept {table.kept:.4f} of {keep:g} asked: ranks of {name} are coarse for these weights"
        )
        table = replace(table, notes=(*table.notes, coarse))
    return table


def tensorize(
    model: nn.Module,
    keep: float = 0.6,
    data: Any = None,
    *,
    tokenizer: Any = None,
    targets: Patterns = "linear",
    ignore: Patterns = (),
    protect: Patterns = (),
    format: str = "auto",  # noqa: A002
    effort: str = "fast",
    prefer: str = "speed",
    unit: str = "params",
    seed: int = 0,
    windows: int = 64,
    length: int = 256,
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
        model: any module. It is left as it was, and shares memory with the result only for
            parameters that did not change; ``inplace=True`` swaps in the given one.
        keep: fraction of the targeted weights' numbers that stays; met within 2 %, never exceeded.
        data: text (path or string, with ``tokenizer``), a DataLoader, a list of batches, a tensor.
        tokenizer: a Hugging Face tokenizer, for text.
        targets: see `plan_model`.
        ignore: see `plan_model`.
        protect: see `plan_model`.
        format: see `plan_model`.
        effort: "fast" or "best": how long blocks are refined, and how many allocations are tried.
        prefer: "speed" leaves out what is modelled slower than dense for a batch of 1 or of 256
            tokens (two cores may take the time of one more call), and says so where the budget
            cannot be met that way; "size" and "quality" leave out nothing. With data and
            ``format="auto"``.
        unit: what ``keep`` is a fraction of: "params", "bytes", "macs" for a token, or modelled
            "seconds"; other than params with data and ``format="auto"`` only. A note of the table
            says what was kept in another unit.
        seed: which windows of the text, and the starts of fits that have random ones.
        windows: windows of text.
        length: tokens of a window, at most as many as the model has positions for.
        inplace: change the given model.
        progress: called with (stage, done, total).

    Raises:
        SelectionError: a target matches nothing, or a weight is not finite.
        BudgetError: keep is outside (0, 1] or out of reach, or a choice is none.
        DataError: data that cannot be used.

    >>> from bondwise import tensorize
    >>> result = tensorize(nn.Sequential(nn.Linear(64, 64)), keep=0.6, data=torch.randn(500, 64))
    >>> result.model(torch.zeros(2, 64)).shape
    torch.Size([2, 64])
    """
    check_choices(effort, prefer, unit, format, data is not None)
    steps = Steps()
    table = plan_model(model, keep, targets, ignore, format, protect)
    modules = dict(model.named_modules(remove_duplicate=False))
    work = {row.name: row for row in table if row.changes}
    for name in work:
        check_finite(name, modules[name].weight)  # pyright: ignore[reportArgumentType]
    notes: list[str] = []
    done = Outcome()
    if data is None:
        with steps("fit"):
            for k, (name, row) in enumerate(work.items()):
                progress("fit", k, len(work))
                done.modules[name], done.rows[name] = _fitted(row, modules[name], seed)
            progress("fit", len(work), len(work))
    else:
        shown = fitting(model, length) if isinstance(data, str | Path) else length
        if shown < length:
            notes.append(f"windows of {shown} tokens were shown: the model has no more positions")
        seen = list(batches(data, tokenizer, count=windows, length=shown, seed=seed))
        if format == "auto" and keep < 1:
            work = {row.name: row for row in table if row.weight.chosen}
        bits = {name: _bits(modules[name]) for name in work}
        protected = frozenset(n for n, row in work.items() if row.weight.protected)
        asked = Settings(keep, format, effort, prefer, unit, seed, bits, protected)
        if work:
            done = compress_whole(model, work, seen, asked, _with, steps, progress)
    table = replace(table.with_rows(done.rows), notes=(*table.notes, *notes, *done.notes))
    before = footprint(model)
    result = model if inplace else _copy(model)
    aliases = {
        a: done.modules[n] for n in done.modules if n in work for a in work[n].weight.aliases
    }
    swap(result, done.modules | aliases)
    attach(result)
    return Result(result, table, seed, steps.done, before, footprint(result), done.blocks)


def merge(model: nn.Module, inplace: bool = False) -> nn.Module:
    """The model with every network multiplied out: dense layers that load and run without bondwise.

    Raises:
        SelectionError: the model has no tensorized layer.

    >>> from bondwise import merge, tensorize
    >>> merge(tensorize(nn.Sequential(nn.Linear(8, 8)), keep=0.5).model)
    Sequential(
      (0): Linear(in_features=8, out_features=8, bias=True)
    )
    """
    found = {
        name: module
        for name, module in model.named_modules(remove_duplicate=False)
        if isinstance(module, TensorLayer)
    }
    if not found:
        raise SelectionError(
            f"{type(model).__name__} has no tensorized layer; give one that tensorize made, or "
            "a folder that compress wrote."
        )
    dense = {layer: _dense_layer(layer) for layer in set(found.values())}
    result = model if inplace else _copy(model)
    swap(result, {name: dense[layer] for name, layer in found.items()})
    detach(result)
    return result


def swap(model: nn.Module, layers: Mapping[str, nn.Module]) -> None:
    """Put layers, or whole blocks, in the places of others, by path; all stay in their mode."""
    for path, layer in layers.items():
        parent, _, name = path.rpartition(".")
        old = model.get_submodule(path)
        training = {inside: module.training for inside, module in old.named_modules()}
        for inside, module in layer.named_modules():
            module.training = training.get(inside, old.training)
        setattr(model.get_submodule(parent), name, layer)


def _with(model: nn.Module, modules: Mapping[str, nn.Module]) -> nn.Module:
    result = _copy(model)
    swap(result, modules)
    return result


def _fitted(row: Row, module: nn.Module, seed: int) -> tuple[TensorLayer, Row]:
    """A layer fitted to the weight alone."""
    assert row.network is not None
    weight = dense_weight(module)
    done = fit(weight, row.network, seed=seed)
    stored = compact(done.network, done.cores)
    fitted = replace(row, error=done.error)
    if isinstance(module, nn.Embedding):
        return TensorEmbedding.from_compact(stored, module), fitted
    return TensorLinear.from_compact(stored, module), fitted


def _dense_layer(layer: TensorLayer) -> nn.Module:
    weight = layer.dense().detach()
    if isinstance(layer, TensorEmbedding):
        if layer.padding_idx is not None and layer.zero_padding:
            weight[layer.padding_idx] = 0
        return nn.Embedding.from_pretrained(weight, freeze=False, padding_idx=layer.padding_idx)
    assert isinstance(layer, TensorLinear)
    if layer.origin == "Conv1D":
        from transformers.pytorch_utils import Conv1D  # only where the model came from there

        dense: nn.Module = Conv1D(layer.out_features, layer.in_features)
        weight = weight.T
    else:
        dense = nn.Linear(
            layer.in_features, layer.out_features, layer.bias is not None, device="meta"
        )
    dense.weight = nn.Parameter(weight.contiguous())
    if layer.bias is not None:
        dense.bias = nn.Parameter(layer.bias.detach().clone())
    return dense


def _copy(model: nn.Module) -> nn.Module:
    """A copy of the modules with the same parameters, so that only what is swapped takes memory."""
    return deepcopy(model, {id(parameter): parameter for parameter in model.parameters()})


def footprint(model: nn.Module) -> dict[str, int]:
    """Parameters of a model, bytes of its parameters and buffers; what is shared counts once."""
    tensors = {id(t): t for t in (*model.parameters(), *model.buffers())}.values()
    numbers = sum(parameter.numel() for parameter in model.parameters())
    return {"numbers": numbers, "bytes": sum(t.numel() * t.element_size() for t in tensors)}


def _bits(module: nn.Module) -> int:
    weight = module.weight
    assert isinstance(weight, Tensor)
    return torch.finfo(weight.dtype).bits


def _guards(patterns: Sequence[str], weight: Weight, modules: Mapping[str, nn.Module]) -> bool:
    names = (weight.name, *weight.aliases)
    return weight.chosen and any(
        matches(pattern, name, modules[weight.name]) for pattern in patterns for name in names
    )


def _why_dense(weight: Weight, keep: float, name: str) -> str:
    if weight.protected:
        return "protected"
    return "keep is 1" if keep == 1 else f"{name} would be larger than dense"


def check_choices(effort: str, prefer: str, unit: str, form: str, data: bool) -> None:
    """Refuse an effort, a preference or a unit that is none, or that cannot be had like this.

    Raises:
        BudgetError: listing those that there are.
    """
    choices = (("effort", effort, EFFORTS), ("prefer", prefer, PREFERENCES), ("unit", unit, UNITS))
    for what, value, values in choices:
        if value not in values:
            raise BudgetError(f"{what}={value!r} came; write one of {', '.join(values)}.")
    if unit != "params" and (form != "auto" or not data):
        came = f"format={form!r}" if form != "auto" else "no data"
        raise BudgetError(
            f"unit={unit!r} came with {came}; give data and format='auto', or write unit='params'."
        )
