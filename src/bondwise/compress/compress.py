"""One compression from a recipe to a folder: weights, recipe, report and page."""

import json
import shlex
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from bondwise.checkpoint.carry import look
from bondwise.checkpoint.checkpoint import check_folder, save
from bondwise.checkpoint.loading import Loaded, check_source, load_model, reader
from bondwise.checkpoint.others import is_other, shown
from bondwise.checkpoint.sources.code import is_code, whole_name
from bondwise.checkpoint.whole import check_writable
from bondwise.choose.by_rank import builder, check_keep
from bondwise.compress.measured import measured
from bondwise.compress.recipe import Recipe, check_choices, dtype
from bondwise.compress.result import Result
from bondwise.compress.swap import footprint
from bondwise.compress.tensorize import follow
from bondwise.errors import BudgetError
from bondwise.flow.data import Batch
from bondwise.flow.forms.samples import is_samples, read_samples
from bondwise.flow.text import check_draw, read_text
from bondwise.progress import Progress, Steps, silent
from bondwise.report.page import finite, page

Report = dict[str, Any]
THREADS = 1024  # more than a machine has, fewer than it can start


def compress(
    recipe: Recipe, out: Path, *, overwrite: bool = False, progress: Progress = silent
) -> Report:
    """Run a recipe and leave a checkpoint, recipe.yaml, report.json and report.html in a folder.

    The model is read, calibrated and fitted in the dtype that it is stored in; it is rounded to
    the recipe's, and written in that.

    Raises:
        BondwiseError: anything a user can mend; the folder is then as it was.
    """
    check_recipe(recipe)
    check_folder(out, overwrite)
    count = recipe.threads or torch.get_num_threads()
    recipe = replace(recipe, model=_absolute(recipe.model), threads=count)
    if recipe.data is not None:
        recipe = replace(recipe, data=str(Path(recipe.data).expanduser().absolute()))
    recipe = measured(recipe)
    data = None if recipe.data is None else looked_at(recipe.data)
    text = isinstance(data, Path)
    check_source(recipe.model, text=text)
    steps = Steps()
    with steps("load", progress):
        loaded = load_model(recipe.model, device=recipe.device)
        check_writable(loaded.model)  # before hours of fitting, not after
        tokenizer = reader(loaded, recipe.model) if text else None
    data = data if data is None or isinstance(data, Path) else shown(loaded.model, data)
    result = run(recipe, loaded.model, data, tokenizer, progress, inplace=True)
    steps.done.extend(dict(step) for step in result.steps)
    report = describe(result, recipe, loaded.source_file_bytes)
    if data is None:
        kind = "samples" if is_other(recipe.model) else "text"
        report["notes"].append(f"no {kind} came (--data), so the fit knows the weights alone")
    return write(out, result.model, loaded, report, recipe, steps, overwrite=overwrite)


def looked_at(source: str | Path) -> Path | Tensor | list[Batch]:
    """Samples of a file of them; of a text its path, once it was seen that it can be read.

    Raises:
        DataError: it cannot be used.
    """
    if is_samples(source):
        return read_samples(source)
    read_text(Path(source))
    return Path(source)


def run(
    recipe: Recipe,
    model: nn.Module,
    data: Any,
    tokenizer: Any,
    progress: Progress,
    *,
    inplace: bool = False,
) -> Result:
    """Tensorize a loaded model as the recipe says."""
    with threads(recipe.threads):
        return follow(recipe, model, data, tokenizer, inplace=inplace, progress=progress)


def check_recipe(recipe: Recipe) -> None:
    """Refuse what this version cannot do, before anything is loaded.

    Raises:
        BudgetError: a unit that cannot be had, or a keep, dtype, device or number that is none.
        NetworkError: a format that is none.
        DataError: windows of no tokens, or none at all.
    """
    check_keep(recipe.keep)
    check_choices(recipe, recipe.data is not None)
    builder(recipe.format)
    check_device(recipe.device)
    check_draw(recipe.windows, recipe.length)
    if not 0 <= recipe.threads <= THREADS:
        raise BudgetError(f"threads={recipe.threads} came; write a number from 0 to {THREADS}.")


def describe(result: Result, recipe: Recipe, source_file: int | None) -> Report:
    """The report of a compression; dense bytes are counted in the dtype that is written."""
    kind = dtype(recipe.dtype)
    numbers, dense = result.before["numbers"], result.before["bytes"]
    before = dense if kind is None else numbers * kind.itemsize
    return result.report() | {
        "source": recipe.model,
        "recipe": asdict(recipe),
        "resident": {"before": before, "after": footprint(result.model)["bytes"]},
        "bytes": {"before": before, "source_file": source_file},
    }


def write(
    out: Path,
    model: nn.Module,
    loaded: Loaded,
    report: Report,
    recipe: Recipe,
    steps: Steps,
    *,
    overwrite: bool,
    extra: Mapping[str, str | bytes] | None = None,
) -> Report:
    """Leave the folder whole, or not at all; the report gets the bytes of the weights on disk.

    What the model's folder held beside its weights is carried along, and what is not is said in a
    note. The report in the folder holds the steps before this one, what is returned holds all.
    """
    if loaded.folder is not None:
        report["notes"] += look(loaded.folder, out).notes
    report |= {"steps": list(steps.done), "commands": _commands(out, model, recipe)}

    def beside(folder: Path) -> dict[str, str | bytes]:
        report["bytes"]["after"] = sum(f.stat().st_size for f in folder.glob("*.safetensors"))
        return {
            "recipe.yaml": recipe.to_yaml(),
            "report.json": json.dumps(finite(report), indent=1, allow_nan=False),
            "report.html": page(report),
            **(extra or {}),
        }

    with steps("save"):
        save(
            model, out, tokenizer=loaded.tokenizer, source=loaded.folder, extra=beside,
            overwrite=overwrite, code=loaded.code,
        )  # fmt: skip
    return report | {"steps": steps.done}


def _commands(out: Path, model: nn.Module, recipe: Recipe) -> list[str]:
    """What repeats the compression, and what measures it, but for encoders."""
    folder = shlex.quote(str(out))
    repeat = f"bondwise compress --recipe {shlex.quote(str(out / 'recipe.yaml'))} --out DIR"
    head = getattr(model, "get_output_embeddings", lambda: None)()
    if head is None and not is_other(recipe.model):
        return [repeat]
    return [repeat, f"bondwise eval {folder} --vs {shlex.quote(recipe.model)} --data FILE"]


def _absolute(model: str) -> str:
    """The path of a model from anywhere; a name on the hub or of a module as it is."""
    if is_code(model):
        return whole_name(model)
    path = Path(model).expanduser()
    return str(path.absolute()) if path.exists() else model


def check_device(name: str) -> None:
    """Refuse a device that torch cannot compute on here.

    Raises:
        BudgetError: with the reason in torch's words.
    """
    try:
        torch.zeros(1, device=name).item()  # of a device without memory (meta) there is no item
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        there = ["cpu"] + ["cuda"] * torch.cuda.is_available()
        raise BudgetError(
            f"device={name!r} came, which cannot be used here; write {' or '.join(there)}."
        ) from error


@contextmanager
def threads(count: int) -> Generator[None]:
    """A number of threads for a while; 0 leaves it as it is."""
    before = torch.get_num_threads()
    if count:
        torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
