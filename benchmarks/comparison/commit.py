"""Which code and which processor a figure is of."""

import platform
import subprocess
from pathlib import Path

import torch


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
    try:
        lines = Path("/proc/cpuinfo").read_text("utf-8").splitlines()
    except OSError:
        lines = []
    names = [s.partition(":")[2].strip() for s in lines if s.startswith("model name")]
    return f"{(names or [platform.processor()])[0]} ({torch.backends.cpu.get_cpu_capability()})"
