"""Which code and which processor a figure is of."""

import subprocess
from pathlib import Path

import torch

from bondwise.layers.prepare import measurements


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


def processor() -> str:
    """What the processor calls itself, and the widest instructions that torch uses on it."""
    return f"{measurements.processor()} ({torch.backends.cpu.get_cpu_capability()})"
