"""How much of the lost quality healing brings back, in so many minutes.

    python benchmarks/healing.py [--keeps 0.8,0.6,0.5] [--methods global,text,..] [--minutes 15]

SmolLM2-135M, compressed by ``bondwise compress`` on Wikipedia and kept in the cache, then healed on
the same articles. ``dense`` and ``dense-text`` are the fair references: the dense model given the
same training. ``lora`` trains low-rank adapters on the cores alone. Judged on articles held out
from both, and on news, in float32 with weights rounded to bfloat16. Each cell is one JSON file;
those that are there are not run again. The page docs/benchmarks.md is made from them at the end,
--page makes it alone. A run that is cut off goes on. Run it on a machine that does nothing else:
minutes are its budget.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

import torch
from comparison import course
from comparison.cells import there, versions, write
from comparison.flags import above_zero, several, some
from comparison.page import PAGE, write_between
from comparison.subjects import Draw, compressed_smollm2, held_out_texts, language_judge, wikipedia
from torch import nn

import bondwise as bw
from bondwise.checkpoint.cache import cache_directory
from bondwise.checkpoint.loading import load_model
from bondwise.demo import assets
from bondwise.heal.run import Healed
from bondwise.progress import Bars, Steps
from bondwise.report.units import duration, size

HERE = Path(__file__).parent
KEPT = cache_directory() / "benchmarks" / "healing"
METHODS: dict[str, tuple[str, dict[str, Any]]] = {
    "none": ("not healed", {}),
    "global": ("healed", {}),
    "text": ("healed, the text in its loss", {"task": 1.0}),
    "text-only": ("healed without the teacher", {"task": 1.0, "distil": 0.0}),
    "lora": ("adapters on the cores", {"train": "re:.*lora_.*"}),
    "dense": ("the dense model, trained alike", {}),
    "dense-text": ("the dense model, with the text in its loss", {"task": 1.0}),
}
PLOT = "pictures/benchmarks/healing.svg"
CURVES = f"""

The curve of each run, on the end of the training text, which is held out there. The minutes are \
those of the steps; the teacher's answers and the looks come on top.

