"""Convolutional models made smaller: ours beside peers, at the same numbers and the same healing.

    python benchmarks/convolutions.py [--subjects crepe,mnist] [--methods ours,vbmf,..]
                                      [--keeps 0.25,0.1] [--steps 100] [--tones 2000]
    python benchmarks/convolutions.py --seconds    # of the models that the first command left
    python benchmarks/convolutions.py --stacks     # thin convolutions of torch's own beside dense
    python benchmarks/convolutions.py --formats    # each convolution alone, in each format
    python benchmarks/convolutions.py --kinds      # models of other kinds, layer by layer
    python benchmarks/convolutions.py --page       # docs/benchmarks.md of what there is

``make bench-conv`` does all of it. A cell (a method at a keep on a model) is one file of JSON:
delete it to have it measured again. The models themselves lie in ``build/convolutions``. A peer
that is not installed is named and left out; the Makefile's target installs them into a folder of
their own.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import Any

import torch
from comparison.cells import write
from comparison.commit import commit, processor
from comparison.flags import several, some
from comparison.page import PAGE
from convs import cells, formats, kinds, models, page, seconds, stacks
from convs.methods import METHODS

HERE = Path(__file__).parent
RESULTS = HERE / "results" / "convolutions"
CACHE = HERE.parent / "build" / "convolutions"


def arguments(given: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--subjects", type=some(models.SUBJECTS), default=list(models.SUBJECTS))
    parser.add_argument("--methods", type=some(METHODS), default=list(METHODS))
    parser.add_argument("--keeps", type=several(float), default=[0.25, 0.1, 0.05])
    parser.add_argument("--steps", type=int, default=100, help="of healing; 0 heals nothing")
    parser.add_argument("--rates", type=several(float), default=[3e-4, 1e-3])
    parser.add_argument("--tones", type=int, default=2000, help="of each test")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seconds", action="store_true", help="time the models of the cache")
    parser.add_argument(
        "--stacks", action="store_true", help="time thin convolutions of torch's own"
    )
    parser.add_argument("--formats", action="store_true", help="each convolution in each format")
    parser.add_argument("--kinds", action="store_true", help="models of other kinds")
    parser.add_argument("--layers", nargs="+", help="of --formats; all by default")
    parser.add_argument("--repeats", type=int, default=7, help="turns of each")
    parser.add_argument("--least", type=float, default=0.1, help="seconds of one turn")
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--cache", type=Path, default=CACHE)
    parser.add_argument("--target", type=Path, default=PAGE, help="the page that gets the section")
    parser.add_argument("--page", action="store_true", help="make the page and run nothing")
    return parser.parse_args(given)


def about(threads: int) -> dict[str, Any]:
    """What a figure depends on besides its cell."""
    return {
        "threads": threads,
        "tones": models.JUDGING[0],
        "torch": torch.__version__,
        "processor": processor(),
        "commit": commit(),
    }


def accuracy(given: argparse.Namespace) -> None:
    """Every cell that is not there yet."""
    for cell in cells.wanted(given.subjects, given.methods, given.keeps):
        file = given.results / f"{cell.name}.json"
        if cells.finished(file, given.steps):
            continue
        if missing := cells.absent(cell.method):
            print(f"{cell.name}: {missing} is not installed, and left out", flush=True)
            continue
        entry = cells.run(
            cell, given.steps, tuple(given.rates), given.results, given.cache, about(given.threads)
        )
        print(f"{cell.name}: {json.dumps(entry)}", flush=True)


def speed(given: argparse.Namespace) -> None:
    """All models of the cache, on one thread and on two."""
    for subject in given.subjects:
        names = sorted(
            file.stem
            for file in given.cache.glob(f"{subject}-*-*.pt")
            if "teacher" not in file.stem
        )
        rows = [
            row
            for threads in range(1, given.threads + 1)
            for batch in models.SUBJECTS[subject].timed
            for row in seconds.timed(
                subject, names, given.cache, threads, batch, given.repeats, given.least
            )
        ]
        write(given.results / f"speed-{subject}.json", {"rows": rows, **about(2)})


def thin(given: argparse.Namespace) -> None:
    """The table of thin convolutions."""
    rows = [
        row
        for threads in range(1, given.threads + 1)
        for last in (False, True)
        for case in stacks.CASES
        for row in stacks.measure(case, threads, last, given.repeats, given.least / 3)
    ]
    write(given.results / "stacks.json", {"rows": rows, **about(2)})


def formatted(given: argparse.Namespace) -> None:
    """Each convolution of the subjects, in each format; one thread."""
    torch.set_num_threads(1)
    for subject in given.subjects:
        own = models.SUBJECTS[subject]
        for path in given.layers or formats.convolutions(own.dense()):
            for share in given.keeps:
                file = given.results / f"formats-{subject}-{path}-{share:g}.json"
                if not file.exists():
                    rows = formats.rows(own, path, share, given.repeats, given.least)
                    if rows:
                        write(file, {"rows": rows, **about(1)})
                    print(f"{file.stem}: {len(rows)} formats", flush=True)


def of_kinds(given: argparse.Namespace) -> None:
    """Models of other kinds at each keep; one thread, and two where the machine is quiet."""
    for name, keep in product(kinds.KINDS, kinds.KEEPS):
        for threads in range(1, given.threads + 1):
            file = given.results / f"kinds-{name}-{keep:g}-{threads}.json"
            if not file.exists():
                entry = kinds.measured(name, keep, threads, given.repeats, given.least, {})
                write(file, {**entry, **about(threads)})
                both = f"{entry['seconds']:.2f} as built, {entry['prepared']:.2f} prepared"
                print(f"{file.stem}: {both}, of dense", flush=True)


def main(typed: Sequence[str] | None = None) -> None:
    given = arguments(typed)
    models.JUDGING[0] = given.tones
    torch.set_num_threads(given.threads)
    page.refresh(given.results, given.target)  # a page without marks fails now, not after the run
    if given.page:
        return
    jobs = {"seconds": speed, "stacks": thin, "formats": formatted, "kinds": of_kinds}
    chosen = [job for name, job in jobs.items() if getattr(given, name)]
    for job in chosen or [accuracy]:
        job(given)
    page.refresh(given.results, given.target)


if __name__ == "__main__":
    main(sys.argv[1:])
