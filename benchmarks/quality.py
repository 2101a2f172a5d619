"""How well each method keeps a pretrained model, at the same stored numbers and the same tokens.

    python benchmarks/quality.py [--models smollm2,minilm] [--methods ..] [--keeps 0.9,0.8,0.6,0.5]

Each cell (method x keep x model) is one JSON file; those that are there are not run again, so a run
may be interrupted, or split by the flags. The page docs/benchmarks.md is made from the files at the
end of each run; --page makes it and runs nothing.
"""

import argparse
import sys
from pathlib import Path

from comparison.cells import Setting, run, wanted
from comparison.flags import several, some
from comparison.methods import METHODS
from comparison.page import refresh
from comparison.subjects import SUBJECTS, Draw

HERE = Path(__file__).parent
KEEPS = (0.9, 0.8, 0.6, 0.5)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", type=some(SUBJECTS), default=list(SUBJECTS))
    parser.add_argument("--methods", type=some(METHODS), default=list(METHODS))
    parser.add_argument("--keeps", type=several(float), default=list(KEEPS))
    parser.add_argument("--windows", type=int, default=64, help="windows of each text to judge on")
    parser.add_argument("--length", type=int, default=512, help="tokens of a window")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--limit", type=float, default=3600.0, help="seconds that a cell may take")
    parser.add_argument("--results", type=Path, help="folder; results/WINDOWSxLENGTH beside this")
    parser.add_argument("--page", action="store_true", help="make the page and run nothing")
    return parser.parse_args()


def main() -> None:
    given = arguments()
    folder = given.results or HERE / "results" / f"{given.windows}x{given.length}"
    setting = Setting(folder, Draw(given.windows, given.length), given.threads, given.limit)
    failed = 0
    if not given.page:
        cells = wanted(given.models, given.methods, given.keeps)
        failed = run(cells, setting, lambda line: print(line, flush=True))
    refresh(folder)
    if failed:
        sys.exit(f"{failed} cells failed; what they printed is above")


if __name__ == "__main__":
    main()
