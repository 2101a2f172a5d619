"""Made-up readings with all that the page can show: small ones, odd ones, and one of full size."""

import math
import random
from base64 import b64encode

KINDS = {
    "q_proj": (576, 576), "k_proj": (192, 576), "v_proj": (192, 576), "o_proj": (576, 576),
    "gate_proj": (1536, 576), "up_proj": (1536, 576), "down_proj": (576, 1536),
}  # fmt: skip
WORDS = """the of and to in a was is for as on with by he that at from his it an were are which this
river station north harbour bridge season village album game species church army born 1 2 19 20
January March engine signal 's , . ( ) <unk> é ship"""
BEFORE, AFTER = 16, 7


def reading(blocks=2, features=6, examples=5, rank=24, kinds=KINDS, windows=8, length=128, seed=0):
    """Low rank throughout, as `bondwise read` writes it."""
    rng = random.Random(seed)
    pieces = ["\n", *(word if word[0] in ",.'" else f" {word}" for word in WORDS.split())]
    total = windows * length
    made = {
        "bondwise": "0.1.0", "model": "smollm2-0.6", "source": "models/smollm2-0.6", "seed": 0,
        "command": "bondwise read models/smollm2-0.6 --data text.txt --out page.html",
        "corpus": {
            "pieces": pieces, "windows": windows, "length": length,
            "ids": [min(int(rng.expovariate(0.1)), len(pieces) - 1) for _ in range(total)],
        },
        "notes": ["The gradient was taken on 8 of the windows."],
        "layers": [],
    }  # fmt: skip
    for block in range(blocks):
        for nth, (kind, (out, inp)) in enumerate(kinds.items()):
            part = "mlp" if kind in ("gate_proj", "up_proj", "down_proj") else "self_attn"
            name = f"model.layers.{block}.{part}.{kind}"
            own = max(2, int(rank * (1 - 0.5 * (nth % 3) / 2)))
            layer = lowrank(name, block, kind, out, inp, own)
            far = (2 * math.cos(block / 4 + nth) - 1.2) * (9 if nth < 4 else 2)
            layer["bonds"] = [
                bond(rng, made["corpus"], "a", own, min(features, own), examples, far)
            ]
            made["layers"].append(layer)
    return made


def lowrank(name, block, kind, out, inp, rank):
    return {
        "name": name, "block": block, "kind": kind, "shape": [out, inp], "tensorized": True,
        "network": "o a, a i -> (o) (i)", "sizes": {"o": out, "a": rank, "i": inp},
        "format": "lowrank", "stored": rank * (out + inp - rank), "sweep": [1, 0],
        "stack": [
            {"core": 1, "shape": [rank, inp], "nnz": rank * inp, "before": ["i"], "after": ["a"]},
            {"core": 0, "shape": [out, rank], "nnz": out * rank, "before": ["a"], "after": ["o"]},
        ],
    }  # fmt: skip


def bond(rng, corpus, name, size, features, examples, far):
    values = [10 * math.exp(-3 * k / size) * (1 + 0.02 * rng.random()) for k in range(size)]
    values.sort(reverse=True)
    flat = [math.exp(-2 * k / size) for k in range(size)]
    flat = [value / math.hypot(*flat) for value in flat]
    loss = [value**2 * rng.lognormvariate(0, 0.5) / 1e4 - 1e-4 for value in values]
    sure = [rng.random() < 0.8 for _ in range(size)]
    return {
        "name": name, "size": size, "kind": "cut", "cores": [0, 1],
        "shown": "Schmidt values of the weight across this bond, over the inputs' second moments.",
        "values": values, "entropy": 0.93 * math.log(size), "normalised_entropy": 0.93,
        "effective_rank": size**0.93,
        "nulls": [
            {"name": "shuffled", "applies": True, "why": None, "low": [0.9 * v for v in flat],
             "high": [1.1 * v for v in flat], "entropy": [0.96, 0.98], "p": 0.05, "distance": far},
            {"name": "gaussian", "applies": True, "why": "Rows and columns keep their moments.",
             "low": [0.7 * v for v in flat], "high": [0.85 * v for v in flat],
             "entropy": [0.95, 0.97], "p": 0.05, "distance": far + 4},
            {"name": "random gauge", "applies": False, "low": None, "high": None, "entropy": None,
             "why": "Schmidt values do not depend on the gauge.", "p": None, "distance": None},
        ],
        "importance": {
            "schmidt": values, "output": [v**2 * rng.uniform(0.6, 1.4) for v in values],
            "gradient": [x * rng.uniform(0.5, 1.5) for x in loss], "measured": loss,
            "agreement": {"schmidt": 0.71, "output": 0.88, "gradient": 0.93},
            "measured_in_all": 512,
        },
        "gauge": "canonical",
        "gauges": {
            "raw": {"norms": [rng.lognormvariate(0, 0.5) for _ in values], "identified": None},
            "canonical": {"norms": values, "identified": sure, "groups": [[0, 1]],
                          "why": "Two Schmidt values that are near to each other may mix.",
                          "stability": [rng.random() for _ in values]},
            "ica": {"norms": rng.sample(values, size), "identified": sure,
                    "stability": [rng.random() for _ in values]},
        },
        "features": [feature(rng, corpus, k, sure[k], examples) for k in range(features)],
    }  # fmt: skip


