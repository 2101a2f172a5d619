"""Where a healing is kept until its folder is written, by the name of that folder."""

from pathlib import Path


def state_folder(out: Path) -> Path:
    """The run itself: what goes on where it was cut off.

    >>> state_folder(Path("small")).name
    'small.healing'
    """
    return out.with_name(f"{out.name}.healing")


def cut_folder(out: Path) -> Path:
    """The compressed model that is healed, where both are one call.

    >>> cut_folder(Path("small")).name
    'small.healing-cut'
    """
    return out.with_name(f"{out.name}.healing-cut")
