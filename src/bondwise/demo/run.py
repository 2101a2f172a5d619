"""The demo: a real model on real text, compressed, compared and left as a checkpoint."""

from collections.abc import Callable
from dataclasses import replace
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
    check_recipe(recipe)
    check_folder(out, overwrite)
    steps = Steps()
    with steps("fetch"):
        progress("fetch model and text", 0, 2)
        source = assets.smollm2()
        progress("fetch model and text", 1, 2)
        articles, held_out = assets.calibration_articles(), assets.held_out_articles()
        news = assets.lee_news()
        progress("fetch model and text", 2, 2)
    with steps("load"):
        progress("load", 0, 1)
        loaded = load_model(source, torch.float32, device)
        progress("load", 1, 1)
    text = "\n\n".join(article.text for article in articles)
    texts = {
        "in domain: Wikipedia, held-out articles": [article.text for article in held_out],
        "out of domain: news": news,
    }
    stored = "bfloat16" if dtype_name == "auto" else dtype_name
    recipe = replace(recipe, model=str(source), dtype=stored)
    student, report = _compress(recipe, loaded, text, steps, progress)
    report |= {"name": "SmolLM2-135M-Instruct"}
    teacher = loaded.model
    evaluation: list[dict[str, Any]] = []
    for name, documents in texts.items():
        stage = f"evaluate {name.partition(':')[0]}"
        with steps(stage):
            shown = windows(loaded.tokenizer, documents, WINDOWS, LENGTH, seed)
            progress(stage, 0, len(shown))
            found = compare(student, teacher, shown, seed=seed, progress=partial(progress, stage))
            evaluation.append(found.entry(name) | {"length": LENGTH})
    with steps("write a sentence"):
        progress("write a sentence", 0, 1)
        before, after = (
            generate_sample(model, loaded.tokenizer, PROMPT) for model in (teacher, student)
        )
        progress("write a sentence", 1, 1)
    report |= {
        "evaluation": evaluation,
        "samples": [{"prompt": PROMPT, "before": before, "after": after}],
    }
    kept = {CALIBRATION: text}
    return write(out, student, loaded, report, recipe, steps, overwrite=overwrite, extra=kept)


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
    check_recipe(recipe)
    check_folder(out, overwrite)
    steps = Steps()
    with steps("fetch"):
        progress("fetch model and text", 0, 2)
        source = assets.minilm()
        progress("fetch model and text", 1, 2)
        text = "\n\n".join(article.text for article in assets.calibration_articles())
        progress("fetch model and text", 2, 2)
    with steps("load"):
        progress("load", 0, 1)
        loaded = load_model(source, device=device, task="encoder")
        progress("load", 1, 1)
    recipe = replace(recipe, model=str(source))
    student, report = _compress(recipe, loaded, text, steps, progress)
    report |= {"name": "all-MiniLM-L6-v2"}
    documents, related, similar = assets.lee_ratings(), assets.wordsim353(), assets.simlex()
    rate: dict[str, Callable[[nn.Module], float]] = {
        "Lee 2005, news texts (Pearson)": lambda model: rate_documents(
            model, loaded.tokenizer, documents.texts, documents.ratings
        ),
        "WordSim-353, related words (Spearman)": lambda model: rate_pairs(
            model, loaded.tokenizer, related.pairs, related.ratings
        ),
        "SimLex-999, similar words (Spearman)": lambda model: rate_pairs(
            model, loaded.tokenizer, similar.pairs, similar.ratings
        ),
    }
    with steps("evaluate"):
        rated: list[dict[str, Any]] = []
        progress("evaluate", 0, len(rate))
        for done, (name, job) in enumerate(rate.items(), start=1):
            rated.append({"name": name, "before": job(loaded.model), "after": job(student)})
            progress("evaluate", done, len(rate))
    report |= {"similarity": rated}
    kept = {CALIBRATION: text}
    return write(out, student, loaded, report, recipe, steps, overwrite=overwrite, extra=kept)


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


def _compress(
    recipe: Recipe, loaded: Loaded, text: str, steps: Steps, progress: Progress
) -> tuple[nn.Module, Report]:
    """The tensorized model and its report; the loaded one stays, cast to the same dtype."""
    result = run(recipe, loaded.model, text, loaded.tokenizer, progress)
    steps.done.extend(dict(step) for step in result.steps)
    cast(loaded.model, recipe.dtype)
    report = describe(result, recipe, loaded.source_file_bytes)
    return result.model, report
