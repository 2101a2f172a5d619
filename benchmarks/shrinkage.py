"""How far to shrink the inputs' second moment, and what the gauge is worth: perplexity over dense.

    python benchmarks/shrinkage.py TEXT_FOLDER [--windows 64] [--length 256] [--keep 0.8]

Half of the text files (``*.txt``, by a seeded shuffle) calibrates, the other half evaluates. Keep
it off the text that the docs report on. The table of LOG.md was made on the sources of the Python
documentation (Debian's python3.11-doc, ``html/_sources``).
"""

import argparse
import random
from copy import deepcopy
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch

from bondwise import lowrank
from bondwise.checkpoint.loading import load_model
from bondwise.choose.dry_run import plan_model
from bondwise.demo import assets
from bondwise.evaluate.language import compare
from bondwise.fit.fit import fit
from bondwise.fit.metric import Metric
from bondwise.flow.calibrate import Inputs
from bondwise.flow.forms.door import batches
from bondwise.flow.text import windows

FIXED = (1e-6, 0.02, 0.2, 0.4)
DEPENDENCE = (1, 4, 8)  # tokens that tell as much as one independent token


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--length", type=int, default=256)
    parser.add_argument("--windows", type=int, default=64)
    parser.add_argument("--shown", type=int, default=16, help="windows to evaluate on")
    parser.add_argument("--keep", type=float, default=0.8)
    arguments = parser.parse_args()
    files = sorted(arguments.folder.rglob("*.txt"))
    random.Random(1).shuffle(files)
    half = len(files) // 2
    text = "\n\n".join(file.read_text("utf-8") for file in files[:half])
    held_out = [file.read_text("utf-8") for file in files[half:]]

    loaded = load_model(assets.smollm2(), torch.float32)
    teacher, model = loaded.model, deepcopy(loaded.model)
    work = {row.name: row.network for row in plan_model(teacher, arguments.keep) if row.changes}
    inputs = Inputs({name: teacher.get_submodule(name) for name in work})
    count, length = arguments.windows, arguments.length
    inputs.watch(teacher, batches(text, loaded.tokenizer, count=count, length=length))
    shown = windows(loaded.tokenizer, held_out, arguments.shown, length)
    moments = {path: inputs.of(path) for path in work}

    def row(name: str, metric, plain: bool = False) -> None:
        for path, net in work.items():
            weight = teacher.get_submodule(path).weight
            if plain:  # r (m + n) numbers, the gauge stored with the rest
                out, inp = weight.shape
                net = lowrank(out, inp, int(arguments.keep * out * inp / (out + inp)))
            cores = fit(weight, net, metric(moments[path])).cores
            model.get_submodule(path).weight.data.copy_(cores[0] @ cores[1])
        found = compare(model, teacher, shown, dtype=torch.bfloat16)
        print(f"{name:40} {found.model.perplexity:8.2f} {found.ratio:7.3f}", flush=True)

    for strength in FIXED:
        row(f"to the diagonal, {strength:g}", partial(shrunk, strength=strength))
    for part in DEPENDENCE:
        row(f"to the diagonal, in/(in + tokens/{part})", partial(counted, part=part))
    for strength in FIXED:
        row(f"to the identity, {strength:g}", partial(to_identity, strength=strength))
    row("plain storage, in/(in + tokens)", partial(counted, part=1), plain=True)


def shrunk(seen: Metric, strength: float) -> Metric:
    return replace(seen, shrinkage=strength)


def counted(seen: Metric, part: int) -> Metric:
    size = len(seen.second_moment)
    return replace(seen, shrinkage=size / (size + seen.tokens / part))


def to_identity(seen: Metric, strength: float) -> torch.Tensor:
    moment = seen.second_moment.double() / seen.tokens
    mean = moment.diagonal().mean() * torch.eye(len(moment), dtype=moment.dtype)
    return (1 - strength) * moment + strength * mean


if __name__ == "__main__":
    main()
