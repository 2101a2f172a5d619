"""Flags that the benchmarks share."""

import argparse
from collections.abc import Callable, Iterable
from typing import TypeVar

Number = TypeVar("Number", int, float)


def some(known: Iterable[str]) -> Callable[[str], list[str]]:
    """What reads names with commas between them, each one of those that there are."""

    def names(text: str) -> list[str]:
        chosen = text.split(",")
        for name in chosen:
            if name not in known:
                raise argparse.ArgumentTypeError(f"{name!r} is none of {', '.join(known)}")
        return chosen

    return names


def several(kind: type[Number], least: float = 0) -> Callable[[str], list[Number]]:
    """What reads numbers with commas between them, none below the least."""

    def numbers(text: str) -> list[Number]:
        found = [kind(part) for part in text.split(",")]
        if min(found) < least:
            raise argparse.ArgumentTypeError(f"{text} came; write {least:g} or more")
        return found

    return numbers


def above_zero(text: str) -> float:
    """What reads one number above zero, such as minutes."""
    found = float(text)
    if not 0 < found < float("inf"):
        raise argparse.ArgumentTypeError(f"{text} came; write a number above 0")
    return found
