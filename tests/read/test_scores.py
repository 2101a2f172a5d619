"""Scores: right against scipy and sklearn; held out; at their level under the null."""

from itertools import product
from math import log, pi

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.linalg import subspace_angles
from sklearn.metrics import roc_auc_score

from bondwise.errors import DataError, ShapeError
from bondwise.read.directions import overlap, principal, random_directions, random_gauges
from bondwise.read.held_out import auroc, best_index, halves, interval
from bondwise.read.scores import against_gauges, holm, scored, selectivity, token_entropy
from read.planted import LEVEL, REPEATS, at_its_level, refused


def noise(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def coins(seed: int, tokens: int, share: float = 0.5) -> torch.Tensor:
    return torch.rand(tokens, generator=torch.Generator().manual_seed(seed)) < share


@settings(max_examples=60, deadline=None)
@given(tokens=st.integers(2, 500), columns=st.integers(1, 3), seed=st.integers(0, 99))
def test_auroc_is_that_of_sklearn_with_ties(tokens, columns, seed):
    values = noise(seed, tokens, columns).round()
    labels = torch.stack([coins(seed + k, tokens, 0.3) for k in range(2)], dim=1)
    labels[0], labels[1] = False, True
    found = auroc(values, labels)
    for j, k in product(range(columns), range(2)):
        expected = roc_auc_score(labels[:, k].numpy(), values[:, j].numpy())
        assert float(found[j, k]) == pytest.approx(expected, rel=1e-12)


def test_the_best_index_is_chosen_on_one_half_and_scored_on_the_other():
    labels = coins(0, 400)
    values = noise(1, 400, 5)
    values[:, 3] -= 2.0 * labels
    best = best_index(values, labels)
    assert (best.index.item(), best.sign.item()) == (3, -1)
    first = halves(labels[:, None])
    flipped = -values[:, 3:4]
    assert best.auroc.item() == pytest.approx(float(auroc(flipped[~first], labels[~first])))
    assert best.chosen.item() == pytest.approx(float(auroc(flipped[first], labels[first])))


def test_held_out_scores_of_noise_are_chance_and_chosen_ones_are_not():
    found = [best_index(noise(k, 80, 30), coins(k + 999, 80)) for k in range(100)]
    held = torch.cat([best.auroc for best in found]).mean()
    assert abs(float(held) - 0.5) < 0.03  # four standard errors
    assert float(torch.cat([best.chosen for best in found]).mean()) > 0.65


def test_halves_keep_groups_whole_and_have_all_classes():
    groups = torch.arange(300) // 10
    flags = torch.stack([coins(0, 300, 0.5), groups == 4, groups % 9 == 0], dim=1)
    flags[:, 1] |= groups == 17
    first = halves(flags, groups)
    for group in range(30):
        assert len(first[groups == group].unique()) == 1
    for half in (first, ~first):
        assert bool(flags[half].any(0).all())
        assert bool((~flags[half]).any(0).all())
    assert not torch.equal(first, halves(flags, groups, seed=1))
    assert torch.equal(first, halves(flags, groups + 5))


def test_a_planted_feature_beats_random_gauges_and_controls():
    labels = torch.stack([coins(0, 600, 0.3), coins(1, 600, 0.3)], dim=1)
    x = noise(2, 600, 12)
    x[:, :2] += 2.5 * labels
    basis = torch.linalg.qr(noise(3, 12, 12)).Q
    controls = {
        "neurons": x @ basis,
        "principal": principal(x @ basis, 6),
        "random": random_directions(x @ basis, 6),
    }
    found = scored(x[:, :6], labels, controls=controls, draws=49, groups=torch.arange(600) // 5)
    assert found.best.index.tolist() == [0, 1]
    assert found.p.tolist() == [1 / 50] * 2
    assert found.adjusted.tolist() == [2 / 50] * 2
    assert found.null.shape == (49, 2)
    for name in ("neurons", "random"):
        control = found.controls[name]
        assert bool((control.low > 0).all()), name
        difference = found.best.auroc - control.best.auroc
        torch.testing.assert_close(control.difference, difference)
        assert bool((control.low <= difference).all() & (difference <= control.high).all())
    same = scored(x[:, :6], labels, controls={"same": x[:, :6]}, draws=1).controls["same"]
    assert same.difference.tolist() == same.low.tolist() == same.high.tolist() == [0, 0]


def any_label(k: int, values: torch.Tensor) -> torch.Tensor:
    return coins(k + 999, 60)


def in_the_span(k: int, values: torch.Tensor) -> torch.Tensor:
    """A concept that the span of the values has, in no basis more than in another."""
    return values @ noise(k + 5000, 4) + 0.3 * noise(k + 9000, 80) > 0


@REPEATS
@pytest.mark.parametrize(("tokens", "label"), [(60, any_label), (80, in_the_span)])
def test_the_level_holds_for_labels(tokens, label, repeats):
    drawn = [noise(k, tokens, 4) for k in range(repeats)]
    found = [scored(x, label(k, x), draws=19, seed=k).p for k, x in enumerate(drawn)]
    assert at_its_level(int((torch.cat(found) <= LEVEL).sum()), repeats)


@REPEATS
def test_the_level_holds_for_any_statistic(repeats):
    def p(k: int, name: str) -> float:
        values, labels = noise(k, 60, 4), coins(k + 999, 60)
        tokens, other = torch.arange(60) % 7, noise(k + 5000, 60, 3)
        statistic = {
            "selectivity": lambda v: selectivity(v, labels).abs().max(),
            "entropy": lambda v: -token_entropy(v, tokens, top=12).mean(),
            "cosine": lambda v: torch.tensor(overlap(v, other).cosine),
        }[name]
        return float(against_gauges(statistic, values, draws=19, seed=k).p)

    for name in ("selectivity", "entropy", "cosine"):
        assert at_its_level(sum(p(k, name) <= LEVEL for k in range(repeats)), repeats), name


def test_the_bootstrap_is_that_of_resampled_groups():
    flags, at = coins(0, 60)[:, None], torch.arange(60) // 4
    one, two = noise(1, 60, 1) + flags, noise(2, 60, 1).round()
    low, high = interval(one, two, flags, at, 400, seed=3)
    drawn = torch.randint(15, (400, 15), generator=torch.Generator().manual_seed(3))
    differences = []
    for groups in drawn:
        tokens = torch.cat([torch.arange(60)[at == g] for g in groups])
        areas = [auroc(v[tokens], flags[tokens, 0]) for v in (one, two)]
        differences.append(float(areas[0] - areas[1]))
    expected = np.quantile(differences, [0.025, 0.975])
    assert (low.item(), high.item()) == pytest.approx(tuple(expected), abs=1e-9)


def test_a_difference_is_covered_about_as_often_as_said():
    covered = 0
    for k in range(200):
        labels = coins(k, 120)
        one, two = (noise(k + s, 120, 1) + labels[:, None] for s in (1000, 2000))
        low, high = interval(one, two, labels[:, None], torch.arange(120), 200, seed=k)
        covered += bool(low <= 0 <= high)
    assert covered >= 179  # 0.1 % quantile of a binomial of 200 at 0.95


def test_gauges_are_the_same_span_whitened_and_differ():
    values = noise(0, 200, 4) @ noise(1, 4, 4)
    drawn = list(random_gauges(values, 3))
    for turned in drawn:
        torch.testing.assert_close(turned.T @ turned / 200, torch.eye(4), atol=1e-4, rtol=0)
        assert overlap(values, turned).angles.max() < 1e-3
    assert not torch.allclose(drawn[0], drawn[1])
    assert torch.equal(drawn[1], list(random_gauges(values, 2))[1])
    flat = torch.cat([values, values[:, :1]], dim=1)  # five columns of four dimensions
    [turned] = random_gauges(flat, 1)
    assert turned.shape == (200, 5)
    assert int(torch.linalg.matrix_rank(turned)) == 4


@pytest.mark.parametrize(("r", "s"), [(3, 3), (2, 5), (5, 2)])
def test_principal_angles_are_those_of_scipy(r, s):
    one, two = noise(0, 9, r).double(), noise(1, 9, s).double()
    two[:, 0] = one[:, 0] + 0.01 * two[:, 0]  # one small angle
    found = overlap(one, two)
    expected = np.sort(subspace_angles(one.numpy(), two.numpy()))
    np.testing.assert_allclose(found.angles.numpy(), expected, atol=1e-12)
    a, b = (d.numpy() / np.linalg.norm(d.numpy(), axis=0) for d in (one, two))
    assert found.cosine == pytest.approx(np.abs(a.T @ b).max(1).mean())


def test_overlap_of_what_is_nearly_the_same_the_same_or_has_nothing_in_common():
    one, two = torch.tensor([[1.0], [0.0]]).double(), torch.tensor([[1.0], [1e-9]]).double()
    assert overlap(one, two).angles.item() == pytest.approx(1e-9, rel=1e-6)  # not lost to a cosine
    eye = torch.eye(4)
    same = overlap(eye[:, :2], eye[:, :2] @ torch.tensor([[1.0, 1.0], [1.0, -1.0]]))
    assert float(same.angles.abs().max()) < 1e-7
    assert same.cosine == pytest.approx(0.5**0.5)
    apart = overlap(eye[:, :2], eye[:, 2:])
    assert apart.angles.tolist() == pytest.approx([pi / 2, pi / 2])
    assert apart.cosine == 0


def test_selectivity_is_the_standardised_difference():
    values, labels = noise(0, 50, 3).double(), torch.stack([coins(1, 50), coins(2, 50)], dim=1)
    found = selectivity(values, labels)
    for k in range(2):
        hits, others = values[labels[:, k]], values[~labels[:, k]]
        spread = ((hits.var(0) + others.var(0)) / 2).sqrt()
        torch.testing.assert_close(found[:, k], (hits.mean(0) - others.mean(0)) / spread)
    constant = selectivity(torch.ones(4, 1), torch.tensor([0, 0, 1, 1]))
    assert constant.tolist() == [0]


def test_token_entropy_counts_the_tokens_at_the_top():
    tokens = torch.tensor([7, 7, 5, 3, 3, 9])
    values = torch.tensor([[9.0, 1, 0], [-8, 2, 0], [1, 3, 5], [0, 0, -6], [0, 4, 1], [0, 0, 7]])
    found = token_entropy(values, tokens, top=2)
    assert found.tolist() == pytest.approx([0, log(2), log(2)])


def test_principal_values_are_those_of_an_svd():
    x = noise(0, 40, 6).double() + 3
    U, S, _ = torch.linalg.svd(x - x.mean(0), full_matrices=False)
    torch.testing.assert_close(principal(x, 3).abs(), (U * S)[:, :3].abs())


def test_holm_is_as_in_the_book():
    p = torch.tensor([0.01, 0.04, 0.03, 0.005])
    assert holm(p).tolist() == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm(torch.tensor([0.9, 0.8])).tolist() == [1, 1]


def test_bad_input_is_refused_in_a_sentence():
    values, labels, at = noise(0, 60, 3), coins(0, 60), torch.arange(60)
    one = values.clone()
    one[1, 1] = float("nan")
    inf, fives = torch.full((60, 1), float("inf")), noise(0, 5, 2)
    few = r"Concept 0 has 60 labelled tokens and 0 others; .* at least 10"
    for kind, said, call, *rest in (
        (ShapeError, r"\(60, 3\) and labels of shape \(59,\)", scored, values, labels[1:]),
        (ShapeError, r"give \(tokens, columns\)", scored, values[:, 0], labels),
        (DataError, few, scored, values, torch.ones(60)),
        (DataError, "0 and 1", scored, values, at),
        (DataError, "1 of 180 values are not finite", scored, one, labels),
        (DataError, "Concept 0 has 3 labelled tokens and 57 others", scored, values, at < 3),
        (DataError, "5 tokens came; the top 20", token_entropy, fives, torch.arange(5)),
        (ShapeError, "tokens of shape", token_entropy, fives, torch.arange(4)),
        (DataError, "all zero", lambda: next(random_gauges(torch.zeros(5, 2), 1))),
        (DataError, "all zero", overlap, torch.zeros(5, 2), fives),
        (ShapeError, "with the same size", overlap, fives, noise(0, 4, 2)),
        (ShapeError, "7 directions were asked of x with 3 columns", principal, values, 7),
    ):
        refused(kind, said, call, *rest)
    refused(ShapeError, "one per token, 60", scored, values, labels, groups=torch.arange(5))
    said = "labelled tokens in one group of 6"
    refused(DataError, said, scored, values, at < 10, groups=at // 10)
    said = "Control 'neurons': 60 of 60 values are not finite"
    refused(DataError, said, scored, values, labels, controls={"neurons": inf})
    said, given = r"3 groups came; an interval .* at least 4", {"controls": {"x": values}}
    refused(DataError, said, scored, values, labels, groups=at // 20, **given)
    refused(DataError, "0 draws came", scored, values, labels, draws=0)
