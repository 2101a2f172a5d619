"""Where tensor formats beat the matrix, at the same stored numbers: output error, weight by weight.

    python benchmarks/formats.py [--keep 0.6] [--blocks 0,9,19,29] [--kinds q_proj,..,down_proj]
                                 [--formats "low rank" "tree, 4 sites" ..]

Every network gets the largest rank that stores at most ``keep`` of the weight's numbers without its
gauge. It is fitted to the weight alone and in the metric of the calibration inputs; both are judged
by ``||(W - W~) X|| / ||W X||`` on tokens of articles that calibration never saw. Each network of
each weight is one JSON file; those that are there are not run again. The page docs/benchmarks.md
is made from the files at the end.
"""

import argparse
import json
import math
import time
from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import replace
from math import ceil
from pathlib import Path
from statistics import median
from typing import Any

import torch
from comparison.cells import write
from comparison.methods import Calibration, input_metrics
from comparison.page import PAGE, write_between
from torch import Tensor

import bondwise as bw
from bondwise.checkpoint.loading import load_model
from bondwise.demo import assets
from bondwise.errors import FitError
from bondwise.fit.metric import Metric, second_moment
from bondwise.gauge.compact import pivot_bits, stored_numbers
from bondwise.network.ranks import capped
from bondwise.network.shapes import balanced

HERE = Path(__file__).parent
BITS = 16
KINDS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
MLP = ("gate_proj", "up_proj", "down_proj")

Build = Callable[[int, int, int], bw.Network]
Entry = dict[str, Any]


def _split(size: int, parts: int) -> tuple[int, ...]:
    return tuple(balanced(size, parts))


