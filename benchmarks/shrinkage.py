"""How far to shrink the inputs' second moment: perplexity over dense for a few strengths.

    python benchmarks/shrinkage.py TEXT_FOLDER [--windows 64] [--length 256] [--keep 0.8]

Half of the text files (``*.txt``, by a seeded shuffle) calibrates, the other half evaluates. Keep
it off the text that the docs report on. The table of LOG.md was made on the sources of the Python
documentation (Debian's python3.11-doc, ``html/_sources``).
"""

import argparse
import random
from copy import deepcopy
from functools import partial
from pathlib import Path

import torch

from bondwise.demo import assets
from bondwise.evaluate.language import compare
from bondwise.huggingface.loading import load_model
from bondwise.model.calibrate import Inputs
from bondwise.model.data import batches
from bondwise.model.tensorize import plan_model
from bondwise.model.text import windows
from bondwise.weight.fit import fit
from bondwise.weight.metric import Metric

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
    strengths = {f"{s:g}": lambda _, s=s: s for s in FIXED}
    strengths |= {f"in/(in + tokens/{k})": partial(counted, k) for k in DEPENDENCE}
    for name, strength in strengths.items():
        for path, net in work.items():
            seen = inputs.of(path)
            metric = Metric(seen.second_moment, seen.tokens, strength(seen))
            cores = fit(teacher.get_submodule(path).weight, net, metric).cores
            model.get_submodule(path).weight.data.copy_(cores[0] @ cores[1])
        found = compare(model, teacher, shown, dtype=torch.bfloat16)
        print(f"{name:20} {found.model.perplexity:8.2f} {found.ratio:7.3f}", flush=True)


def counted(dependence: int, seen: Metric) -> float:
    size = len(seen.second_moment)
    return size / (size + seen.tokens / dependence)


if __name__ == "__main__":
    main()