def feature(rng, corpus, index, sure, examples):
    """One whose values are largest on made-up places."""
    total = len(corpus["ids"])
    peaks = sorted((rng.expovariate(0.5) + 2 for _ in range(examples)), reverse=True)
    around = bytearray()
    for peak in peaks:
        near = [rng.randrange(110) if rng.random() < 0.3 else 0 for _ in range(BEFORE + 1 + AFTER)]
        near[BEFORE] = int(255 * peak / peaks[0])
        around += bytes(near)
    places = rng.sample(range(len(corpus["pieces"])), 8)
    words = rng.sample(corpus["pieces"], 16)
    counts = [int(total * math.exp(-abs(k - 24) / 2.5) / 5) for k in range(49)]
    return {
        "index": index, "identified": sure, "stability": rng.random(),
        "density": 0.3 * rng.random(), "skew": rng.gauss(0, 2), "scale": rng.random(),
        "histogram": {"low": -4.6, "high": 4.6, "counts": counts},
        "examples": [[rng.randrange(total), peak] for peak in peaks],
        "lowest": [[rng.randrange(total), -3 + 0.1 * k] for k in range(5)],
        "around": b64encode(bytes(around)).decode(),
        "tokens": [[place, 100 // (k + 1)] for k, place in enumerate(places)],
        "token_entropy": 2.1,
        "logits": {
            "up": [[word, 4.123 / (k + 1)] for k, word in enumerate(words[:8])],
            "down": [[word, -3.3 / (k + 1)] for k, word in enumerate(words[8:])],
        },
        "why_no_logits": None,
    }  # fmt: skip


def odd():
    """Hostile names, what is missing, several bonds, a dense weight, and one without a block."""
    made = reading(blocks=1, features=3, examples=2, kinds={"q_proj": (64, 64), "k_proj": (8, 6)})
    made["model"] = "</script><b>bold</b>"
    made["corpus"]["pieces"][1] = "</script><script>alert(1)</script>"
    full, bare = made["layers"]
    full["name"] = "h.0/attn <i>%41#q</i>"
    kept = full["bonds"][0]["features"][0]
    for name in list(kept):
        if name != "index":
            kept[name] = None
    kept["why_no_logits"] = "The layer does not write to the residual stream."
    full["bonds"][0]["features"][1]["around"] = None
    full["bonds"][0]["features"][1]["logits"] = None
    own = full["bonds"][0]["importance"]["gradient"]
    full["bonds"][0]["importance"]["measured"] = [None, own[1], *[None] * (len(own) - 2)]
    full["bonds"][0]["values"][-1] = float("nan")
    bare["bonds"] = [{"name": "a", "size": bare["sizes"]["a"]}]
    for name in ("stored", "stack", "sweep"):
        del bare[name]
    mpo = {
        "name": "score", "block": None, "kind": "score", "shape": [64, 64], "tensorized": True,
        "network": "o1 i1 a, a o2 i2 b, b o3 i3 -> (o1 o2 o3) (i1 i2 i3)",
        "sizes": {"o1": 4, "i1": 4, "a": 12, "o2": 4, "i2": 4, "b": 9, "o3": 4, "i3": 4},
        "format": "mpo",
        "bonds": [
            {"name": "a", "size": 12, "kind": "cut", "values": [3.0, 0.0]},
            {"name": "b", "size": 9, "kind": "cut", "nulls": [
                {"name": "shuffled", "applies": True, "distance": -31.0}]},
        ],
    }  # fmt: skip
    dense = {
        "name": "lm_head", "block": None, "kind": "lm_head", "shape": [100, 64],
        "tensorized": False, "bonds": [{"name": "fold", "size": 64, "values": [2.0, 1.0, 0.5]}],
    }  # fmt: skip
    nothing = {"name": "alone", "block": 0, "kind": "alone"}
    made["layers"] += [mpo, dense, nothing]
    return made


def full(blocks):
    """7 layers a block x 64 features x 20 examples, over 65,536 tokens of 20,000 kinds."""
    made = reading(blocks=1, features=64, examples=20, rank=240, windows=128, length=512)
    made["layers"] = [
        layer | {"name": layer["name"].replace(".0.", f".{block}."), "block": block}
        for block in range(blocks)
        for layer in made["layers"][:7]
    ]
    rng = random.Random(1)
    made["corpus"]["pieces"] += [f" word{k}" for k in range(20_000)]
    ids = made["corpus"]["ids"]
    for k in range(0, len(ids), 3):
        ids[k] = rng.randrange(20_000)
    return made
