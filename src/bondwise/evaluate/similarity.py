"""Whether an encoder still finds alike what people find alike."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from bondwise.errors import DataError, optional


@torch.no_grad()
def embed(
    model: nn.Module,
    tokenizer: Any,
    sentences: Sequence[str],
    batch: int = 32,
    max_length: int = 256,
) -> Float[Tensor, "sentences features"]:
    """One unit vector per sentence: the mean of its token features (Reimers and Gurevych 2019).

    `model` is a BERT-like encoder whose output has `last_hidden_state`; padding does not count, and
    what lies beyond `max_length` tokens is cut off, as all-MiniLM-L6-v2 was trained.

    Raises:
        DataError: there are no sentences, or a feature is not finite.
    """
    if not sentences:
        raise DataError("There are no sentences to embed; give at least one")
    device = next(model.parameters()).device
    # Sentences of like length together: less padding to compute.
    order = sorted(range(len(sentences)), key=lambda k: len(sentences[k]))
    training = model.training
    model.eval()
    parts: list[Tensor] = []
    try:
        for first in range(0, len(order), batch):
            some = [sentences[k] for k in order[first : first + batch]]
            inputs = tokenizer(
                some, padding=True, truncation=True, max_length=max_length, return_tensors="pt"
            ).to(device)
            hidden = model(**inputs).last_hidden_state.float()
            mask = inputs["attention_mask"].unsqueeze(-1)
            parts.append((hidden * mask).sum(dim=1) / mask.sum(dim=1))
    finally:
        model.train(training)
    features = F.normalize(torch.cat(parts), dim=-1)
    if not bool(torch.isfinite(features).all()):
        raise DataError(
            f"The features of {type(model).__name__} are not finite; check its weights for NaN"
        )
    return features[torch.tensor(order).argsort()].cpu()


def rate_documents(
    model: nn.Module,
    tokenizer: Any,
    texts: Sequence[str],
    ratings: Float[np.ndarray, "texts texts"],
) -> float:
    """Pearson correlation of cosine similarity and human ratings, over each two texts.

    Only `ratings[i, j]` with `i < j` are read.
    """
    features = embed(model, tokenizer, texts).numpy()
    upper = np.triu_indices(len(texts), k=1)
    return pearson((features @ features.T)[upper], ratings[upper])


def rate_pairs(
    model: nn.Module,
    tokenizer: Any,
    pairs: Sequence[tuple[str, str]],
    ratings: Float[np.ndarray, " pairs"],
) -> float:
    """Spearman correlation of cosine similarity and human ratings of pairs of words."""
    words = sorted({word for pair in pairs for word in pair})
    place = {word: k for k, word in enumerate(words)}
    features = embed(model, tokenizer, words).numpy()
    left, right = (features[[place[pair[side]] for pair in pairs]] for side in (0, 1))
    return spearman((left * right).sum(axis=1), ratings)


def pearson(a: Float[np.ndarray, " n"], b: Float[np.ndarray, " n"]) -> float:
    """`cov(a, b) / (std(a) std(b))`.

    Raises:
        DataError: fewer than two values, or all of one side alike: no correlation is defined.

    >>> pearson(np.array([1.0, 2.0, 3.0]), np.array([2.0, 4.0, 6.0]))
    1.0
    """
    if len(a) < 2 or np.ptp(a) == 0 or np.ptp(b) == 0:
        raise DataError(
            f"A correlation of {len(a)} values that do not vary is not defined; give at least two "
            "different ones on both sides"
        )
    return float(np.corrcoef(a.astype(np.float64), b.astype(np.float64))[0, 1])


def spearman(a: Float[np.ndarray, " n"], b: Float[np.ndarray, " n"]) -> float:
    """Pearson correlation of the ranks; equal values share the mean of their ranks.

    >>> spearman(np.array([1.0, 10.0, 100.0]), np.array([3.0, 4.0, 5.0]))
    1.0

    Raises:
        DataError: as `pearson`.
        MissingExtraError: scipy is not installed.
    """
    rank = optional("scipy.stats", "demo").rankdata
    return pearson(rank(a), rank(b))
