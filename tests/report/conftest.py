"""Reports as real runs leave them: a language model of 30 blocks, an encoder, and odd ones."""

import math

import pytest

from bondwise.report.page import page
from browser import CHROMIUM, chromium

SMOLLM = {
    "self_attn.q_proj": (576, 576, 0.16),
    "self_attn.k_proj": (192, 576, 0.12),
    "self_attn.v_proj": (192, 576, 0.34),
    "self_attn.o_proj": (576, 576, 0.26),
    "mlp.gate_proj": (1536, 576, 0.22),
    "mlp.up_proj": (1536, 576, 0.27),
    "mlp.down_proj": (576, 1536, 0.31),
}
KEYS = ("name", "kind", "shape", "action", "reason", "format", "network", "sizes", "ranks")
KEYS += ("before", "after", "error", "block")


def tensorized(block, leaf, out, inp, error, keep):
    half = (out + inp) / 2
    exact = half - math.sqrt(half**2 - keep * out * inp)  # r (out + in - r) numbers are stored
    rank = max(8, int(exact / 8) * 8)
    given = (f"{block}.{leaf}", "Linear", [out, inp], "tensorize", "", "lowrank")
    given += ("o a, a i -> (o) (i)", {"o": out, "a": rank, "i": inp}, {"a": rank}, out * inp)
    given += (min(rank * (out + inp - rank), out * inp), error, block)
    return dict(zip(KEYS, given, strict=True))


def left_alone(name, kind, shape, reason, block=""):
    count = math.prod(shape)
    given = (
        name,
        kind,
        list(shape),
        "leave",
        reason,
        None,
        None,
        {},
        {},
        count,
        count,
        None,
        block,
    )
    return dict(zip(KEYS, given, strict=True))


def stack(family, count):
    weights = []
    for depth in range(count):
        wave = 0.75 + 0.35 * math.sin(3 * depth / count) + 0.12 * math.cos(2.1 * depth)
        for k, (leaf, (out, inp, error)) in enumerate(SMOLLM.items()):
            wobble = wave + 0.05 * math.sin(5 * depth + k)
            keep = 0.81 + 0.08 * math.cos(depth / 4 + k)
            block = f"{family}.{depth}"
            weights.append(tensorized(block, leaf, out, inp, error * wobble, keep))
    return weights


def totals(report, scale):
    weights = report["weights"]
    target = [weight for weight in weights if weight["action"] == "tensorize"]
    before, after = (sum(weight[key] for weight in target) for key in ("before", "after"))
    whole = sum(weight["before"] for weight in weights if weight["name"] != "lm_head")  # tied
    left = whole - before + after
    held = {"before": scale * whole, "after": scale * left}
    report |= {"targeted": {"before": before, "after": after}, "resident": held}
    report |= {"parameters": {"before": whole, "after": left}}
    report |= {"kept": after / before if before else 1.0, "bytes": held | {"source_file": None}}
    return report


def language_model():
    weights = [
        left_alone("model.embed_tokens", "Embedding", (49152, 576), "not among the targets"),
        *stack("model.layers", 30),
        *(
            left_alone(f"model.layers.{k}.{norm}.weight", "Parameter", (576,),
                       "not among the targets 'linear'", f"model.layers.{k}")
            for k in range(30) for norm in ("input_layernorm", "post_attention_layernorm")
        ),
        left_alone("lm_head", "Linear", (49152, 576), "tied to model.embed_tokens"),
    ]  # fmt: skip
    report = {
        "bondwise": "0.1.0", "source": "SmolLM2-135M-Instruct (GGUF Q4_1)", "keep": 0.8, "seed": 0,
        "weights": weights,
        "steps": [
            {"name": "fetch", "seconds": 21.4, "peak_bytes": 410_000_000},
            {"name": "calibrate", "seconds": 95.2, "peak_bytes": 1_310_000_000},
            {"name": "fit", "seconds": 141.7, "peak_bytes": 1_620_000_000},
            {"name": "save", "seconds": 1.9, "peak_bytes": 1_420_000_000},
            {"name": "evaluate", "seconds": 122.0, "peak_bytes": 2_050_000_000},
        ],
        "evaluation": [
            {"text": "in domain: Wikipedia, held-out articles", "windows": 32, "length": 512,
             "before": {"perplexity": 29.91},
             "after": {"perplexity": 44.52, "kl": 0.412, "top1": 0.687},
             "ratio": 1.488, "ratio_low": 1.451, "ratio_high": 1.527},
            {"text": "out of domain: Lee news", "windows": 32, "length": 512,
             "before": {"perplexity": 24.10},
             "after": {"perplexity": 40.77, "kl": 0.521, "top1": 0.641},
             "ratio": 1.692, "ratio_low": 1.630, "ratio_high": 1.751},
        ],
        "similarity": [],
        "samples": [
            {"prompt": "The most important thing about rivers is",
             "before": " that they carry water from the mountains to the sea, and that they are "
                       "home to a large number of fish and other animals.",
             "after": " that they are a source of water for the people who live near them, and "
                      "that they are used for the transport of goods."},
        ],
        "recipe": {"keep": 0.8, "targets": ["linear"], "format": "lowrank", "effort": "fast",
                   "data": {"windows": 64, "length": 512, "shrinkage": "auto"}},
        "commands": ["bondwise demo",
                     "bondwise compress ./smollm2 --keep 0.8 --data wiki.txt --out ./smollm2-0.8"],
    }  # fmt: skip
    totals(report, 2)
    report["bytes"]["source_file"] = 93_300_000
    return report


