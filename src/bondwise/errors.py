"""What can go wrong by the user's hand: every error is a `ValueError` of one sentence.

A message says what came, what was expected and what to write instead.
"""

from importlib import import_module
from operator import index
from typing import Any, SupportsFloat


class BondwiseError(ValueError):
    """Base of all errors that a user causes."""


class NetworkError(BondwiseError):
    """A network that cannot be written down: unknown, repeated or missing indices."""


class ShapeError(BondwiseError):
    """Sizes that do not fit together."""


class FitError(BondwiseError):
    """A weight, metric or rank that cannot be fitted."""


class PlanError(BondwiseError):
    """An order of contraction that cannot be run."""


class DataError(BondwiseError):
    """Calibration or evaluation data that cannot be used."""


class SelectionError(BondwiseError):
    """Targets or ignores that select nothing, or something that cannot be changed."""


class BudgetError(BondwiseError):
    """A budget outside its range or out of reach."""


class CheckpointError(BondwiseError):
    """A checkpoint that is corrupt, foreign, from the future or in the way."""


class MissingExtraError(BondwiseError):
    """An optional package is not installed; the message names the extra that brings it."""


def as_whole(value: object) -> int | None:
    """A whole number of any library (an int, numpy's, a tensor of one) as int; None for others.

    >>> as_whole(8), as_whole(8.0), as_whole(True)
    (8, None, None)
    """
    try:
        return None if isinstance(value, bool) else index(value)  # pyright: ignore[reportArgumentType]
    except TypeError:
        return None


def whole_number(
    name: str, value: object, error: type[BondwiseError] = DataError, example: int = 64
) -> int:
    """A value as `as_whole` has it, where it has to be one.

    >>> whole_number("windows", 8)
    8

    Raises:
        BondwiseError: it is none, of the kind given.
    """
    found = as_whole(value)
    if found is None:
        raise error(f"{name}={value!r} came; write a whole number such as {example}.")
    return found


def number(name: str, value: object, error: type[BondwiseError] = DataError) -> float:
    """A number of any library as a float.

    >>> number("keep", 1)
    1.0

    Raises:
        BondwiseError: it is none, of the kind given.
    """
    try:
        if isinstance(value, SupportsFloat) and not isinstance(value, bool | str):
            return float(value)
    except (TypeError, ValueError):
        pass
    raise error(f"{name}={value!r} came; write a number such as 0.6.")


def optional(module: str, extra: str) -> Any:
    """A module that an extra brings, imported where it is needed and not before.

    >>> optional("math", "read").sqrt(4.0)
    2.0

    Raises:
        MissingExtraError: it is not installed.
    """
    try:
        return import_module(module)
    except ImportError as error:
        raise MissingExtraError(
            f"{module} is not installed; run: pip install 'bondwise[{extra}]'."
        ) from error
