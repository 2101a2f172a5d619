"""The measurements of a recipe: read, and known again by their digest."""

from dataclasses import replace
from pathlib import Path

from bondwise.choose.seconds.clock import Clock
from bondwise.compress.recipe import Recipe
from bondwise.errors import DataError


def clock_of(recipe: Recipe) -> Clock | None:
    """The seconds that a recipe counts; None where it counts something else.

    Raises:
        DataError: the file of measurements cannot be used, or is another one than the recipe has.
    """
    if recipe.measurements is None:
        return None
    dtype = None if recipe.dtype == "auto" else recipe.dtype
    clock = Clock.read(recipe.measurements, dtype, recipe.device)
    if recipe.digest not in ("", clock.found.digest):
        raise DataError(
            f"Measurements {recipe.measurements} are not those of the recipe (sha256 "
            f"{clock.found.digest[:12]}.. and not {recipe.digest[:12]}..); give these as "
            "measurements to choose anew, or put the old file there."
        )
    return clock


def measured(recipe: Recipe) -> Recipe:
    """The recipe with the digest of its file of measurements, and the path of that from anywhere.

    Raises:
        DataError: the file cannot be used, or is another one than the recipe has.
    """
    clock = clock_of(recipe)
    if clock is None:
        return recipe
    path = str(Path(clock.file).expanduser().absolute())
    return replace(recipe, measurements=path, digest=clock.found.digest)
