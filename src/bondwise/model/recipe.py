"""The recipe of a compression, saved beside the weights: run again, it gives the same bits."""

from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, cast

import torch
import yaml

from bondwise.errors import BudgetError


@dataclass(frozen=True)
class Recipe:
    """Everything that decides the outcome of one compression.

    ``threads`` belongs to it: another number of threads adds in another order, and the last bits differ.
    """

    model: str
    data: str | None = None
    keep: float = 0.8
    targets: tuple[str, ...] = ("linear",)
    ignore: tuple[str, ...] = ()
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


def read_recipe(path: Path) -> Recipe:
    """The recipe in a YAML file.

    Raises:
        BudgetError: the file cannot be read, or has a line that no recipe has.
    """
    try:
        read: Any = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        reason = str(error).splitlines()[0]
        raise BudgetError(f"Recipe {path} cannot be read ({reason}); write a YAML file.") from error
    names = [field.name for field in fields(Recipe)]
    if not isinstance(read, dict) or "model" not in read:
        raise BudgetError(f"Recipe {path} names no model; it needs a line such as 'model: DIR'.")
    plain = cast(dict[str, Any], read)
    for name in plain:
        if name not in names:
            raise BudgetError(f"Recipe {path} has a line {name!r}; it may have {', '.join(names)}.")
    return Recipe(**{k: tuple(v) if isinstance(v, list) else v for k, v in plain.items()})


def chosen(path: Path | None, **flags: Any) -> Recipe:
    """A recipe from flags, on top of the one in a file where a file is given; None leaves a line as it is.

    Raises:
        BudgetError: the file cannot be used, or no model is named.
    """
    given = {k: tuple(v) if isinstance(v, list) else v for k, v in flags.items() if v is not None}
    if path is not None:
        return replace(read_recipe(path), **given)
    if "model" not in given:
        raise BudgetError("No model came; write its folder, or --recipe FILE.yaml.")
    return Recipe(**given, threads=torch.get_num_threads())
