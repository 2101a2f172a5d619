"""A cell: a method at a keep on a model. Its figures are a file of JSON, its model is cached."""

import copy
import importlib.util
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from comparison.cells import write
from torch import nn

from convs.count import multiplications, numbers
from convs.heal import SIZE, healed, targets
from convs.methods import METHODS, NEEDS, Heal
from convs.models import SUBJECTS, Subject
from convs.quick import turned


@dataclass(frozen=True)
class Cell:
    subject: str
    method: str
    keep: float

    @property
    def name(self) -> str:
        return f"{self.subject}-{self.method}-{self.keep:g}"


def wanted(subjects: list[str], methods: list[str], keeps: list[float]) -> list[Cell]:
    """Cells of a run, dense first; a method without a size has one."""
    return [
        Cell(subject, method, keep)
        for subject in subjects
        for method in methods
        for keep in (keeps if METHODS[method].sized else [1.0])
    ]


def absent(method: str) -> str:
    """What would have to be installed, or nothing."""
    needs = METHODS[method].needs
    return "" if not needs or importlib.util.find_spec(needs) else NEEDS[needs]


def run(
    cell: Cell,
    steps: int,
    rates: tuple[float, ...],
    results: Path,
    cache: Path,
    about: dict[str, Any],
) -> dict[str, Any]:
    """Make, judge, heal, judge again; written when there are figures, and again when healed."""
    subject = SUBJECTS[cell.subject]
    torch.manual_seed(0)
    dense = subject.dense()
    start = time.perf_counter()
    model = METHODS[cell.method].make(copy.deepcopy(dense), subject, cell.keep).eval()
    entry: dict[str, Any] = {
        "subject": cell.subject,
        "method": cell.method,
        "keep": cell.keep,
        "status": "done",
        "seconds_to_make": time.perf_counter() - start,
        "numbers": numbers(model),
        "dense_numbers": numbers(dense),
        "macs": multiplications(model, subject.calibration()[:1]),
        "dense_macs": multiplications(dense, subject.calibration()[:1]),
        "judged": _judged(subject, model),
        **about,
    }
    keep_model(cache / f"{cell.name}.pt", model)
    write(results / f"{cell.name}.json", entry)
    if steps and cell.method != "dense":
        if (own := METHODS[cell.method].heal) is None:
            entry["healed"] = _healed(subject, dense, model, steps, rates, cache)
        else:
            entry["healed"] = _healed_by(own, subject, dense, model, steps)
        write(results / f"{cell.name}.json", entry)
    return entry


def _judged(subject: Subject, model: nn.Module) -> dict[str, float]:
    with turned():
        return subject.judge(model)


def _healed(
    subject: Subject,
    dense: nn.Module,
    model: nn.Module,
    steps: int,
    rates: tuple[float, ...],
    cache: Path,
) -> dict[str, Any]:
    with turned():
        aims = targets(subject, dense, steps, cache)
        start = time.perf_counter()
        better, rate = healed(subject, model, aims, rates)
    seconds = time.perf_counter() - start
    about = {"steps": steps, "samples": SIZE, "rate": rate, "rates": rates, "seconds": seconds}
    return about | {"judged": _judged(subject, better)}


def _healed_by(
    own: Heal, subject: Subject, dense: nn.Module, model: nn.Module, steps: int
) -> dict[str, Any]:
    with turned():
        inputs = torch.cat([subject.batch(k, SIZE) for k in range(steps)])
        start = time.perf_counter()
        better = own(model, dense, inputs, steps).eval()
    seconds = time.perf_counter() - start
    about = {"steps": steps, "samples": SIZE, "seconds": seconds}
    return about | {"judged": _judged(subject, better)}


def keep_model(file: Path, model: nn.Module) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    torch.save(model, file)
