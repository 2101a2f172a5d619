"""Compress and heal at once: a cut, then training towards the dense model, into one folder."""

import json
import shutil
from dataclasses import asdict
from pathlib import Path

from bondwise.checkpoint.checkpoint import check_folder
from bondwise.compress.compress import Report, check_recipe, compress, looked_at, threads
from bondwise.compress.recipe import Recipe, dtype
from bondwise.errors import BudgetError, CheckpointError
from bondwise.flow.identity import identity
from bondwise.heal.folders import cut_folder
from bondwise.heal.verb import Healer
from bondwise.progress import Progress
from bondwise.report.page import finite
from bondwise.train.loop import Callback
from bondwise.train.recipe import healing

ASKED = "asked.json"


def compress_and_heal(
    recipe: Recipe, out: Path, minutes: float, overwrite: bool, progress: Progress, tell: Callback
) -> Report:
    """Cut a model, and heal it towards what it was; the folder is left whole or not at all.

    The cut stands in ``OUT.healing-cut`` and the run in ``OUT.healing`` until the end: the same
    call goes on where it was cut off, and another one begins anew.

    Raises:
        BudgetError: no text to heal on.
        BondwiseError: anything else that a user can mend; ``out`` is then as it was.
    """
    if recipe.data is None:
        raise BudgetError("A time to heal came without a text; add --data FILE.")
    choices = {"minutes": minutes, "seed": recipe.seed}
    check_recipe(recipe)
    healing(**choices)
    check_folder(out, overwrite)
    looked_at(recipe.data)
    cut = cut_folder(out)
    source = Path(recipe.model) if Path(recipe.model).exists() else recipe.model
    asked = identity({**asdict(recipe), "minutes": minutes}, data=Path(recipe.data), model=source)
    healer = Healer(
        str(cut), recipe.model, recipe.data, out, device=recipe.device, dtype=dtype(recipe.dtype),
        called=str(out),
    )  # fmt: skip
    mark = cut / ASKED
    if not (mark.is_file() and mark.read_text("utf-8") == json.dumps(asked)):
        if healer.state.exists() and not cut.exists():
            raise CheckpointError(
                f"{healer.state} holds what another healing left; name another --out, or remove it."
            )
        shutil.rmtree(healer.state, ignore_errors=True)  # of the call that made the cut
        _cut(recipe, cut, minutes, progress)
        mark.write_text(json.dumps(asked), "utf-8")
    with threads(recipe.threads):
        report = healer.run(choices, overwrite=overwrite, progress=progress, tell=tell)
    shutil.rmtree(cut, ignore_errors=True)
    return report | {"source": recipe.model}


def _cut(recipe: Recipe, folder: Path, minutes: float, progress: Progress) -> None:
    """The compressed model, with what the healed one will say of it."""
    report = compress(recipe, folder, overwrite=True, progress=progress)
    report |= {"source": recipe.model}
    (folder / "report.json").write_text(json.dumps(finite(report), indent=1), "utf-8")
    path = folder / "recipe.yaml"
    told = f"# healed, with --heal {minutes:g}m\n{path.read_text('utf-8')}"
    path.write_text(told, "utf-8")
