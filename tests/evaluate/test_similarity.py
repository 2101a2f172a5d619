"""Sentence features against a plain loop, correlations against scipy."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

import tiny
from bondwise.errors import DataError
from bondwise.evaluate.similarity import embed, pearson, rate_documents, rate_pairs, spearman

SENTENCES = [
    "bond core rank index ring",
    "plan",
    "tree gauge",
    "ring plan bond bond",
    "core tree ring",
]


def test_padding_and_batches_change_nothing() -> None:
    model, words = tiny.bert().train(), tiny.tokenizer()
    got = embed(model, words, SENTENCES, batch=2)
    assert model.training  # as it was
    model.eval()
    for row, sentence in zip(got, SENTENCES, strict=True):
        alone = words(sentence, return_tensors="pt")
        mean = model(alone.input_ids).last_hidden_state[0].double().mean(dim=0)
        torch.testing.assert_close(row.double(), mean / mean.norm(), atol=1e-5, rtol=0)


def test_what_is_too_long_is_cut() -> None:
    given = ("bond core rank index", "bond core rank")
    whole, cut = (embed(tiny.bert(), tiny.tokenizer(), [s], max_length=3) for s in given)
    assert torch.equal(whole, cut)


@settings(deadline=None, max_examples=40)
@given(count=st.integers(3, 40), levels=st.integers(2, 50), seed=st.integers(0, 999))
def test_correlations_are_those_of_scipy_with_ties(count, levels, seed) -> None:
    rng = np.random.default_rng(seed)
    a, b = rng.integers(levels, size=(2, count)).astype(float)
    a[0], b[0], a[1], b[1] = -1, -1, levels, 0  # both sides vary
    assert pearson(a, b) == pytest.approx(stats.pearsonr(a, b).statistic, abs=1e-12)
    assert spearman(a, b) == pytest.approx(stats.spearmanr(a, b).statistic, abs=1e-12)


def test_ratings_of_the_encoder_itself_correlate_fully() -> None:
    model, words = tiny.bert(), tiny.tokenizer()
    features = embed(model, words, SENTENCES).numpy()
    ratings = np.triu((features @ features.T).astype(np.float64), k=1)
    assert rate_documents(model, words, SENTENCES, ratings) == pytest.approx(1, abs=1e-6)
    assert rate_documents(model, words, SENTENCES, -ratings) == pytest.approx(-1, abs=1e-6)
    pairs = [(SENTENCES[i], SENTENCES[j]) for i, j in ((0, 1), (2, 3), (4, 0), (1, 3))]
    cosines = np.array([ratings[0, 1], ratings[2, 3], ratings[0, 4], ratings[1, 3]])
    assert rate_pairs(model, words, pairs, cosines**3) == pytest.approx(1)


def test_what_cannot_be_rated_ends_in_one_sentence() -> None:
    with pytest.raises(DataError, match="no sentences"):
        embed(tiny.bert(), tiny.tokenizer(), [])
    with pytest.raises(DataError, match="do not vary"):
        pearson(np.array([1.0, 1.0]), np.array([1.0, 2.0]))
    broken = tiny.bert()
    torch.nn.init.constant_(broken.embeddings.word_embeddings.weight, float("nan"))
    with pytest.raises(DataError, match="BertModel are not finite"):
        embed(broken, tiny.tokenizer(), SENTENCES)
