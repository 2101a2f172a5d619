"""What a call of a layer as built costs beside dense: layers of every topology, and a whole model.

``OMP_NUM_THREADS=1 python benchmarks/forward.py [--model]``: one thread, both in turns in one
process, medians. A number is the time over dense's. The model has SmolLM2's sizes and random
weights, low rank at keep 0.6.
"""

import sys
import time
from collections.abc import Callable, Sequence
from statistics import median

import torch
from torch import nn

import bondwise as bw
from bondwise.layers.networks import compacted

SIDE, MODES, BATCHES = 768, (24, 32), (1, 16, 256)
NETS = {
    "lowrank": bw.lowrank(SIDE, SIDE, 192),
    "mpo": bw.mpo(MODES, MODES, 64),
    "btt": bw.btt(MODES, MODES, 2),
    "ring": bw.ring(MODES, MODES, 8),
    "cp": bw.cp(MODES, MODES, 64),
    "tucker": bw.tucker(MODES, MODES, 16),
    "kron": bw.kron(MODES, MODES, 8),
    "tree": bw.tree(MODES, MODES, 32),
}


def seconds(calls: Sequence[Callable[[], object]], rounds: int = 30, each: int = 5) -> list[float]:
    """The median time of each call, in turns."""
    found: list[list[float]] = [[] for _ in calls]
    for _ in range(rounds):
        for own, call in zip(found, calls, strict=True):
            start = time.perf_counter()
            for _ in range(each):
                call()
            own.append((time.perf_counter() - start) / each)
    return [median(own) for own in found]


@torch.no_grad()
def layers() -> None:
    """A line for each topology, with its gauge and without."""
    dense = nn.Linear(SIDE, SIDE)
    for gauge in (True, False):
        for name, net in NETS.items():
            layer = bw.TensorLinear(net, bias=True)
            if not gauge:
                layer = bw.TensorLinear.of([compacted(bw.compact(net, layer.cores()))], layer.bias)
            over = []
            for batch in BATCHES:
                x = torch.randn(batch, SIDE)
                ours, theirs = seconds([lambda x=x, f=layer: f(x), lambda x=x: dense(x)])
                over.append(f"{ours / theirs:.2f}")
            print(f"{name:8} {'whole' if gauge else 'gauge-free':10} {'  '.join(over)}", flush=True)


@torch.no_grad()
def model() -> None:
    """Prefill of 256 tokens, and one token, of a model of SmolLM2's sizes."""
    from transformers import LlamaConfig, LlamaForCausalLM

    sizes = {"hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30}
    heads = {"num_attention_heads": 9, "num_key_value_heads": 3, "vocab_size": 49152}
    torch.manual_seed(0)
    dense = LlamaForCausalLM(LlamaConfig(**sizes, **heads, tie_word_embeddings=True)).eval()
    small = bw.tensorize(dense, keep=0.6, format="lowrank").model
    for tokens in (256, 1):
        ids = torch.randint(sizes["hidden_size"], (1, tokens))
        ours, theirs = seconds([lambda i=ids: small(i), lambda i=ids: dense(i)], 9, 1)
        print(f"{tokens} tokens {ours / theirs:.2f}", flush=True)


if __name__ == "__main__":
    torch.set_num_threads(1)
    layers()
    if "--model" in sys.argv:
        model()
