"""Flags that the benchmarks share."""

import argparse
from collections.abc import Callable, Iterable


def some(known: Iterable[str]) -> Callable[[str], list[str]]:
    """What reads names with commas between them, each one of those that there are."""

    def names(text: str) -> list[str]:
        chosen = text.split(",")
        for name in chosen:
            if name not in known:
                raise argparse.ArgumentTypeError(f"{name!r} is none of {', '.join(known)}")
        return chosen

    return names