![Perplexity over dense against minutes, one line per healing]({PLOT})"""
TEXTS = ("in domain", "out of domain")

Entry = dict[str, Any]


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--keeps", type=several(float))
    parser.add_argument("--methods", type=some(METHODS), default=list(METHODS))
    parser.add_argument("--student", type=Path, help="a compressed SmolLM2 in place of our own")
    parser.add_argument("--minutes", type=above_zero, default=15.0)
    parser.add_argument(
        "--steps", type=int, help="as many as the minutes allow, where other work slows the clock"
    )
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--windows", type=int, default=64, help="windows of each text to judge on")
    parser.add_argument("--length", type=int, default=512, help="tokens of a window")
    parser.add_argument("--results", type=Path, default=HERE / "results" / "healing")
    parser.add_argument("--page", action="store_true", help="make the page and run nothing")
    return parser.parse_args()


def student(keep: float, given: argparse.Namespace) -> nn.Module:
    """SmolLM2 at a keep, compressed once and kept in the cache, or as given; dense at 1."""
    source = assets.smollm2() if keep == 1 else given.student or compressed_smollm2(keep)
    return load_model(source, torch.float32, task="causal").model


def healed(
    model: nn.Module, method: str, keep: float, tokenizer: Any, given: argparse.Namespace
) -> Healed:
    """The model after so many minutes, with a state that a cut run goes on from."""
    if method == "lora":
        _adapt(model)
    with Bars() as bars:
        return bw.heal(
            model,
            lambda: load_model(assets.smollm2(), torch.float32, task="causal").model,
            wikipedia(),
            tokenizer=tokenizer,
            minutes=None if given.steps else given.minutes,
            steps=given.steps,
            state=KEPT / "runs" / f"{method}-{given.minutes:g}-{keep:g}",
            inplace=True,
            progress=bars,
            **METHODS[method][1],
        )


def _adapt(model: nn.Module) -> None:
    """Adapters of rank 8 on every core."""
    from peft import LoraConfig, inject_adapter_in_model

    cores = [
        f"{path}.core_{k}"
        for path, layer in model.named_modules()
        if isinstance(layer, bw.TensorLinear)
        for k in range(len(layer.network.cores))
    ]
    inject_adapter_in_model(LoraConfig(r=8, target_modules=[], target_parameters=cores), model)


def run(method: str, keep: float, given: argparse.Namespace) -> Entry:
    """One cell: healed, judged, and what it took."""
    torch.set_num_threads(given.threads)
    loaded = load_model(assets.smollm2(), torch.float32, task="causal")
    model, steps, entry = student(keep, given), Steps(), Entry()
    before = sum(p.numel() for p in model.parameters())
    if method != "none":
        with steps("heal"):
            found = healed(model, method, keep, loaded.tokenizer, given)
        model = found.model
        took = [line["took"] for line in found.history]
        entry = {
            "steps": found.steps,
            "recipe": found.recipe.to_json(),
            "measured": [found.before, found.after],
            "notes": list(found.notes),
            "step_seconds": median(took) if took else None,
            "curve": [
                [line["seconds"], line["perplexity"]]
                for line in found.history
                if line.get("perplexity") is not None
            ],
            "peak_bytes": steps.done[0]["peak_bytes"],
            "seconds": steps.done[0]["seconds"],
        }
    draw = Draw(given.windows, given.length)
    folder = KEPT / "float32"
    judge = language_judge(
        loaded.model, loaded.tokenizer, held_out_texts(), draw, folder, computes="float32"
    )
    about = {"method": method, "keep": keep, "minutes": given.minutes, "threads": given.threads}
    about["student"] = "given" if given.student else "compress"
    about["by"] = "steps" if given.steps else "time"
    about |= {"windows": draw.windows, "length": draw.length, "parameters": before}
    return about | {**versions(), **judge(model), **entry}


def main() -> None:
    given = arguments()
    keeps = given.keeps or [0.8, 0.6, 0.5]
    references = [m for m in given.methods if m.startswith("dense")]
    cells = [(m, k) for k in keeps for m in given.methods if m not in references]
    cells += [(m, 1.0) for m in references]
    for method, keep in [] if given.page else cells:
        file = given.results / f"{method}-{keep:g}-{given.minutes:g}m.json"
        if not file.exists():
            print(f"{METHODS[method][0]}, keep {keep:g}", flush=True)
            write(file, run(method, keep, given))
    found = there(given.results)
    drawn = picture(found)
    write_between(PAGE, "healing", section(found) + (CURVES if drawn else ""))
    if drawn:
        (PAGE.parent / PLOT).write_text(drawn, "utf-8")


def section(found: Sequence[Entry]) -> str:
    """The table in Markdown."""
    first = found[0]
    dense = [f"{first['texts'][name]['dense']:.2f} {name}" for name in TEXTS]
    order = list(METHODS)
    found = sorted(found, key=lambda e: (-e["keep"], order.index(e["method"])))
    about = (
        f"Perplexity over the dense model's ({' and '.join(dense)}) on {first['windows']} windows "
        f"of {first['length']} tokens, {first['threads']} threads, `make bench-heal`. What is "
        'healed and judged was held out from each other. "In steps": as many steps as the minutes '
        "allow on two quiet cores, run beside other work. A cell that is missing was not run."
    )
    head = "| keep | healed | minutes | steps | in domain | out of domain "
    head += "| KL | top-1 | a step | peak memory |"
    rule = "|" + "---|" * 10
    return "\n".join([about, "", head, rule, *map(_row, found), *_said(found)])


def _said(found: Sequence[Entry]) -> list[str]:
    """What the healings themselves said, in the order of the table."""
    notes = [(entry, note) for entry in found for note in entry.get("notes", ())]
    if not notes:
        return []
    return ["", "What the runs said of themselves, where a cell keeps it:", ""] + [
        f"- keep {e['keep']:g}, {METHODS[e['method']][0]}, {e['minutes']:g} min: {note}."
        for e, note in notes
    ]


def picture(found: Sequence[Entry]) -> str:
    """Perplexity on the end of the training text against minutes; nothing without a dense run."""
    dense = next((entry["measured"][0] for entry in found if entry["keep"] == 1), None)
    curves = [entry for entry in found if entry.get("curve")]
    if dense is None or not curves:
        return ""
    panels = {
        ("dense" if keep == 1 else f"keep {keep:g}") + ": perplexity over dense": {
            f"{METHODS[entry['method']][0]}, {entry['minutes']:g} min": [
                (seconds / 60, perplexity / dense)
                for seconds, perplexity in [[0, entry["measured"][0]], *entry["curve"]]
            ]
            for entry in curves
            if entry["keep"] == keep
        }
        for keep in sorted({entry["keep"] for entry in curves}, reverse=True)
    }
    return course.svg(panels, "SmolLM2-135M healed: perplexity over dense against minutes of steps")


def _row(entry: Entry) -> str:
    here, there = (entry["texts"][name] for name in TEXTS)
    steps = entry.get("steps")
    cells = [
        f"{entry['keep']:g}",
        METHODS[entry["method"]][0],
        f"{entry['minutes']:g}{' in steps' * (entry.get('by') == 'steps')}" if steps else "",
        str(steps["global"] if isinstance(steps, dict) else steps) if steps else "",
        _ratio(here),
        _ratio(there),
        f"{here['kl']:.3f}",
        f"{here['top1']:.1%}",
        duration(entry["step_seconds"]) if entry.get("step_seconds") else "",
        size(entry["peak_bytes"]) if steps else "",
    ]
    return f"| {' | '.join(cells)} |"


def _ratio(text: Entry) -> str:
    low, high = text["interval"]
    return f"{text['ratio']:.3f}x ({low:.3f} to {high:.3f})"


if __name__ == "__main__":
    main()
