"""How choices are written: the kinds of values that recipes and flags share, and how they are read.

A dataclass that annotates its fields with these is a recipe in YAML, arguments in Python and flags
of a verb at once; the help of a flag is the comment beside its field.
"""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

from tyro.conf import FlagCreatePairsOff, UseAppendAction, arg
from tyro.constructors import ConstructorRegistry, PrimitiveConstructorSpec, PrimitiveTypeInfo

MODEL, FILE = arg(metavar="MODEL"), arg(metavar="FILE")
Switch = Annotated[bool, FlagCreatePairsOff, arg(help_behavior_hint="")]
On = Annotated[bool, arg(help_behavior_hint="(default: on)")]  # what a flag can also switch off
Patterns = Annotated[
    tuple[str, ...],
    UseAppendAction,
    arg(
        metavar="PATTERN",
        help_behavior_hint=lambda default: f"(may be repeated; default: {default or 'none'})",
    ),
]
kinds = ConstructorRegistry()


def fraction(text: str) -> float:
    """A number; its range is checked where it is used."""
    try:
        return float(text)
    except ValueError as error:
        raise ValueError(f"{text!r} came; write a number such as 0.6") from error


def whole(text: str) -> int:
    """A whole number."""
    try:
        number = int(text)
    except ValueError as error:
        raise ValueError(f"{text!r} came; write a whole number such as 64") from error
    if abs(number) >= 2**63:
        raise ValueError(f"{text} came; write a number that fits 64 bits, such as 64")
    return number


def minutes(text: str) -> float:
    """A time such as 15m, 90s or 1h30m, in minutes; a number alone is minutes.

    >>> minutes("15m"), minutes("90s"), minutes("1h30m"), minutes("2")
    (15.0, 1.5, 90.0, 2.0)
    """
    unit = text.strip() if text.strip()[-1:] in "hms" else f"{text.strip()}m"
    parts = re.fullmatch(r"(?:([\d.]+)h)?(?:([\d.]+)m)?(?:([\d.]+)s)?", unit)
    try:
        if parts is None or not any(parts.groups()):
            raise ValueError
        hours, whole, seconds = (float(part or 0) for part in parts.groups())
    except ValueError as error:
        raise ValueError(f"{text!r} came; write a time such as 15m or 1h30m") from error
    return 60 * hours + whole + seconds / 60


def _kind(metavar: str, read: Callable[[str], Any]) -> PrimitiveConstructorSpec[Any]:
    return PrimitiveConstructorSpec(
        nargs=1,
        metavar=metavar,
        instance_from_str=lambda words: read(words[0]),
        is_instance=lambda _: True,
        str_from_instance=lambda value: ["none" if value in (None, "") else str(value)],
    )


TIME = _kind("TIME", minutes)
_KINDS = {int: ("N", whole), float: ("NUMBER", fraction), str: ("NAME", str), Path: ("DIR", Path)}


@kinds.primitive_rule
def _known(found: PrimitiveTypeInfo) -> PrimitiveConstructorSpec[Any] | None:
    """A value or none of it: how one word is read, and what help calls it."""
    for kind, (metavar, read) in _KINDS.items():
        if found.type in (kind, kind | None):
            return _kind(metavar, read)
    return None
