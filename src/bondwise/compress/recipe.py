"""The recipe of a compression, saved beside the weights: run again, it gives the same bits."""

from dataclasses import asdict, dataclass, fields, replace
from numbers import Integral
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import yaml
from tyro.conf import Positional, Suppress, arg

from bondwise.choices import FILE, MODEL, On, Patterns
from bondwise.errors import BudgetError
from bondwise.topology.registry import names

if TYPE_CHECKING:  # the command line reads the fields before torch is there
    import torch

FORMAT = arg(
    metavar="FORMAT",
    help="auto: with data the best for each weight of dense, low rank, Tucker-2 and CP of kernels, "
    "and the networks that won in a scout of two blocks; without it low rank, and Tucker-2 of "
    "kernels; or "
    f"{', '.join(names(kernels=True))}, or an einsum such as "
    "'o a, a i -> (o) (i)'.",
)

EFFORTS, PREFERENCES = ("fast", "best"), ("speed", "size", "quality")
DTYPES = ("float32", "bfloat16", "float16")


@dataclass(frozen=True)
class Cut:
    """What a plan asks for: a part of a recipe."""

    # A Hugging Face folder, a GGUF file, package.module:attribute, or an exported program (.pt2).
    model: Positional[Annotated[str, MODEL]]
    keep: float = 0.8  # Fraction of the targeted numbers that stays.
    # What to change: auto (all but embeddings), linear, convolution, embedding, a class, a path, a
    # glob or re:REGEX.
    targets: Patterns = ("auto",)
    # What to leave alone, besides the head, tied weights and routers.
    ignore: Patterns = ()
    # What stays dense but counts in the budget, so that the rest is cut more.
    protect: Patterns = ()
    format: Annotated[str, FORMAT] = "auto"
    # What keep counts: params, or seconds, which are read off --measurements; compress with --data
    # and format auto also bytes, or macs (for a token; a sample where there are convolutions).
    unit: str = "params"
    # Measured seconds, as bench --measurements writes them for the model.
    measurements: Annotated[str | None, FILE] = None


@dataclass(frozen=True)
class Recipe(Cut):
    """Everything that decides the outcome of one compression.

    ``threads`` belongs to it: another number of threads adds in another order, and the last bits
    differ. ``dtype`` is what the weights are written in, and networks rounded to; they are fitted
    as they are stored. ``digest`` is the sha256 of the file of measurements: another file of that
    name is refused.
    """

    # UTF-8 text to calibrate on, or samples (.pt, .safetensors, .npy); without it the fit knows
    # only the weights, which costs far more quality.
    data: Annotated[str | None, FILE] = None
    # speed: nothing that needs more multiplications than dense; size, quality: whatever it takes.
    prefer: str = "speed"
    effort: str = "fast"  # fast, or best: longer refinement.
    # Multiply the scale of a BatchNorm into the layer before it, with --data.
    fold: On = True
    windows: int = 64  # Windows of the text, at most.
    length: int = 256  # Tokens of a window.
    seed: int = 0  # Seed of every random choice.
    device: str = "cpu"  # Where to compute: cpu, cuda, cuda:1, ..
    # What is stored: auto (as it came), float32, bfloat16 or float16.
    dtype: str = "auto"
    threads: int = 0  # Threads of the processor; 0 for as many as torch takes.
    digest: Suppress[str] = ""

    def to_yaml(self) -> str:
        """The recipe as YAML, one line per choice."""
        plain = {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items()}
        return yaml.safe_dump(plain, sort_keys=False)


def dtype(name: str) -> "torch.dtype | None":
    """The dtype of that name; None for "auto".

    Raises:
        BudgetError: no such floating-point dtype.
    """
    import torch

    if name == "auto":
        return None
    if name not in DTYPES:
        raise BudgetError(f"dtype={name!r} came; write one of auto, {', '.join(DTYPES)}.")
    return getattr(torch, name)


def dtype_name(given: object) -> str:
    """The name of a dtype of torch; "auto" for None.

    Raises:
        BudgetError: one that results cannot have.
    """
    name = "auto" if given is None else str(given).removeprefix("torch.")
    if name not in ("auto", *DTYPES):
        raise BudgetError(
            f"dtype={given} came; write {', '.join(f'torch.{each}' for each in DTYPES)}, or None "
            "for each parameter's own."
        )
    return name


def check_choices(recipe: Recipe, given: bool) -> None:
    """Refuse a choice that is none, or not to be had like this.

    Args:
        recipe: the choices.
        given: whether there is data.

    Raises:
        BudgetError: listing those that there are.
    """
    from bondwise.choose.budget import UNITS
    from bondwise.choose.seconds.clock import check_measured

    for what in ("seed", "windows", "length"):
        value = getattr(recipe, what)
        if isinstance(value, bool) or not isinstance(value, Integral):
            raise BudgetError(f"{what}={value!r} came; write a whole number.")
    if not 0 <= recipe.seed < 2**63:
        raise BudgetError(f"seed={recipe.seed} came; write a whole number of 0 or more.")
    choices = {"effort": EFFORTS, "prefer": PREFERENCES, "unit": UNITS}
    for what, values in choices.items():
        value = getattr(recipe, what)
        if value not in values:
            raise BudgetError(f"{what}={value!r} came; write one of {', '.join(values)}.")
    if recipe.unit in ("bytes", "macs") and (recipe.format != "auto" or not given):
        came = f"format={recipe.format!r}" if recipe.format != "auto" else "no data"
        raise BudgetError(
            f"unit={recipe.unit!r} came with {came}; give data and format='auto', or write "
            "unit='params'."
        )
    check_measured(recipe.unit, recipe.measurements)
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
    """A recipe from flags, on top of that in a file where one is given.

    Raises:
        BudgetError: the file cannot be used, or no model is named.
    """
    if path is not None:
        again = {"digest": ""} if "measurements" in flags else {}
        return replace(read_recipe(path), **again, **flags)
    if not flags.get("model"):
        raise BudgetError("No model came; write its folder, or --recipe FILE.yaml.")
    return Recipe(**flags)
