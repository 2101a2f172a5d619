"""One compression from a recipe to a folder: weights, recipe, report and page."""

import json
from collections.abc import Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from bondwise.errors import BudgetError
from bondwise.huggingface.loading import load_model
from bondwise.model.calibrate import Progress, silent
from bondwise.model.checkpoint import check_folder, save
from bondwise.model.recipe import Recipe
from bondwise.model.tensorize import Result, tensorize
from bondwise.report.page import page

Report = dict[str, Any]


def compress(
    recipe: Recipe, out: Path, *, overwrite: bool = False, progress: Progress = silent
) -> Report:
    """Run a recipe and leave a checkpoint, ``recipe.yaml``, ``report.json`` and ``report.html`` in a folder.

    Raises:
        BondwiseError: anything a user can mend; the folder is then as it was.
    """
    check_recipe(recipe)
    check_folder(out, overwrite)
    loaded = load_model(recipe.model, dtype(recipe.dtype), recipe.device)
    with threads(recipe.threads):
        result = run(recipe, loaded.model, loaded.tokenizer, progress, inplace=True)
    report = describe(result, recipe, loaded.source_file_bytes)
    return write(out, result.model, loaded.tokenizer, report, recipe, overwrite=overwrite)


def run(
    recipe: Recipe, model: torch.nn.Module, tokenizer: Any, progress: Progress, *, inplace: bool
) -> Result:
    """Tensorize a loaded model as the recipe says."""
    return tensorize(
        model,
        recipe.keep,
        None if recipe.data is None else Path(recipe.data),
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
        BudgetError: a unit other than params.
    """
    if recipe.unit != "params":
        raise BudgetError(f"unit={recipe.unit!r} came; budgets are counted in params so far.")


def describe(result: Result, recipe: Recipe, source_file: int | None) -> Report:
    """The report of a compression, its bytes on disk still to come."""
    return result.report() | {
        "source": recipe.model,
        "source_file": source_file,
        "recipe": json.loads(json.dumps(recipe.__dict__)),
    }


def write(
    out: Path,
    model: torch.nn.Module,
    tokenizer: Any,
    report: Mapping[str, Any],
    recipe: Recipe,
    *,
    overwrite: bool,
) -> Report:
    """Leave the folder: written beside, then renamed. Returns the report with the bytes on disk."""
    resident = report["resident"]
    sizes = {
        "before": resident["before"],
        "after": resident["after"],
        "source_file": report["source_file"],
    }
    full = {key: value for key, value in report.items() if key != "source_file"} | {"bytes": sizes}
    extras = {
        "recipe.yaml": recipe.to_yaml(),
        "report.json": json.dumps(full, indent=1),
        "report.html": page(full),
    }
    save(model, out, tokenizer=tokenizer, extras=extras, overwrite=overwrite)
    return full


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
def threads(count: int):
    """A number of threads for a while; 0 leaves it as it is."""
    before = torch.get_num_threads()
    if count:
        torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