def sentence_encoder():
    weights = [
        left_alone("embeddings.words", "Embedding", (30522, 384), "not among the targets"),
        *stack("encoder.layer", 6),
    ]
    report = language_model() | {
        "source": "all-MiniLM-L6-v2", "weights": weights, "evaluation": [], "samples": [],
        "similarity": [{"name": "Lee 2005 ratings (Pearson)", "before": 0.656, "after": 0.641},
                       {"name": "WordSim353 (Spearman)", "before": 0.729, "after": 0.702}],
    }  # fmt: skip
    return totals(report, 4)


def odd_networks():
    """A small model of every topology, hostile and long names, a perplexity that overflowed."""
    forms = {
        "mpo": ("o1 i1 a, a o2 i2 b, b o3 i3 -> (o1 o2 o3) (i1 i2 i3)", {"a": 16, "b": 12}),
        "ring": ("z o1 i1 a, a o2 i2 b, b o3 i3 z -> (o1 o2 o3) (i1 i2 i3)",
                 {"z": 4, "a": 8, "b": 8}),
        "cp": ("o1 r, i1 r, o2 r, i2 r, o3 r, i3 r -> (o1 o2 o3) (i1 i2 i3)", {"r": 24}),
        "kron": ("s o1 i1, s o2 i2, s o3 i3 -> (o1 o2 o3) (i1 i2 i3)", {"s": 2}),
        "tucker": ("p q, o1 o2 o3 p, i1 i2 i3 q -> (o1 o2 o3) (i1 i2 i3)", {"p": 40, "q": 48}),
    }  # fmt: skip
    weights = []
    for name, (network, ranks) in forms.items():
        sizes = {f"{side}{k}": 8 for side in "oi" for k in (1, 2, 3)} | ranks
        weights.append(
            tensorized("", name, 512, 512, 0.4, 0.5)
            | {"name": f"net.<script>alert(1)</script>.{name}" + ".deep" * 30, "block": ""}
            | {"format": name, "network": network, "sizes": sizes, "ranks": ranks}
        )
    weights.append(
        left_alone("a&b<c>\"d'" + "x" * 120, "Conv2d", (64, 64, 3, 3), "<b>later</b> " * 20)
    )
    report = language_model() | {"source": "</script><script>alert(2)</script>/" + "long" * 40}
    report |= {"weights": weights, "steps": [], "samples": [], "commands": ["echo '</script>'"]}
    report["evaluation"][0]["after"]["perplexity"] = math.inf
    return totals(report, 4)


def untouched():
    report = language_model()
    kept = [weight for weight in report["weights"] if weight["action"] == "leave"]
    return totals(report | {"weights": kept, "evaluation": [], "steps": [], "samples": []}, 2)


def bare():
    """What `compress` without evaluation leaves: the optional parts are missing altogether."""
    report = language_model()
    for key in ("evaluation", "similarity", "samples", "recipe", "commands", "steps"):
        del report[key]
    return report


def dry_run():
    report = language_model() | {"evaluation": [], "steps": [], "samples": []}
    report["weights"] = [weight | {"error": None} for weight in report["weights"]]
    return report


@pytest.fixture(scope="session")
def written():
    """Every report with its page: to be read only."""
    makers = (language_model, sentence_encoder, odd_networks, untouched, bare, dry_run)
    made = {make.__name__: make() for make in makers}
    return {name: (report, page(report)) for name, report in made.items()}


@pytest.fixture
def demo():
    return language_model()


@pytest.fixture(scope="session")
def browser(tmp_path_factory):
    """One tab for all tests; each opens what it needs."""
    if CHROMIUM is None:
        pytest.skip("needs chromium to open the page")
    with chromium(tmp_path_factory.mktemp("profile")) as tab:
        yield tab
