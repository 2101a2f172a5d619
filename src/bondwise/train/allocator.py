"""Memory that was freed: kept for the next step, or given back to the system.

glibc gives blocks above 32 MB back as soon as they are freed, and the system clears every page anew
when it is asked for again. A training step that makes and drops gradients of 100 MB waits for that
longer than for some of its products.
"""

from collections.abc import Generator
from contextlib import contextmanager, suppress
from ctypes import CDLL

_TRIM, _MAP = -1, -3  # M_TRIM_THRESHOLD and M_MMAP_THRESHOLD of malloc.h
_KEPT = {_MAP: 2**30, _TRIM: 2**31 - 1}
_USUAL = {_MAP: 2**25, _TRIM: 2**26}  # where glibc's own rule ends once tensors came and went


@contextmanager
def kept() -> Generator[None]:
    """For a while what is freed stays with the process; then it is given back.

    The most that is held at once is what it was, but for gaps between what is in use. Nothing
    happens where the C library is another one than glibc.

    >>> with kept():
    ...     sum(len(bytearray(10_000_000)) for _ in range(3))
    30000000
    """
    _set(_KEPT)
    try:
        yield
    finally:
        _set(_USUAL)
        give_back()


def give_back() -> None:
    """Give what was freed back to the system."""
    _ask("malloc_trim", 0)


def _set(values: dict[int, int]) -> None:
    for name, value in values.items():
        _ask("mallopt", name, value)


def _ask(function: str, *numbers: int) -> None:
    """Call what only glibc has."""
    with suppress(AttributeError, OSError):
        getattr(CDLL(None), function)(*numbers)
