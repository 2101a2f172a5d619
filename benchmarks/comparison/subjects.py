"""The models and texts: what is compressed, on what it is calibrated, and how it is judged."""

import os
from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from bondwise.checkpoint.cache import cache_directory
from bondwise.checkpoint.loading import load_model
from bondwise.compress.compress import compress
from bondwise.compress.recipe import Recipe
from bondwise.compress.swap import cast
from bondwise.demo import assets
from bondwise.evaluate.language import compare
from bondwise.evaluate.similarity import rate_documents, rate_pairs
from bondwise.flow.text import windows
from bondwise.progress import Bars
from comparison.methods import Calibration

Judge = Callable[[nn.Module], dict[str, Any]]


@dataclass(frozen=True)
class Subject:
    """A dense model, its calibration text, and what tells how good a compressed one is.

    ``judge`` works on a copy cast to bfloat16: that is how the numbers are stored.
    """

    model: nn.Module
    calibration: Calibration
    judge: Judge


@dataclass(frozen=True)
class Draw:
    """How many windows of how many tokens a language model is judged on, in each text."""

    windows: int = 64
    length: int = 512
    seed: int = 0


class Remembered(nn.Module):
    """A teacher whose last hidden states are read from a file: only its head runs again.

    The logits are those of the teacher to the bit, at the cost of the head: exact, and small enough
    to keep (logits of 64 windows of 512 tokens take gigabytes, the states 38 MB).
    """

    def __init__(self, teacher: nn.Module, shown: Tensor, file: Path) -> None:
        super().__init__()
        self.config = teacher.config
        self.head = teacher.get_output_embeddings()
        if not file.exists():
            _write(file, [_hidden(teacher, ids) for ids in shown.split(1)])
        states = torch.load(file, weights_only=True)
        keys = map(_key, shown.split(1))
        self.states = dict(zip(keys, states, strict=True))

    def forward(self, ids: Tensor) -> SimpleNamespace:
        return SimpleNamespace(logits=self.head(self.states[_key(ids)]))


def _key(ids: Tensor) -> bytes:
    return ids.numpy().tobytes()


@torch.no_grad()
def _hidden(teacher: nn.Module, ids: Tensor) -> Tensor:
    return teacher.base_model(ids).last_hidden_state


def _write(file: Path, states: list[Tensor]) -> None:
    fresh = file.with_suffix(f".{os.getpid()}")
    file.parent.mkdir(parents=True, exist_ok=True)
    torch.save(states, fresh)
    fresh.replace(file)


def language_judge(
    dense: nn.Module,
    tokenizer: Any,
    texts: dict[str, Sequence[str]],
    draw: Draw,
    folder: Path,
    computes: str = "bfloat16",
) -> Judge:
    """Perplexity over dense with its interval, divergence and agreement, on every text.

    Numbers are rounded to bfloat16; the models then compute in the dtype that is named. ``folder``
    keeps the hidden states of this dense model in that dtype between runs.
    """
    drawn = {
        name: windows(tokenizer, list(documents), draw.windows, draw.length, draw.seed)
        for name, documents in texts.items()
    }

    def judge(model: nn.Module) -> dict[str, Any]:
        model, teacher = deepcopy((model, dense))
        for each in (model, teacher):
            cast(each, "bfloat16")
            cast(each, computes)
        found = {}
        for name, shown in drawn.items():
            file = folder / f"{name}, {draw.windows}x{draw.length}, seed {draw.seed}.pt"
            remembered = Remembered(teacher, shown, file).eval()
            entry = compare(model, remembered, shown, seed=draw.seed).entry(name)
            found[name] = {
                "ratio": entry["ratio"],
                "interval": [entry["ratio_low"], entry["ratio_high"]],
                "dense": entry["before"]["perplexity"],
                "kl": entry["after"]["kl"],
                "top1": entry["after"]["top1"],
            }
        return {"texts": found}

    return judge


def similarity_judge(dense: nn.Module, tokenizer: Any) -> Judge:
    """Correlation with human similarity ratings, of the model and of the dense one.

    The numbers are rounded to bfloat16, the model then computes in float32.
    """
    documents = assets.lee_ratings()
    pairs = {"WordSim": assets.wordsim353(), "SimLex": assets.simlex()}

    def rate(model: nn.Module) -> dict[str, float]:
        model = deepcopy(model)
        cast(model, "bfloat16")
        cast(model, "float32")
        lee = rate_documents(model, tokenizer, documents.texts, documents.ratings)
        return {"Lee": lee} | {
            name: rate_pairs(model, tokenizer, found.pairs, found.ratings)
            for name, found in pairs.items()
        }

    def judge(model: nn.Module) -> dict[str, Any]:
        before, after = rate(dense), rate(model)
        return {
            "similarity": {
                name: {"dense": before[name], "correlation": after[name]} for name in after
            }
        }

    return judge


def smollm2(draw: Draw) -> Subject:
    """SmolLM2-135M-Instruct, calibrated on Wikipedia; judged on other articles and on news."""
    loaded = load_model(assets.smollm2(), torch.float32, task="causal")
    folder = cache_directory() / "benchmarks" / "smollm2"
    judge = language_judge(loaded.model, loaded.tokenizer, held_out_texts(), draw, folder)
    return Subject(loaded.model, Calibration(wikipedia(), loaded.tokenizer), judge)


def compressed_smollm2(keep: float) -> Path:
    """SmolLM2-135M at a keep, as ``bondwise compress`` makes it: once, and kept in the cache."""
    kept = cache_directory() / "benchmarks" / "speed"
    target, text = kept / f"smollm2-{keep:g}", kept / "calibration.txt"
    if not target.exists():
        kept.mkdir(parents=True, exist_ok=True)
        text.write_text(wikipedia(), encoding="utf-8")
        with Bars() as bars:
            recipe = Recipe(model=str(assets.smollm2()), data=str(text), keep=keep)
            compress(recipe, target, progress=bars)
    return target


def minilm(_draw: Draw) -> Subject:
    """all-MiniLM-L6-v2, calibrated on Wikipedia; judged by human similarity ratings."""
    loaded = load_model(assets.minilm(), torch.float32, task="encoder")
    judge = similarity_judge(loaded.model, loaded.tokenizer)
    return Subject(loaded.model, Calibration(wikipedia(), loaded.tokenizer), judge)


def held_out_texts() -> dict[str, Sequence[str]]:
    """What language models are judged on; nothing is calibrated or trained on it."""
    return {
        "in domain": [article.text for article in assets.held_out_articles()],
        "out of domain": assets.lee_news(),
    }


def wikipedia() -> str:
    """The articles that models are calibrated on."""
    return "\n\n".join(article.text for article in assets.calibration_articles())


SUBJECTS: dict[str, Callable[[Draw], Subject]] = {"smollm2": smollm2, "minilm": minilm}
