"""The most memory that a model takes while it runs: measured in a process of its own."""

import json
import subprocess
import sys
from dataclasses import asdict
from typing import Any

import torch

from bondwise.bench.run import Load, prompts, run
from bondwise.bench.subject import subject
from bondwise.errors import DataError
from bondwise.progress import Steps


def peak_bytes(path: str, load: Load, device: str, dtype: torch.dtype | None) -> int:
    """Peak bytes of one run of a model, in a fresh process that holds nothing else.

    On a CUDA device, the most that tensors took; elsewhere the resident set of the process, with
    Python and its libraries (on Linux since the model was loaded, elsewhere since the start).

    Raises:
        DataError: the process ended without an answer.
    """
    given = {
        "path": path,
        "load": asdict(load),
        "device": device,
        "dtype": None if dtype is None else str(dtype).removeprefix("torch."),
        "threads": torch.get_num_threads(),
    }
    command = [sys.executable, "-m", "bondwise.bench.peak", json.dumps(given)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    try:
        return int(done.stdout.split()[-1])
    except (IndexError, ValueError) as error:
        said = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
        raise DataError(
            f"The process that measures the peak memory of {path} ended early ({said[-1][:200]}); "
            "free some memory or try a smaller prompt"
        ) from error


def measured(given: dict[str, Any]) -> int:
    """Load a model, run it once, and return the peak since it was loaded."""
    torch.set_num_threads(given["threads"])
    dtype = None if given["dtype"] is None else getattr(torch, given["dtype"])
    load, device = Load(**given["load"]), torch.device(given["device"])
    found = subject(given["path"], load, given["device"], dtype)
    ids = prompts(load, found.entries, device)
    steps = Steps()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    with steps("run"):
        run(found.model, ids, load, lambda: 0.0)
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return steps.done[0]["peak_bytes"]


if __name__ == "__main__":
    print(measured(json.loads(sys.argv[1])))
