"""The recipe of a compression, saved beside the weights: run again, it gives the same bits."""

from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, cast

import torch
import yaml

from bondwise.choose.budget import UNITS
from bondwise.errors import BudgetError

EFFORTS, PREFERENCES = ("fast", "best"), ("speed", "size", "quality")
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True)
class Recipe:
    """Everything that decides the outcome of one compression.

    ``threads`` belongs to it: another number of threads adds in another order, and the last bits
    differ. ``dtype`` is what the weights are written in, and networks rounded to; they are fitted
    as they are stored.
    """

    model: str
    data: str | None = None
    keep: float = 0.8
    targets: tuple[str, ...] = ("linear",)
    ignore: tuple[str, ...] = ()
    protect: tuple[str, ...] = ()
    format: str = "auto"
    unit: str = "params"
    prefer: str = "speed"
    effort: str = "fast"
    seed: int = 0
    windows: int = 64
    length: int = 256
    dtype: str = "auto"
    device: str = "cpu"
    threads: int = 0

    def to_yaml(self) -> str:
        """The recipe as YAML, one line per choice."""
        plain = {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items()}
        return yaml.safe_dump(plain, sort_keys=False)


def dtype(name: str) -> torch.dtype | None:
    """The dtype of that name; None for "auto".

    Raises:
        BudgetError: no such floating-point dtype.
    """
    if name == "auto":
        return None
    if name not in DTYPES:
        raise BudgetError(f"dtype={name!r} came; write one of auto, {', '.join(DTYPES)}.")
    return DTYPES[name]


def check_choices(recipe: Recipe, given: bool) -> None:
    """Refuse an effort, a preference, a unit or a dtype that is none, or not to be had like this.

    Args:
        recipe: the choices.
        given: whether there is data.

    Raises:
        BudgetError: listing those that there are.
    """
    choices = {"effort": EFFORTS, "prefer": PREFERENCES, "unit": UNITS}
    for what, values in choices.items():
        value = getattr(recipe, what)
        if value not in values:
            raise BudgetError(f"{what}={value!r} came; write one of {', '.join(values)}.")
    if recipe.unit != "params" and (recipe.format != "auto" or not given):
        came = f"format={recipe.format!r}" if recipe.format != "auto" else "no data"
        raise BudgetError(
            f"unit={recipe.unit!r} came with {came}; give data and format='auto', or write "
            "unit='params'."
        )
    dtype(recipe.dtype)


def read_recipe(path: Path) -> Recipe:
    """The recipe in a YAML file.

    Raises:
        BudgetError: the file cannot be read, or has a line that no recipe has.
    """
    try:
        read: Any = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        reason = getattr(error, "strerror", None) or str(error).splitlines()[0]
        raise BudgetError(
            f"Recipe {path} cannot be read ({reason}); give the recipe.yaml of a folder that "
            "compress wrote."
        ) from error
    if not isinstance(read, dict) or "model" not in read:
        raise BudgetError(f"Recipe {path} names no model; it needs a line such as 'model: DIR'.")
    known = {field.name: field.default for field in fields(Recipe)}
    lines: dict[str, Any] = {}
    for name, value in cast(dict[str, Any], read).items():
        if name not in known:
            raise BudgetError(f"Recipe {path} has a line {name!r}; it may have {', '.join(known)}.")
        lines[name] = _value(value, known[name])
        if not _like(lines[name], known[name]):
            raise BudgetError(
                f"Recipe {path} has {name}: {value!r}; write {_example(known[name])}."
            )
    return Recipe(**lines)


def _value(value: Any, default: Any) -> Any:
    """A value as a recipe holds it: lists as tuples, one pattern as a tuple of one."""
    if isinstance(default, tuple) and isinstance(value, str):
        return (value,)
    if isinstance(default, float) and type(value) is int:
        return float(value)
    return tuple(cast(list[Any], value)) if isinstance(value, list) else value


def _example(default: Any) -> str:
    if isinstance(default, tuple):
        return "a list of patterns such as [q_proj, k_proj]"
    return f"a value such as {default}" if isinstance(default, str | int | float) else "a path"


def _like(value: Any, default: Any) -> bool:
    """Whether a value is of the kind of a field's default; a field without one is text."""
    if isinstance(default, tuple):
        return isinstance(value, tuple) and all(isinstance(v, str) for v in cast(Any, value))
    if isinstance(default, str | int | float):
        return type(value) is type(default)
    return isinstance(value, str) or value is default


def chosen(path: Path | None, **flags: Any) -> Recipe:
    """A recipe from flags, on top of that in a file where one is given; None changes nothing.

    Raises:
        BudgetError: the file cannot be used, or no model is named.
    """
    given: dict[str, Any] = {
        k: tuple(v) if isinstance(v, list) else v for k, v in flags.items() if v is not None
    }
    if path is not None:
        return replace(read_recipe(path), **given)
    if not given.get("model"):
        raise BudgetError("No model came; write its folder, or --recipe FILE.yaml.")
    return Recipe(**given, threads=torch.get_num_threads())
