"""Does it end better to cut in rounds, each healed before the next, or once? In the same time.

    python benchmarks/rounds.py [--keeps 0.5,0.3] [--counts 2,3] [--minutes 6] [--seeds 0]

all-MiniLM-L6-v2, compressed and healed on Wikipedia by what ``compress --heal TIME --rounds N``
calls. For each number of rounds there is one cut whose healing gets, on top of the minutes, what
the further rounds took for cutting. Judged by the error of its hidden states on the end of that
text, which is held out of healing, and by human similarity ratings. Each cell is one JSON file;
those that are there are not run again. Run it on a machine that does nothing else.
"""

import argparse
import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from comparison.cells import there, versions, write
from comparison.flags import above_zero, several
from comparison.page import PAGE, RATINGS, write_between
from comparison.subjects import similarity_judge, wikipedia

from bondwise.checkpoint.cache import cache_directory
from bondwise.checkpoint.loading import load_model
from bondwise.compress.recipe import Recipe
from bondwise.demo import assets
from bondwise.progress import Bars, Steps
from bondwise.report.units import duration
from bondwise.rounds import Rounds

HERE = Path(__file__).parent
KEPT = cache_directory() / "benchmarks" / "rounds"

Entry = dict[str, Any]


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--keeps", default=[0.5, 0.3], type=several(float))
    parser.add_argument("--counts", default=[2], type=several(int, 2), help="of rounds, 2 or more")
    parser.add_argument("--minutes", type=above_zero, default=6.0, help="of healing, in rounds")
    parser.add_argument("--seeds", default=[0], type=several(int))
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--results", type=Path, default=HERE / "results" / "rounds")
    parser.add_argument("--page", action="store_true", help="make the page and run nothing")
    return parser.parse_args()


def run(keep: float, count: int, minutes: float, seed: int, threads: int) -> Entry:
    """One cell: cut and healed, judged, and what it took."""
    KEPT.mkdir(parents=True, exist_ok=True)
    text, out, steps = KEPT / "text.txt", KEPT / f"{keep:g}-{count}-{seed}", Steps()
    text.write_text(wikipedia(), encoding="utf-8")
    recipe = Recipe(
        model=str(assets.minilm()), data=str(text), keep=keep, seed=seed, threads=threads
    )
    with steps("all"), Bars() as bars:
        report = Rounds(recipe, out, minutes, count).run(overwrite=True, progress=bars)
    dense = load_model(assets.minilm(), torch.float32, task="encoder")
    healed = load_model(out, torch.float32, task="encoder").model
    shutil.rmtree(out)
    healing = report["healing"]
    return {
        "keep": keep,
        "rounds": count,
        "minutes": minutes,
        "seed": seed,
        "threads": threads,
        "seconds": steps.done[0]["seconds"],
        "parameters": sum(p.numel() for p in healed.parameters()),
        "measured": healing["measured"],
        "before": healing["before"],
        "after": healing["after"],
        "steps": healing["steps"],
        **versions(),
        **similarity_judge(dense.model, dense.tokenizer)(healed),
    }


def once(entry: Entry) -> float:
    """Minutes of healing for one cut that takes as long in all."""
    cutting = entry["seconds"] / 60 - entry["minutes"]
    return entry["minutes"] + cutting * (1 - 1 / entry["rounds"])


def main() -> None:
    given = arguments()
    for keep in [] if given.page else given.keeps:
        for seed in given.seeds:
            for count in given.counts:
                name = f"{keep:g}-{count}-{seed}"
                rounds, single = (given.results / f"{name}-{k}.json" for k in ("rounds", "once"))
                if not rounds.exists():
                    print(f"keep {keep:g}, seed {seed}, {count} rounds", flush=True)
                    write(rounds, run(keep, count, given.minutes, seed, given.threads))
                if not single.exists():
                    print(f"keep {keep:g}, seed {seed}, once, as long as {count}", flush=True)
                    minutes = once(json.loads(rounds.read_text("utf-8")))
                    write(single, run(keep, 1, minutes, seed, given.threads))
    write_between(PAGE, "rounds", section(there(given.results)))


def section(found: Sequence[Entry]) -> str:
    """The table in Markdown."""
    first = found[0]
    dense = ", ".join(f"{first['similarity'][name]['dense']:.3f} {name}" for name in RATINGS)
    found = sorted(found, key=lambda e: (-e["keep"], e["seed"], -e["rounds"]))
    about = (
        f"all-MiniLM-L6-v2, {first['threads']} threads, `python benchmarks/rounds.py`; "
        f"{first['measured']} of the hidden states on the held-out end of the text, and "
        f"correlations with people's ratings (dense: {dense}). Each run in rounds stands above "
        "one cut that takes as long in all."
    )
    head = "| keep | seed | rounds | minutes of healing | in all | numbers | before the last "
    head += "healing | after | " + " | ".join(RATINGS) + " |"
    return "\n".join([about, "", head, "|" + "---|" * (8 + len(RATINGS)), *map(_row, found)])


def _row(entry: Entry) -> str:
    cells = [
        f"{entry['keep']:g}",
        str(entry["seed"]),
        str(entry["rounds"]),
        f"{entry['minutes']:.1f}",
        duration(entry["seconds"]),
        f"{entry['parameters']:,}",
        f"{entry['before']:.4g}",
        f"{entry['after']:.4g}",
        *(f"{entry['similarity'][name]['correlation']:.3f}" for name in RATINGS),
    ]
    return f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    main()
