"""One file per result: a method at a keep on a model. Written whole or not at all."""

import json
import multiprocessing
import os
import platform
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

import bondwise as bw
from bondwise.errors import BondwiseError
from bondwise.progress import Steps
from comparison.commit import commit
from comparison.methods import METHODS
from comparison.subjects import SUBJECTS, Draw, Subject


@dataclass(frozen=True)
class Cell:
    """A method at a keep on a model; for a method that has its own size, keep is 1."""

    model: str
    method: str
    keep: float

    @property
    def name(self) -> str:
        """Name of its file."""
        return f"{self.model}-{self.method}-{self.keep:g}.json"


@dataclass(frozen=True)
class Setting:
    """What all cells of one folder of results have in common, and how long one may take."""

    folder: Path
    draw: Draw
    threads: int = 2
    limit: float = 3600.0


def wanted(models: Iterable[str], methods: Iterable[str], keeps: Iterable[float]) -> list[Cell]:
    """The cells of a run; rounding has no keep and is measured on MiniLM alone.

    SmolLM2's numbers came from 4 bits already: rounding them again would say nothing.
    """
    methods, keeps = list(methods), list(keeps)
    return [
        Cell(model, method, keep)
        for model in models
        for method in methods
        for keep in (keeps if METHODS[method].sized else [1.0])
        if METHODS[method].sized or model == "minilm"
    ]


def read(folder: Path) -> list[dict[str, Any]]:
    """All results of a folder."""
    return [json.loads(file.read_text("utf-8")) for file in sorted(folder.glob("*.json"))]


def there(folder: Path) -> list[dict[str, Any]]:
    """All results of a folder that has some; a page is not made of none."""
    found = read(folder)
    if not found:
        raise SystemExit(f"{folder} holds no cell; run some, or name another --results.")
    return found


def write(file: Path, entry: dict[str, Any]) -> None:
    """A file that is there in full, or not."""
    file.parent.mkdir(parents=True, exist_ok=True)
    fresh = file.with_suffix(f".{os.getpid()}")
    fresh.write_text(json.dumps(entry, indent=1) + "\n", encoding="utf-8")
    fresh.replace(file)


def finished(file: Path, limit: float) -> bool:
    """Whether a cell need not run again: it has its numbers, or had as long as it may take now."""
    if not file.exists():
        return False
    entry = json.loads(file.read_text("utf-8"))
    return entry["status"] != "did not finish" or entry["limit"] >= limit


def measure(cell: Cell, subject: Subject, setting: Setting) -> dict[str, Any]:
    """Compress, count and judge; a budget that a format cannot reach is a result too."""
    steps = Steps()
    processor = time.process_time()
    entry = {"model": cell.model, "method": cell.method, "keep": cell.keep} | _surroundings(setting)
    try:
        with steps("compress"):
            done = METHODS[cell.method].compress(subject.model, cell.keep, subject.calibration)
    except BondwiseError as error:
        return entry | {"status": "not possible", "why": str(error)}
    processor = time.process_time() - processor
    # tensorize notes the peak of each of its steps, and begins anew with every one
    peak = max(step["peak_bytes"] for step in (*steps.done, *done.steps))
    entry |= {
        "kept": done.numbers / done.before,
        "bytes": done.bits / 8,
        "dense_bytes": done.before * 2,
        "seconds": steps.done[0]["seconds"],
        "processor_seconds": processor,
        "peak_bytes": peak,
    }
    return entry | subject.judge(done.model) | {"status": "done"}


def run(cells: list[Cell], setting: Setting, say: Callable[[str], None] = print) -> int:
    """Run what is not there yet, each cell in a process of its own; returns how many failed."""
    failed = 0
    for number, cell in enumerate(cells, start=1):
        file = setting.folder / cell.name
        if finished(file, setting.limit):
            continue
        start = time.perf_counter()
        outcome = _in_own_process(cell, setting, file)
        failed += outcome == "failed"
        took = time.perf_counter() - start
        say(f"{number}/{len(cells)} {cell.name.removesuffix('.json')}: {outcome}, {took:.0f} s")
    return failed


def _in_own_process(cell: Cell, setting: Setting, file: Path) -> str:
    """A fresh process has its own peak of memory, and can be stopped."""
    process = multiprocessing.get_context("spawn").Process(target=_child, args=(cell, setting))
    process.start()
    process.join(setting.limit)
    if process.is_alive():
        process.kill()
        process.join()
        entry = {"model": cell.model, "method": cell.method, "keep": cell.keep}
        late = {"status": "did not finish", "limit": setting.limit}
        write(file, entry | _surroundings(setting) | late)
    elif process.exitcode != 0:
        return "failed"
    return json.loads(file.read_text("utf-8"))["status"]


def _child(cell: Cell, setting: Setting) -> None:
    torch.set_num_threads(setting.threads)
    subject = SUBJECTS[cell.model](setting.draw)
    write(setting.folder / cell.name, measure(cell, subject, setting))


def _surroundings(setting: Setting) -> dict[str, Any]:
    """What a number depends on besides the method."""
    return {
        "windows": setting.draw.windows,
        "length": setting.draw.length,
        "threads": setting.threads,
    } | versions()


def versions() -> dict[str, Any]:
    """Of all that computes."""
    return {
        "bondwise": bw.__version__,
        "commit": commit(),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "system": sys.platform,
    }
