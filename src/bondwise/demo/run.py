"""The demo: a real model on real text, compressed, compared and left as a checkpoint."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from bondwise.checkpoint.checkpoint import check_folder
from bondwise.checkpoint.loading import Loaded, load_model
from bondwise.compress.compress import Report, check_recipe, describe, run, write
from bondwise.compress.recipe import Recipe
from bondwise.compress.swap import cast
from bondwise.demo import assets
from bondwise.evaluate.language import compare, generate_sample
from bondwise.evaluate.similarity import rate_documents, rate_pairs
from bondwise.flow.text import windows
from bondwise.progress import Progress, Steps, silent

WINDOWS, LENGTH = 32, 512
PROMPT = "The history of the city begins in the"
CALIBRATION = "calibration.txt"


@dataclass(frozen=True)
class _Subject:
    """What a demo is about.

    Attributes:
        name: of the model.
        fetch: gives the path of its files.
        load: gives the model from there.
        dtype: what it is stored in unless another is asked for.
        evaluate: gives what it and its teacher are worth, as entries of the report.
    """

    name: str
    fetch: Callable[[], Path]
    load: Callable[..., Loaded]
    dtype: str
    evaluate: Callable[["_Pair", Steps, Progress], Report]


@dataclass(frozen=True)
class _Pair:
    """A compressed model and the dense one with its tokenizer, both in the dtype that is stored."""

    student: nn.Module
    loaded: Loaded
    seed: int


def language_demo(
    out: Path,
    keep: float = 0.8,
    *,
    seed: int = 0,
    device: str = "cpu",
    dtype_name: str = "auto",
    overwrite: bool = False,
    progress: Progress = silent,
) -> Report:
    """SmolLM2-135M on Wikipedia: 210 linear layers cut to ``keep``, evaluated in and out of domain.

    It is fitted in float32 and stored and evaluated in bfloat16. In domain are Wikipedia articles
    that calibration never saw, out of domain are news.

    Raises:
        BondwiseError: the folder is in the way, or something cannot be fetched.
    """
    recipe = _recipe(out, keep, seed, device, dtype_name)
    load = partial(load_model, dtype=torch.float32)
    subject = _Subject("SmolLM2-135M-Instruct", assets.smollm2, load, "bfloat16", _read)
    return _demo(subject, recipe, out, overwrite, progress)


def similarity_demo(
    out: Path,
    keep: float = 0.8,
    *,
    seed: int = 0,
    device: str = "cpu",
    dtype_name: str = "auto",
    overwrite: bool = False,
    progress: Progress = silent,
) -> Report:
    """all-MiniLM-L6-v2: its linear layers cut to ``keep``, rated against people before and after.

    It is calibrated on Wikipedia, and rated on news texts and pairs of words that it never saw.

    Raises:
        BondwiseError: the folder is in the way, or something cannot be fetched.
    """
    recipe = _recipe(out, keep, seed, device, dtype_name)
    load = partial(load_model, task="encoder")
    subject = _Subject("all-MiniLM-L6-v2", assets.minilm, load, "auto", _rated)
    return _demo(subject, recipe, out, overwrite, progress)


def _demo(
    subject: _Subject, recipe: Recipe, out: Path, overwrite: bool, progress: Progress
) -> Report:
    """Fetch, load, compress, evaluate, write."""
    check_recipe(recipe)
    check_folder(out, overwrite)
    steps = Steps()
    with steps("fetch"):
        stage = partial(progress, "fetch model and text")
        stage(0, 2)
        source = subject.fetch()
        stage(1, 2)
        text = "\n\n".join(article.text for article in assets.calibration_articles())
        stage(2, 2)
    with steps("load", progress):
        loaded = subject.load(source, device=recipe.device)
    stored = subject.dtype if recipe.dtype == "auto" else recipe.dtype
    recipe = replace(recipe, model=str(source), dtype=stored)
    result = run(recipe, loaded.model, text, loaded.tokenizer, progress)
    steps.done.extend(dict(step) for step in result.steps)
    cast(loaded.model, recipe.dtype)  # the result has that dtype already
    report = describe(result, recipe, loaded.source_file_bytes) | {"name": subject.name}
    report |= subject.evaluate(_Pair(result.model, loaded, recipe.seed), steps, progress)
    kept = {CALIBRATION: text}
    return write(out, result.model, loaded, report, recipe, steps, overwrite=overwrite, extra=kept)


def _read(pair: _Pair, steps: Steps, progress: Progress) -> Report:
    """Perplexities of a language model in and out of domain, and a sentence that it writes."""
    tokenizer, teacher, seed = pair.loaded.tokenizer, pair.loaded.model, pair.seed
    texts = {
        "in domain: Wikipedia, held-out articles": _held_out,
        "out of domain: news": assets.lee_news,
    }
    evaluation: list[dict[str, Any]] = []
    for name, documents in texts.items():
        stage = f"evaluate {name.partition(':')[0]}"
        with steps(stage):
            shown = windows(tokenizer, documents(), WINDOWS, LENGTH, seed)
            told = partial(progress, stage)
            told(0, len(shown))
            found = compare(pair.student, teacher, shown, seed=seed, progress=told)
            evaluation.append(found.entry(name) | {"length": LENGTH})
    with steps("write a sentence", progress):
        before, after = (
            generate_sample(model, tokenizer, PROMPT) for model in (teacher, pair.student)
        )
    sample = {"prompt": PROMPT, "before": before, "after": after}
    return {"evaluation": evaluation, "samples": [sample]}


def _held_out() -> list[str]:
    return [article.text for article in assets.held_out_articles()]


def _rated(pair: _Pair, steps: Steps, progress: Progress) -> Report:
    """How well an encoder agrees with people."""
    tokenizer, teacher = pair.loaded.tokenizer, pair.loaded.model
    documents, related, similar = assets.lee_ratings(), assets.wordsim353(), assets.simlex()
    rate: Mapping[str, Callable[[nn.Module], float]] = {
        "Lee 2005, news texts (Pearson)": lambda model: rate_documents(
            model, tokenizer, documents.texts, documents.ratings
        ),
        "WordSim-353, related words (Spearman)": lambda model: rate_pairs(
            model, tokenizer, related.pairs, related.ratings
        ),
        "SimLex-999, similar words (Spearman)": lambda model: rate_pairs(
            model, tokenizer, similar.pairs, similar.ratings
        ),
    }
    with steps("evaluate"):
        rated: list[dict[str, Any]] = []
        progress("evaluate", 0, len(rate))
        for done, (name, job) in enumerate(rate.items(), start=1):
            rated.append({"name": name, "before": job(teacher), "after": job(pair.student)})
            progress("evaluate", done, len(rate))
    return {"similarity": rated}


def _recipe(out: Path, keep: float, seed: int, device: str, dtype: str) -> Recipe:
    """What will be run, but for the model: where that lies is known once it is fetched."""
    return Recipe(
        model="",
        data=str(out.absolute() / CALIBRATION),
        keep=keep,
        seed=seed,
        device=device,
        dtype=dtype,
        threads=torch.get_num_threads(),
    )
