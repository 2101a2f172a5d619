"""How fast whole models run, compressed and dense in turns: decoding at batch 1, and prefill.

    python benchmarks/models.py [DIR] [--models smollm2,wide] [--dtypes float32,bfloat16]

``smollm2`` is SmolLM2-135M as ``bondwise compress`` left it in DIR; without DIR it is compressed at
keep 0.6 once and kept in the cache. ``wide`` is a Llama of width 2048 with random weights, low rank
at keep 0.5 with the ranks of the budget without data: speed does not depend on values. Each model
in each dtype is one JSON file, measured anew by every run; the page docs/benchmarks.md is made from
the files at the end, --page makes it and measures nothing. Run it on a machine that does nothing
else.
"""

import argparse
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from comparison.cells import versions, write
from comparison.commit import processor
from comparison.flags import some
from comparison.page import PAGE, write_between
from comparison.subjects import compressed_smollm2
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

import bondwise as bw
from bondwise.bench.run import Load
from bondwise.bench.verb import bench
from bondwise.checkpoint.cache import cache_directory, filling
from bondwise.compress.compress import threads
from bondwise.compress.recipe import dtype
from bondwise.demo import assets
from bondwise.gauge.pivots import pack
from bondwise.layers.networks import Cores
from bondwise.layers.terms import Term
from bondwise.progress import Bars
from bondwise.report.speeds.benchmark import find
from bondwise.report.units import count, duration, instant, rate, size

HERE = Path(__file__).parent
KEPT = cache_directory() / "benchmarks" / "speed"
KEEPS = {"smollm2": 0.6, "wide": 0.5}
DTYPES = ("float32", "bfloat16")

Entry = dict[str, Any]


def flags(
    about: str, *, prompt: int, tokens: int, repeats: int, results: str
) -> argparse.ArgumentParser:
    """Those of a script that measures these models."""
    parser = argparse.ArgumentParser(description=about.splitlines()[0])
    parser.add_argument("folder", nargs="?", metavar="DIR", help="SmolLM2 as compress left it")
    parser.add_argument("--models", type=some(KEEPS), default=list(KEEPS))
    parser.add_argument("--dtypes", type=some(DTYPES), default=list(DTYPES))
    parser.add_argument("--layers", type=int, default=4, help="blocks of the wide Llama")
    parser.add_argument("--prompt", type=int, default=prompt)
    parser.add_argument("--tokens", type=int, default=tokens)
    parser.add_argument("--repeats", type=int, default=repeats)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--results", type=Path, default=HERE / "results" / results)
    parser.add_argument("--page", action="store_true", help="make the page and measure nothing")
    return parser


def smollm2(given: argparse.Namespace) -> tuple[Path, Path]:
    """SmolLM2-135M, compressed and dense."""
    made = Path(given.folder) if given.folder else compressed_smollm2(KEEPS["smollm2"])
    return made, assets.smollm2()


def wide(given: argparse.Namespace) -> tuple[Path, Path]:
    """A Llama of width 2048 with random weights, at low rank and dense."""
    target = KEPT / f"wide-{given.layers}-layers-{KEEPS['wide']:g}"
    if not target.exists():
        torch.manual_seed(0)
        model = LlamaForCausalLM(_config(given.layers)).eval()
        with filling(target) as folder:
            bw.save(model, folder / "dense")
            bw.save(randomly_low_rank(model, KEEPS["wide"]), folder / "low-rank")
    return target / "low-rank", target / "dense"


def _config(layers: int) -> LlamaConfig:
    return LlamaConfig(
        hidden_size=2048,
        intermediate_size=8192,
        num_hidden_layers=layers,
        num_attention_heads=32,
        num_key_value_heads=8,
        vocab_size=4096,
        max_position_embeddings=4096,
        bos_token_id=1,
        eos_token_id=2,
    )


def randomly_low_rank(model: nn.Module, keep: float) -> nn.Module:
    """The model with random low-rank weights in place of its own, stored without their gauge."""
    for row in bw.plan_model(model, keep=keep, format="lowrank"):
        if row.network is not None:
            parent, _, name = row.name.rpartition(".")
            linear = model.get_submodule(row.name)
            setattr(model.get_submodule(parent), name, random_layer(row.network, linear))
    return model


def random_layer(net: bw.Network, linear: nn.Module) -> bw.TensorLinear:
    """A layer with random entries beside an identity block at random inputs."""
    ((bond, rank),) = net.bonds.items()
    kind, inp = Cores(net, (None, bond)), net.shape[1]
    outer, inner = (torch.randn(shape) for shape in kind.shapes)
    outer *= 0.02 * rank**-0.5  # so that the weight has entries of about 0.02, as at its start
    pivots = pack(torch.randperm(inp)[:rank].sort().values, inp)
    term = Term(kind, (outer, inner.clamp(-1, 1)), kind.places((pivots,)))
    return bw.TensorLinear.of([term], linear.bias)


SUBJECTS: dict[str, Callable[[argparse.Namespace], tuple[Path, Path]]] = {
    "smollm2": smollm2,
    "wide": wide,
}


