"""How far to shrink the inputs' second moment: perplexity over dense for a few strengths.

    python benchmarks/shrinkage.py TEXT_FOLDER [--tokens-a-window 256] [--windows 64] [--keep 0.8]

Half of the text files (``*.txt``, by a seeded shuffle) calibrates, the other half evaluates. Keep it
off the text that the docs report on. The table of LOG.md was made on the sources of the Python
documentation (Debian's python3.11-doc, ``html/_sources``).
"""

import argparse
import random
from copy import deepcopy
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

STRENGTHS = {
    "1e-6": lambda size, tokens: 1e-6,
    "0.02": lambda size, tokens: 0.02,
    "0.2": lambda size, tokens: 0.2,
    "0.4": lambda size, tokens: 0.4,
    "in/(in + tokens)": lambda size, tokens: size / (size + tokens),
    "in/(in + tokens/4)": lambda size, tokens: size / (size + tokens / 4),
    "in/(in + tokens/8)": lambda size, tokens: size / (size + tokens / 8),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--length", type=int, default=256)
    parser.add_argument("--windows", type=int, default=64)
    parser.add_argument("--shown", type=int, default=16, help="windows to evaluate on")
    parser.add_argument("--keep", type=float, default=0.8)
    parser.add_argument("--only", nargs="*", default=list(STRENGTHS))
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
    for name in arguments.only:
        for path, net in work.items():
            seen = inputs.of(path)
            size = len(seen.second_moment)
            metric = Metric(seen.second_moment, seen.tokens, STRENGTHS[name](size, seen.tokens))
            cores = fit(teacher.get_submodule(path).weight, net, metric).cores
            model.get_submodule(path).weight.data.copy_(cores[0] @ cores[1])
        found = compare(model, teacher, shown, dtype=torch.bfloat16)
        print(f"{name:20} {found.model.perplexity:8.2f} {found.ratio:7.3f}", flush=True)


if __name__ == "__main__":
    main()
