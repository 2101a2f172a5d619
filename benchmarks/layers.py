"""How fast layers are: ours against dense and peers, forward, and forward + backward.

    python benchmarks/layers.py [--weights 768x768 ..] [--formats "low rank, 1/8" ..]
                                [--batches 1 16 ..] [--kinds forward ..] [--dtype bfloat16]

One thread unless ``--threads`` says otherwise; run it on a machine that does nothing else. The
grid takes under 20 minutes; it is in ``speed/grid.py``. Results are one JSON file per dtype: a run
puts its cells in the place of those it measures again, after every layer, and leaves the others
with the commit that they are of. The section of docs/benchmarks.md is made from the
files at the end. A peer that is not installed is named and left out; ``make bench-layers`` installs
them first.
"""

import argparse
import json
import os
import platform
import shlex
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # torch reads it when imported: no profiler chatter

import torch
from comparison.commit import commit, processor
from comparison.page import PAGE
from speed import page
from speed.grid import FORMATS, KINDS, WEIGHTS, Case, cases
from speed.measure import Setting, measure
from speed.subjects import DENSE, OURS, how_to_install, missing
from speed.summary import asks

import bondwise as bw

HERE = Path(__file__).parent
DTYPES = ("float32", "bfloat16", "float64")


def arguments(given: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--weights", nargs="+", type=_shape, default=list(WEIGHTS))
    parser.add_argument("--formats", nargs="+", choices=list(FORMATS), default=list(FORMATS))
    parser.add_argument("--batches", nargs="+", type=int, help="instead of the grid's own")
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS))
    parser.add_argument("--dtype", choices=DTYPES, default="float32")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=3, help="turns; a time is their median")
    parser.add_argument("--least", type=float, default=0.02, help="seconds of one turn")
    parser.add_argument("--results", type=Path, default=HERE / "results" / "layers")
    parser.add_argument("--target", type=Path, default=PAGE, help="the page that gets the section")
    parser.add_argument("--page", action="store_true", help="make the page and run nothing")
    return parser.parse_args(given)


def _shape(text: str) -> tuple[int, int]:
    out, inp = text.split("x")
    return int(out), int(inp)


def run(chosen: Sequence[Case], setting: Setting, file: Path, about: dict[str, Any]) -> None:
    """Time every case, and write all that there is after each."""
    for number, case in enumerate(chosen, start=1):
        start = time.perf_counter()
        own = [cell | {"commit": about["commit"]} for cell in measure(case, setting)]
        write(file, {"setting": about, "cells": [*others(file, own), *own]})
        what = "peak_bytes" if case.kind == "memory" else "seconds"
        ratios = ", ".join(f"{c[what][OURS] / c[what][DENSE]:.2f}" for c in own)
        took = time.perf_counter() - start
        out, inp = case.weight
        print(
            f"{number}/{len(chosen)} {case.kind}, {out} x {inp}, {case.label}: "
            f"{ratios} of dense's {what.replace('_', ' ')} ({took:.0f} s)",
            flush=True,
        )


def others(file: Path, own: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The cells of earlier runs that are not measured again, each with its commit."""
    if not file.exists():
        return []
    found = json.loads(file.read_text("utf-8"))
    again = set(map(_name, own))
    commit = {"commit": found["setting"]["commit"]}
    return [commit | cell for cell in found["cells"] if _name(cell) not in again]


def _name(cell: dict[str, Any]) -> tuple:
    return cell["kind"], tuple(cell["weight"]), cell["network"], cell["batch"]


def write(file: Path, result: dict[str, Any]) -> None:
    """One cell a line; the file is there in full, or not."""
    file.parent.mkdir(parents=True, exist_ok=True)
    lines = ",\n".join(json.dumps(cell) for cell in result["cells"])
    fresh = file.with_suffix(f".{os.getpid()}")
    about = json.dumps(result["setting"])
    fresh.write_text(f'{{"setting": {about},\n"cells": [\n{lines}\n]}}\n', encoding="utf-8")
    fresh.replace(file)


def surroundings(given: argparse.Namespace, setting: Setting, typed: Sequence[str]) -> dict:
    """What a number depends on besides the machine."""
    return {
        "command": shlex.join(["python", "benchmarks/layers.py", *typed]),
        "dtype": given.dtype,
        "threads": given.threads,
        "repeats": setting.repeats,
        "least": setting.least,
        "processor": processor(),
        "missing": missing(setting.peers),
        "bondwise": bw.__version__,
        "commit": commit(),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "system": sys.platform,
    }


def main(typed: Sequence[str]) -> None:
    given = arguments(typed)
    torch.set_num_threads(given.threads)
    file = given.results / f"{given.dtype}.json"
    page.refresh(given.results, given.target)  # a page without marks fails now, not after the run
    if given.page:
        return
    setting = Setting(getattr(torch, given.dtype), given.repeats, given.least)
    if absent := missing(setting.peers):
        print(f"Not installed, and left out: {', '.join(absent)}. {how_to_install(absent)}")
    chosen = list(cases(given.weights, given.formats, given.batches, given.kinds))
    run(chosen, setting, file, surroundings(given, setting, typed))
    for ask in asks(json.loads(file.read_text("utf-8"))["cells"]):
        verdict = "met" if ask.met else "NOT met"
        print(f"{ask.what}: {ask.value:.2f} ({ask.asked:g} asked, {verdict})")
    page.refresh(given.results, given.target)


if __name__ == "__main__":
    main(sys.argv[1:])
