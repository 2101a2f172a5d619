"""Decoding with a static cache, eager and compiled: a prepared model beside the dense one.

    python benchmarks/static.py [DIR] [--models smollm2,wide] [--dtypes float32,bfloat16]

The models are those of ``benchmarks/models.py``. Each side writes tokens one by one after a prompt,
its keys and values in a ``transformers.StaticCache``, as it is and under ``torch.compile``
(inductor, ``fullgraph=True``). The four take turns; what is compiled was compiled before. Printed
is tokens per second, medians, and ours over dense in the same mode. Run it on a machine that does
nothing else.
"""

import argparse
import json
import time
from collections.abc import Callable
from statistics import median
from typing import Any

import torch
from comparison.cells import versions, write
from comparison.commit import processor
from comparison.page import PAGE, write_between
from models import KEEPS, SUBJECTS, flags
from torch import Tensor
from transformers import StaticCache

import bondwise as bw
from bondwise.bench.run import Load, prompts
from bondwise.checkpoint.loading import load_model
from bondwise.compress.recipe import dtype

NAMES = {"smollm2": "SmolLM2-135M", "wide": "Llama of width 2048"}


def writer(model: Any, load: Load, compiled: bool) -> Callable[[Tensor], tuple[float, list[int]]]:
    """Seconds of a token, and the tokens, for a prompt."""
    run = torch.compile(model, fullgraph=True) if compiled else model

    @torch.no_grad()
    def written(ids: Tensor) -> tuple[float, list[int]]:
        cache = StaticCache(config=model.config, max_cache_len=load.prompt + load.tokens)
        logits = model(input_ids=ids, past_key_values=cache, use_cache=True).logits
        tokens, start = [int(logits[0, -1].argmax())], time.perf_counter()
        for at in range(load.prompt, load.prompt + load.tokens):
            token, place = torch.tensor([[tokens[-1]]]), torch.tensor([[at]])
            out = run(input_ids=token, position_ids=place, past_key_values=cache, use_cache=True)
            tokens.append(int(out.logits[0, -1].argmax()))
        return (time.perf_counter() - start) / load.tokens, tokens

    return written


def measured(name: str, kind: str, given: argparse.Namespace) -> dict[str, Any]:
    """Tokens per second of both sides, in both modes."""
    load = Load(given.prompt, given.tokens)
    folders = dict(zip(("ours", "dense"), SUBJECTS[name](given), strict=True))
    models = {who: load_model(str(path), dtype(kind)).model.eval() for who, path in folders.items()}
    entries = models["dense"].config.vocab_size
    ids = prompts(load, entries, "cpu")[:1]
    bw.prepare(models["ours"], rows=(1, given.prompt))
    runs = {
        f"{who}, {'compiled' if compiled else 'eager'}": writer(model, load, compiled)
        for compiled in (False, True)
        for who, model in models.items()
    }
    for who in models:  # both modes write the same
        eager, compiled = (runs[f"{who}, {mode}"](ids)[1] for mode in ("eager", "compiled"))
        if kind == "float32" and eager != compiled:
            raise ValueError(f"{name}, {who}: compiled writes {compiled}, eager {eager}.")
    took: dict[str, list[float]] = {run: [] for run in runs}
    for _ in range(given.repeats):
        for run, one in runs.items():
            took[run].append(one(ids)[0])
    return {
        "model": name, "keep": KEEPS[name], "layers": given.layers, "dtype": kind,
        "prompt": load.prompt, "tokens": load.tokens, "repeats": given.repeats,
        "threads": torch.get_num_threads(), "processor": processor(),
        "tokens_per_second": {run: 1 / median(seconds) for run, seconds in took.items()},
    } | versions()  # fmt: skip


def table(found: list[dict[str, Any]]) -> str:
    """The section of docs/benchmarks.md."""
    if not found:
        return ""
    lines = [
        "| model, dtype | eager, tokens/s | dense | ratio | compiled | dense | ratio |",
        "|---|---|---|---|---|---|---|",
    ]
    for entry in found:
        rates, cells = entry["tokens_per_second"], [f"{NAMES[entry['model']]} {entry['dtype']}"]
        for mode in ("eager", "compiled"):
            ours, dense = (rates[f"{who}, {mode}"] for who in ("ours", "dense"))
            cells += [f"{ours:.1f}", f"{dense:.1f}", f"{ours / dense:.2f}"]
        lines.append(f"| {' | '.join(cells)} |")
    told = found[0]
    said = (
        "With a static cache (`transformers.StaticCache`), eager and under `torch.compile` "
        f"(inductor, one graph): {told['tokens']} tokens after a prompt of {told['prompt']}, "
        f"medians of {told['repeats']} runs in turns, `benchmarks/static.py`, threads: "
        f"{told['threads']}, {told['processor']}, torch {told['torch']}, at commit "
        f"{told['commit']}."
    )
    return "\n\n".join([said, "\n".join(lines)])


def main() -> None:
    given = flags(__doc__, prompt=64, tokens=16, repeats=7, results="static").parse_args()
    torch.set_num_threads(given.threads)
    if not given.page:
        for name in given.models:
            for kind in given.dtypes:
                entry = measured(name, kind, given)
                write(given.results / f"{name}-{entry['keep']:g}-{kind}.json", entry)
                print(name, kind, {k: round(v, 1) for k, v in entry["tokens_per_second"].items()})
    files = sorted(given.results.glob("*.json"))
    write_between(PAGE, "static", table([json.loads(f.read_text("utf-8")) for f in files]))


if __name__ == "__main__":
    main()
