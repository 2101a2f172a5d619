"""One compression from a recipe to a folder: weights, recipe, report and page."""

import json
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import nn

from bondwise.errors import BudgetError
from bondwise.huggingface.loading import Loaded, load_model
from bondwise.model.budget import builder, check_keep
from bondwise.model.calibrate import Progress, silent
from bondwise.model.checkpoint import check_folder, save
from bondwise.model.recipe import Recipe
from bondwise.model.tensorize import Result, footprint, tensorize
from bondwise.model.text import read_text
from bondwise.report.page import page

Report = dict[str, Any]


def compress(
    recipe: Recipe, out: Path, *, overwrite: bool = False, progress: Progress = silent
) -> Report:
    """Run a recipe and leave a checkpoint, recipe.yaml, report.json and report.html in a folder.

    The model is read, calibrated and fitted in the dtype that it is stored in, and written in the
    recipe's.

    Raises:
        BondwiseError: anything a user can mend; the folder is then as it was.
    """
    check_recipe(recipe)
    check_folder(out, overwrite)
    data = None if recipe.data is None else read_text(Path(recipe.data))
    loaded = load_model(recipe.model, device=recipe.device)
    result = run(recipe, loaded.model, data, loaded.tokenizer, progress, inplace=True)
    cast(result.model, recipe.dtype)
    report = describe(result, recipe, loaded.source_file_bytes)
    return write(out, result.model, loaded, report, recipe, overwrite=overwrite)


def run(
    recipe: Recipe,
    model: nn.Module,
    data: str | None,
    tokenizer: Any,
    progress: Progress,
    *,
    inplace: bool = False,
) -> Result:
    """Tensorize a loaded model as the recipe says."""
    with threads(recipe.threads):
        return tensorize(
            model,
            recipe.keep,
            data,
            tokenizer=tokenizer,
            targets=recipe.targets,
            ignore=recipe.ignore,
            format=recipe.format,
            effort=recipe.effort,
            prefer=recipe.prefer,
            seed=recipe.seed,
            windows=recipe.windows,
            length=recipe.length,
            inplace=inplace,
            progress=progress,
        )


def check_recipe(recipe: Recipe) -> None:
    """Refuse what this version cannot do, before anything is loaded.

    Raises:
        BudgetError: a unit other than params, or a keep or dtype that is none.
    """
    if recipe.unit != "params":
        raise BudgetError(f"unit={recipe.unit!r} came; budgets are counted in params so far.")
    check_keep(recipe.keep)
    builder(recipe.format)
    dtype(recipe.dtype)


def describe(result: Result, recipe: Recipe, source_file: int | None) -> Report:
    """The report of a compression; dense bytes are counted in the dtype that is written."""
    kind = dtype(recipe.dtype)
    numbers, dense = result.before["numbers"], result.before["bytes"]
    sizes = {
        "before": dense if kind is None else numbers * kind.itemsize,
        "after": footprint(result.model)["bytes"],
    }
    return result.report() | {
        "source": recipe.model,
        "recipe": asdict(recipe),
        "resident": sizes,
        "bytes": sizes | {"source_file": source_file},
    }


def write(
    out: Path,
    model: nn.Module,
    loaded: Loaded,
    report: Report,
    recipe: Recipe,
    *,
    overwrite: bool,
    extra: Mapping[str, str] | None = None,
) -> Report:
    """Leave the folder whole, or not at all."""
    files = {
        "recipe.yaml": recipe.to_yaml(),
        "report.json": json.dumps(report, indent=1),
        "report.html": page(report),
    }
    save(
        model, out, tokenizer=loaded.tokenizer, extra=files | dict(extra or {}), overwrite=overwrite
    )
    return report


def cast(model: nn.Module, name: str) -> None:
    """Give the parameters another dtype, and no buffer: rotary frequencies would be rounded."""
    kind = dtype(name)
    if kind is None:
        return
    for parameter in model.parameters():
        if parameter.is_floating_point():
            parameter.data = parameter.data.to(kind)


def dtype(name: str) -> torch.dtype | None:
    """The dtype of that name; None for "auto".

    Raises:
        BudgetError: no such floating-point dtype.
    """
    if name == "auto":
        return None
    found = getattr(torch, name, None)
    if not isinstance(found, torch.dtype) or not found.is_floating_point:
        raise BudgetError(f"dtype={name!r} came; write auto, float32, bfloat16 or float16.")
    return found


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