def _blocks(out: int, inp: int, count: int, rank: int) -> bw.Network:
    """Blocks along the longer side (of a square weight: its inputs), each of its own low rank."""
    if out > inp:
        return bw.btt((out // count, count), (1, inp), rank)
    return bw.btt((out, 1), (count, inp // count), rank)


FORMATS: dict[str, Build] = {
    "low rank": bw.lowrank,
    "MPO, 2 sites": lambda out, inp, r: bw.mpo(_split(out, 2), _split(inp, 2), r),
    "MPO, input folded in 2": lambda out, inp, r: bw.mpo((out, 1), (2, inp // 2), r),
    "MPO, output folded in 2": lambda out, inp, r: bw.mpo((2, out // 2), (inp, 1), r),
    "btt, 2 x 2 blocks": lambda out, inp, r: bw.btt((out // 2, 2), (2, inp // 2), r),
    "btt, longer side in 2": lambda out, inp, r: _blocks(out, inp, 2, r),
    "btt, longer side in 3": lambda out, inp, r: _blocks(out, inp, 3, r),
    "btt, longer side in 4": lambda out, inp, r: _blocks(out, inp, 4, r),
    "tree, 4 sites": lambda out, inp, r: bw.tree(_split(out, 4), _split(inp, 4), r),
    "Tucker, 2 x 2 modes": lambda out, inp, r: bw.tucker(_split(out, 2), _split(inp, 2), r),
}


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--keep", type=float, default=0.6)
    parser.add_argument("--blocks", default="0,9,19,29")
    parser.add_argument("--kinds", default=",".join(KINDS))
    parser.add_argument("--formats", nargs="+", choices=list(FORMATS), default=list(FORMATS))
    parser.add_argument("--windows", type=int, default=64, help="windows of 256 tokens, each text")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--results", type=Path, default=HERE / "results" / "formats")
    parser.add_argument("--page", action="store_true", help="make the page and run nothing")
    return parser.parse_args()


def numbers(net: bw.Network) -> int:
    """Stored numbers without the gauge, the pivots counted as the bits they take."""
    return stored_numbers(net) + ceil(pivot_bits(net) / BITS)


def at_keep(build: Build, out: int, inp: int, keep: float) -> bw.Network | None:
    """The network of the largest rank that stores at most so much; None where rank 1 is more."""
    ranks = range(1, min(out, inp) + 1)
    best = bisect_right(ranks, keep * out * inp, key=lambda r: numbers(capped(build(out, inp, r))))
    return capped(build(out, inp, best)) if best else None


def output_error(weight: Tensor, other: Tensor, moment: Tensor) -> float:
    """``||(W - W~) X|| / ||W X||`` with ``X X^T`` the moment, in float64."""
    weight, moment = weight.double(), moment.double()
    missing = weight - other.double()
    lost, whole = ((((part @ moment) * part).sum()) for part in (missing, weight))
    return math.sqrt(max(lost.item(), 0.0) / whole.item())


def measure(weight: Tensor, net: bw.Network, metric: Metric, unseen: Metric) -> Entry:
    """Errors of the fit in the metric and of the one to the weight alone; seconds of each."""
    moment = second_moment(replace(unseen, shrinkage=0.0), weight.shape[1])
    entry: Entry = {"network": str(net), "ranks": dict(net.bonds), "stored": numbers(net)}
    for name, given in (("weight", None), ("metric", metric)):
        start = time.perf_counter()
        try:
            found = bw.fit(weight, net, given)
        except FitError as error:
            entry[name] = {"why": str(error)}
            continue
        error = output_error(weight, bw.dense(found.network, found.cores), moment)
        entry[name] = {"error": error, "seconds": time.perf_counter() - start}
    return entry


def run(given: argparse.Namespace) -> None:
    loaded = load_model(assets.smollm2(), torch.float32, task="causal")
    blocks = [int(block) for block in given.blocks.split(",")]
    names = {
        f"model.layers.{block}.{'mlp' if kind in MLP else 'self_attn'}.{kind}": (block, kind)
        for block in blocks
        for kind in given.kinds.split(",")
    }
    texts = (assets.calibration_articles(), assets.held_out_articles())
    metrics, unseen = (
        input_metrics(
            loaded.model,
            list(names),
            Calibration(
                "\n\n".join(article.text for article in articles), loaded.tokenizer, given.windows
            ),
        )
        for articles in texts
    )
    for name, (block, kind) in names.items():
        weight = loaded.model.get_submodule(name).weight.detach()
        for label in given.formats:
            build = FORMATS[label]
            file = given.results / f"{given.keep:g}-{block}-{kind}-{label.replace(' ', '_')}.json"
            net = at_keep(build, *weight.shape, given.keep)
            if net is None or finished(file):
                continue
            entry = {"block": block, "kind": kind, "format": label, "keep": given.keep}
            entry |= {"windows": given.windows, "threads": given.threads}
            entry |= {"of": weight.numel()} | measure(weight, net, metrics[name], unseen[name])
            write(file, entry)
            print(f"{name} {label}: {entry['metric']}", flush=True)


def finished(file: Path) -> bool:
    """Whether both fits are there; one that was not possible is tried again."""
    return file.exists() and "error" in json.loads(file.read_text("utf-8"))["metric"]


def page(found: Sequence[Entry]) -> str:
    """The tables of every keep that there is."""
    parts = ["## Where tensor formats beat the matrix", ABOUT] if found else []
    for keep in sorted({entry["keep"] for entry in found}, reverse=True):
        own = [entry for entry in found if entry["keep"] == keep]
        about = f"`{command(own, keep)}`, {len(own)} fits of each sort."
        parts += [f"### At keep {keep:g}", about, table(own)]
        parts += against_data_free(own)
    return "\n\n".join(parts)


def command(found: Sequence[Entry], keep: float) -> str:
    """What makes these fits, and no others."""
    blocks = ",".join(map(str, sorted({entry["block"] for entry in found})))
    kinds = [kind for kind in KINDS if any(entry["kind"] == kind for entry in found)]
    names = [name for name in FORMATS if any(entry["format"] == name for entry in found)]
    parts = [f"python benchmarks/formats.py --keep {keep:g} --blocks {blocks}"]
    if len(kinds) < len(KINDS):
        parts.append("--kinds " + ",".join(kinds))
    if len(names) < len(FORMATS):
        parts.append("--formats " + " ".join(f'"{name}"' for name in names))
    return " ".join(parts)


ABOUT = """Output error on held-out Wikipedia tokens, fitted in the metric, over that of low rank in
the same metric; each network stores as many numbers as its ranks allow below the budget. Below 1
the tensor format wins. The mean is over blocks; in brackets is in how many of them it wins. Seconds
of multiplications are another matter: a format that wins here may run slower than dense."""


def table(found: Sequence[Entry]) -> str:
    """Kinds of weights down, formats across, each over low rank."""
    kinds = [kind for kind in KINDS if any(entry["kind"] == kind for entry in found)]
    errors = {
        (entry["format"], entry["kind"], entry["block"]): entry["metric"]["error"]
        for entry in found
        if "error" in entry["metric"]
    }
    formats = [name for name in FORMATS if any(key[0] == name for key in errors)]
    lines = [
        "| weight | low rank |" + "".join(f" {name} |" for name in formats[1:]),
        "|---" * (len(formats) + 1) + "|",
    ]
    for kind in kinds:
        blocks = sorted({block for name, k, block in errors if k == kind and name == "low rank"})
        plain = [errors["low rank", kind, block] for block in blocks]
        row = [f"| {kind} | {sum(plain) / len(plain):.3f} |" if plain else f"| {kind} | |"]
        for name in formats[1:]:
            pairs = [
                errors[name, kind, block] / errors["low rank", kind, block]
                for block in blocks
                if (name, kind, block) in errors
            ]
            wins = sum(pair < 1 for pair in pairs)
            mean = sum(pairs) / len(pairs) if pairs else 0.0
            row.append(f" {mean:.3f} ({wins} of {len(pairs)}) |" if pairs else " |")
        lines.append("".join(row))
    return "\n".join(lines)


def against_data_free(found: Sequence[Entry]) -> list[str]:
    """What the metric is worth: its error over that of the same network fitted without it."""
    both = [e for e in found if "error" in e["metric"] and "error" in e["weight"]]
    if not both:
        return []
    about = (
        "The same networks, fitted in the metric and to the weight alone, held-out output error of "
        "the first over the second:"
    )
    lines = [
        "| format | median | largest | median seconds in the metric, alone |\n|---|---|---|---|",
    ]
    for name in (*FORMATS, "all"):
        own = [entry for entry in both if name in (entry["format"], "all")]
        if own:
            ratios = [entry["metric"]["error"] / entry["weight"]["error"] for entry in own]
            took = [median(e[way]["seconds"] for e in own) for way in ("metric", "weight")]
            lines[-1] += (
                f"\n| {name} | {median(ratios):.3f} | {max(ratios):.3f} "
                f"| {took[0]:.1f}, {took[1]:.1f} |"
            )
    return [about, *lines]


def main() -> None:
    given = arguments()
    torch.set_num_threads(given.threads)
    if not given.page:
        run(given)
    files = sorted(given.results.glob("*.json"))
    write_between(PAGE, "formats", page([json.loads(file.read_text("utf-8")) for file in files]))


if __name__ == "__main__":
    main()
