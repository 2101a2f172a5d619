"""Which code a figure is of."""

import subprocess
from pathlib import Path


def commit() -> str:
    """What git calls the code that runs."""
    found = subprocess.run(
        ["git", "describe", "--always", "--dirty"],
        capture_output=True,
        text=True,
        check=False,
        cwd=Path(__file__).parent,
    )
    return found.stdout.strip()