def run(given: argparse.Namespace) -> None:
    """Measure every model in every dtype."""
    for name in given.models:
        ours, dense = (str(path) for path in SUBJECTS[name](given))
        for kind in given.dtypes:
            load = Load(given.prompt, given.tokens)
            with Bars() as bars, threads(given.threads):
                report = bench(ours, dense, load, given.repeats, "cpu", dtype(kind), bars)
            entry = {"model": name, "keep": KEEPS[name], "layers": given.layers, "dtype": kind}
            entry |= {"processor": processor()} | versions() | report
            del entry["source"], entry["vs"]  # where they lie says nothing
            write(given.results / f"model-{name}-{KEEPS[name]:g}-{kind}.json", entry)


def page(found: Sequence[Entry]) -> str:
    """A table for every model."""
    parts = ["## How fast models run", about(found)] if found else []
    for name in KEEPS:
        own = [entry for entry in found if entry["model"] == name]
        if own:
            parts += [f"### {title(own[0])}", table(own)]
    return "\n\n".join(parts)


def title(entry: Entry) -> str:
    if entry["model"] == "smollm2":
        return f"SmolLM2-135M at keep {entry['keep']:g}"
    return (
        f"A Llama of width 2048, random weights, blocks: {entry['layers']}; low rank at keep "
        f"{entry['keep']:g}"
    )


def about(found: Sequence[Entry]) -> str:
    first = found[0]
    told = {
        name: ", ".join(sorted({str(entry[name]) for entry in found}))
        for name in ("threads", "processor", "torch", "commit", "repeats")
    }
    return (
        f"`{command(found)}`: dense, ours as built and ours prepared in turns, medians of "
        f"{told['repeats']} runs with the lowest and the highest ratio of the prepared one, run "
        f"by run. Decoding writes {first['tokens']} tokens after a prompt of "
        f"{first['prompt']}; prefill reads the prompt; both at batch 1. Threads: "
        f"{told['threads']}, {told['processor']}, torch {told['torch']}, at commit "
        f"{told['commit']}. Multiplications are a token's, in linear layers. Peak memory is that "
        "of a process that runs one model once, libraries included."
    )


def command(found: Sequence[Entry]) -> str:
    """What measures these files."""
    parts = ["python benchmarks/models.py"]
    usual = {"prompt": 256, "tokens": 32, "repeats": 9, "threads": 1}
    wide = [entry for entry in found if entry["model"] == "wide"]
    layers = {} if not wide or wide[0]["layers"] == 4 else {"layers": wide[0]["layers"]}
    changed = {name: found[0][name] for name in usual if found[0][name] != usual[name]} | layers
    names = {
        "models": [name for name in KEEPS if any(e["model"] == name for e in found)],
        "dtypes": [name for name in DTYPES if any(e["dtype"] == name for e in found)],
    }
    for name, all_ in {"models": list(KEEPS), "dtypes": list(DTYPES)}.items():
        changed |= {} if names[name] == all_ else {name: ",".join(names[name])}
    return " ".join([*parts, *(f"--{name} {value}" for name, value in changed.items())])


ROWS: dict[str, tuple[str, Callable[[Any], str]]] = {
    "decode": ("decode, tokens/s", rate),
    "prefill": ("prefill, tokens/s", rate),
    "time_to_first_token": ("time to first token", instant),
    "resident_bytes": ("the model in memory", size),
    "peak_bytes": ("peak memory of a process", size),
}


def table(found: Sequence[Entry]) -> str:
    """What is measured down; dense, ours and the ratio of each dtype across."""
    entries = sorted(found, key=lambda entry: DTYPES.index(entry["dtype"]))
    heads = "".join(f" {e['dtype']}: dense | as built | prepared | over dense |" for e in entries)
    lines = [f"| |{heads}", "|---" * (4 * len(entries) + 1) + "|"]
    for name, (label, unit) in ROWS.items():
        cells = (_cells(e, unit, name) for e in entries)
        lines.append(f"| {label} |{''.join(cells)}")
    for part in ("decode", "prefill"):
        cells = (_cells(e, count, "macs", part) for e in entries)
        lines.append(f"| multiplications, {part} |{''.join(cells)}")
    told = (duration(e["prepared"]["chosen"]["seconds"]) for e in entries)
    lines.append(f"| preparing |{''.join(f' | | {took} | |' for took in told)}")
    return "\n".join(lines)


def _cells(entry: Entry, unit: Callable[[Any], str], *path: str) -> str:
    """Four cells; what was timed is a spread. What preparing does not change has no third."""
    dense, ours, over = (find(entry[side], path) for side in ("before", "after", "ratio"))
    if over is None:  # a peak that could not be measured
        return " | | | |"
    ready, ratio = (find(own, path) for own in (entry["prepared"], entry["prepared"]["ratio"]))
    if not isinstance(over, dict):
        shown = "" if ready is None else unit(ready)
        return f" {unit(dense)} | {unit(ours)} | {shown} | {over if ratio is None else ratio:.3f} |"
    spread = f"{ratio['median']:.2f} [{ratio['low']:.2f}, {ratio['high']:.2f}]"
    medians = " | ".join(unit(own["median"]) for own in (dense, ours, ready))
    return f" {medians} | {spread} |"


def main() -> None:
    given = flags(__doc__, prompt=256, tokens=32, repeats=9, results="speed").parse_args()
    if not given.page:
        run(given)
    files = sorted(given.results.glob("model-*.json"))
    write_between(PAGE, "models", page([json.loads(file.read_text("utf-8")) for file in files]))


if __name__ == "__main__":
    main()
