"""How well cut CREPEs hear: on tones, other timbres, instruments and speech, beside dense.

    python benchmarks/hearing.py [FOLDER ..] [--tones 4000] [--out hearing.json]

Each FOLDER is what `bondwise demo` left, or `bondwise compress bondwise.demo.crepe:full`. Dense and
its authors' *tiny* are always beside. Nothing was healed or tuned on what is judged here, and all
models hear the same frames: differences are paired, with 95 % intervals. Speech has no pitch that
is known; there the measure is dense's own, where it is sure. `sounds.py` says what must be
installed for instruments and speech; without it they are left out, and named.
"""

import argparse
import json
from functools import cache
from pathlib import Path
from typing import Any

import torch
from comparison import sounds
from comparison.flags import several
from torch import Tensor, nn

import bondwise as bw
from bondwise.compress.swap import footprint
from bondwise.demo import crepe, pitch
from bondwise.demo.hearing import UNHEARD
from bondwise.demo.tones import OTHERS, Tones, tones
from bondwise.progress import Bars
from bondwise.report.units import count, percent

SURE = 0.5  # of dense's strongest bin, from which its pitch is taken for true
NOISE = {"": None, ", 0 dB": 0.0}


def suite(many: int) -> dict[str, Tones]:
    """All tests whose pitch is known; seeds are above those of anything that is healed on."""
    made = {
        f"{timbre}{name}": tones(many, UNHEARD + 1000 + 10 * k, timbre=timbre, noise=noise)
        for k, timbre in enumerate(("harmonics", *OTHERS))
        for name, noise in NOISE.items()
    }
    if sounds.there():
        made |= {
            f"instruments{name}": sounds.notes(many, UNHEARD + 2000, noise=noise)
            for name, noise in NOISE.items()
        }
    return made


@cache
def spoken() -> Tensor | None:
    """Frames of speech, where this machine can speak."""
    return sounds.speech() if sounds.there() else None


def judged(models: dict[str, nn.Module], many: int, bars: Bars) -> dict[str, Any]:
    """Errors in cents of each model on each test, as shares and paired differences."""
    errors = pitch.judged(models, suite(many), lambda *done: bars("listen", *done))
    if (frames := spoken()) is not None:
        heard = {name: pitch.activations(model, frames) for name, model in models.items()}
        first = heard[next(iter(heard))]
        kept = first.amax(-1) >= SURE
        for name, given in heard.items():
            away = (pitch.pitch(given) - pitch.pitch(first)).abs()
            errors[name]["speech, beside dense"] = away[kept]
    dense = errors[next(iter(errors))]
    return {
        name: {
            test: {
                "count": len(error),
                "share": pitch.share(error),
                "cents": float(error.median()),
                "difference": list(pitch.paired(error, dense[test])),
            }
            for test, error in found.items()
        }
        for name, found in errors.items()
    }


def table(found: dict[str, Any], models: dict[str, nn.Module]) -> str:
    """A row for each test, a column for each model: its share, and what it differs from dense."""
    names = list(found)
    sizes = [count(footprint(model)["numbers"]) for model in models.values()]
    rows = [["", *names], ["numbers", *sizes]]
    for test, entry in found[names[0]].items():
        cells = [f"{test} ({entry['count']:,})"]
        for name in names:
            own = found[name][test]
            _, low, high = (100 * value for value in own["difference"])
            beside = "" if name == names[0] else f" ({low:+.1f} to {high:+.1f})"
            cells.append(percent(own["share"]) + beside)
        rows.append(cells)
    widths = [max(len(row[k]) for row in rows) for k in range(len(rows[0]))]
    lines = ("  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)) for row in rows)
    return "\n".join(line.rstrip() for line in lines)


def main() -> None:
    parser = argparse.ArgumentParser(description="How well cut CREPEs hear.")
    parser.add_argument("folders", nargs="*", type=Path, metavar="FOLDER")
    parser.add_argument("--tones", type=several(int, 1), default=[4000], help="of each test")
    parser.add_argument("--out", type=Path, default=None, help="a JSON file to write")
    given = parser.parse_args()
    dense = crepe.full()
    models = {"CREPE": dense, "tiny": crepe.tiny()}
    models |= {folder.name: bw.load(folder, model=dense).eval() for folder in given.folders}
    if spoken() is None:
        print(f"instruments and speech are left out; write {sounds.NEEDED}")
    with Bars() as bars:
        found = judged(models, given.tones[0], bars)
    print(table(found, models))
    if given.out is not None:
        told = {"torch": torch.__version__, "tests": found}
        given.out.write_text(json.dumps(told, indent=1) + "\n", "utf-8")


if __name__ == "__main__":
    main()
