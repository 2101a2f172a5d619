"""Nulls: each keeps what it says, the fast way agrees with numpy, and tests hold their level."""

import numpy as np
import pytest
import scipy.stats
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from bondwise import TensorLinear, btt, cp, dense, kron, lowrank, mpo, ring
from bondwise.errors import DataError, SelectionError
from bondwise.read.bonds import bond
from bondwise.read.directions import haar
from bondwise.read.nulls import NULLS, SMALL, TIE, Subject, _turned_cores, bands
from bondwise.read.schmidt import cut, entropy, fast_values, profile, term_norms
from bondwise.read.spectra import spectra
from read.planted import LEVEL, REPEATS, at_its_level, refused

NET = mpo((2, 3), (3, 2), 6)


def subject(weight: torch.Tensor, net=NET) -> Subject:
    unfolding = cut(net, "a")
    each = torch.linalg.svdvals(unfolding.matrix(weight.double()))
    return Subject(profile(each), each, weight, unfolding)


def random(seed: int, rows: int = 6, cols: int = 6) -> torch.Tensor:
    return torch.randn(rows, cols, generator=torch.Generator().manual_seed(seed)).double()


def rejected(null: str, weights: list[torch.Tensor]) -> int:
    return sum(bands(subject(w), (null,), 19, k)[null].p <= LEVEL for k, w in enumerate(weights))


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 3), st.integers(1, 9), st.integers(1, 9), st.integers(0, 99))
def test_the_fast_values_are_those_of_numpy(blocks, rows, cols, seed):
    matrices = torch.randn(blocks, rows, cols, generator=torch.Generator().manual_seed(seed))
    matrices = matrices.double() / matrices.double().norm()
    found = fast_values(matrices, min(rows, cols))
    expected = np.linalg.svd(matrices.numpy(), compute_uv=False)
    np.testing.assert_allclose(found.numpy(), expected, atol=2e-8)


@pytest.mark.parametrize("outlier", [0.0, 0.3])
def test_large_weights_in_float32_keep_the_entropy(outlier):
    generator = torch.Generator().manual_seed(0)
    size = SMALL + 44
    weight = torch.randn(size, size + 30, generator=generator) + outlier
    weight /= weight.norm()
    exact = torch.from_numpy(np.linalg.svd(weight.double().numpy(), compute_uv=False))
    quick = fast_values(weight, size)
    assert abs(float(entropy(quick) - entropy(exact))) < TIE
    torch.testing.assert_close(quick, exact, atol=3e-4, rtol=0)


def test_a_large_weight_that_float32_blurs_is_read_in_float64():
    # rank one: float32 rounding alone would give it an entropy of about 1e-5
    linear = nn.Linear(17 * 17, 17 * 17, bias=False)
    nn.init.constant_(linear.weight, 1.0)  # nothing that a shuffle could change
    [found] = spectra(linear, draws=3, nulls=("shuffled",))
    assert found.nulls["shuffled"].p == 1
    assert float(found.nulls["shuffled"].entropies.abs().max()) < 1e-9


def test_a_null_has_the_norm_of_the_weight_in_as_many_values():
    for null in ("shuffled", "signs", "noise", "gaussian"):
        drawn = NULLS[null](subject(random(0)), 5, torch.Generator().manual_seed(0))
        assert drawn.shape == (5, 6)
        if null != "gaussian":
            torch.testing.assert_close(drawn.norm(dim=1), torch.ones(5).double())


@pytest.mark.parametrize("tall", [False, True])
def test_signs_keep_both_second_moments_and_gaussians_do_in_the_mean(tall, monkeypatch):
    seen = []

    def keep(_subject, drawn, count):
        seen.append(drawn)
        return drawn.new_ones(count)

    monkeypatch.setattr("bondwise.read.nulls._schmidt", keep)
    weight = random(1, 8, 6) if tall else random(1, 6, 8)
    net = mpo((2, 4), (3, 2), 6) if tall else mpo((3, 2), (2, 4), 6)
    own = subject(weight, net)
    rows, cols = (m / weight.norm() ** 2 for m in (weight @ weight.T, weight.T @ weight))
    NULLS["signs"](own, 4, torch.Generator().manual_seed(0))
    assert not torch.allclose(seen[0], seen[1])
    for drawn in seen:
        torch.testing.assert_close(drawn @ drawn.T, rows)
        torch.testing.assert_close(drawn.T @ drawn, cols)
    seen.clear()
    NULLS["gaussian"](own, 20_000, torch.Generator().manual_seed(0))
    W = torch.stack(seen)
    torch.testing.assert_close((W @ W.mT).mean(0), rows, atol=0.01, rtol=0)
    torch.testing.assert_close((W.mT @ W).mean(0), cols, atol=0.01, rtol=0)


def test_turned_terms_are_those_of_the_same_weight_in_another_gauge():
    net = lowrank(6, 5, 4)
    U, S, V = torch.linalg.svd(random(3, 6, 5))
    U, S, V = U[:, :4], S[:4], V[:4].T
    generator = torch.Generator()
    turn = haar(4, generator.manual_seed(9), 1)[0].double()
    cores = [U * S.sqrt() @ turn, (V * S.sqrt() @ turn).T]
    expected = term_norms(net, cores, "a").sort(descending=True).values
    own = Subject(S, S[None], U * S @ V.T, cut(net, "a"))
    [found] = NULLS["gauge"](own, 1, generator.manual_seed(9))
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


def test_a_turned_ring_is_the_same_weight():
    layer = TensorLinear(ring((2, 3), (3, 2), 4))
    own = bond(layer)
    turned = _turned_cores(own, haar(4, torch.Generator().manual_seed(0), dtype=torch.float64))
    torch.testing.assert_close(dense(own.network, turned).float(), layer.dense().detach())


@REPEATS
def test_the_level_holds_for_gaussian_weights(repeats):
    for null in ("shuffled", "signs", "noise"):
        assert at_its_level(rejected(null, [random(k) for k in range(repeats)]), repeats), null


@REPEATS
def test_signs_hold_their_level_for_weights_with_scaled_rows_and_columns(repeats):
    weights = []
    for k in range(repeats):
        scales = torch.rand(2, 6, generator=torch.Generator().manual_seed(k)).double() + 0.1
        weights.append(scales[0, :, None] * random(k) * scales[1])
    assert at_its_level(rejected("signs", weights), repeats)
    # the plug-in Gaussian errs to the safe side
    assert rejected("gaussian", weights) <= scipy.stats.binom.ppf(0.995, repeats, LEVEL)


def test_what_has_structure_is_found():
    factors = torch.kron(random(0, 4, 4), random(1, 4, 4))
    linear = nn.Linear(16, 16, bias=False)
    linear.weight.data = (factors + 0.1 * random(2, 16, 16)).float()
    [found] = spectra(linear, draws=19)
    for null in ("shuffled", "signs", "gaussian", "noise"):
        assert found.nulls[null].p == 1 / 20, null
        assert found.nulls[null].distance < -3, null
        assert float(found.values[0] / found.values.norm()) > float(found.nulls[null].high[0])


def test_a_null_that_cannot_differ_does_not_apply():
    [found] = spectra(TensorLinear(lowrank(6, 5, 3)), draws=3)
    for null in ("shuffled", "signs", "gaussian"):
        band = found.nulls[null]
        assert (band.applies, band.p, band.distance, len(band.low)) == (False, None, None, 0)
        assert "divides rows from columns" in band.why
    assert found.nulls["noise"].applies
    assert found.nulls["gauge"].applies


def test_low_rank_of_noise_is_like_noise_and_of_structure_is_not():
    noise, other = random(0, 40, 30), random(1, 40, 3) @ random(2, 3, 30)
    for weight, few in ((noise, False), (other + 0.3 * noise, True)):
        U, S, V = torch.linalg.svd(weight)
        layer = TensorLinear(lowrank(40, 30, 12), [U[:, :12] * S[:12], V[:12]])
        [found] = spectra(layer, draws=39)
        assert (found.nulls["noise"].p <= LEVEL) == few


def test_where_nothing_is_cut_only_the_gauge_is_a_null():
    [first, _] = spectra(TensorLinear(ring((2, 3), (2, 3), 2)), draws=3)
    assert [name for name, band in first.nulls.items() if band.applies] == ["gauge"]
    for layer in (TensorLinear(cp((2, 3), (2, 3), 4)), TensorLinear(kron((2, 3), (2, 3), 2))):
        for found in spectra(layer, draws=3):
            if found.kind == "terms":
                assert not any(n.applies for name, n in found.nulls.items() if name != "gauge")


def test_a_single_value_or_a_zero_weight_has_no_null():
    zero = nn.Linear(4, 4)
    nn.init.zeros_(zero.weight)
    [found] = spectra(zero, draws=2)
    assert (found.entropy, found.effective_rank, found.normalised) == (0, 1, 0)
    assert {band.why for band in found.nulls.values()} == {"the weight is zero"}
    [found] = spectra(TensorLinear(lowrank(4, 4, 1)), draws=2)
    assert all("single value" in band.why for band in found.nulls.values())


def test_blocks_are_drawn_as_blocks():
    [found] = spectra(TensorLinear(btt((4, 3), (3, 4), 2)), draws=4)
    for name, band in found.nulls.items():
        assert band.applies, name
        assert len(band.low) == len(found.values) == 2


def test_draws_depend_on_the_seed_and_on_nothing_else():
    model = nn.Sequential(nn.Linear(6, 6), nn.Linear(6, 6))
    both, again = (spectra(model, draws=4, seed=1) for _ in range(2))
    [alone] = spectra(model, names="1", draws=4, seed=1, nulls=("signs",))
    other = spectra(model, draws=4, seed=2)
    entropies = both[1].nulls["signs"].entropies
    assert torch.equal(entropies, again[1].nulls["signs"].entropies)
    assert torch.equal(entropies, alone.nulls["signs"].entropies)
    assert not torch.equal(entropies, other[1].nulls["signs"].entropies)


def test_unknown_nulls_and_too_few_draws_are_refused():
    linear = nn.Linear(4, 4)
    said = "'normal' came; write a tuple of some of shuffled"
    refused(SelectionError, said, spectra, linear, nulls=("normal",))
    refused(SelectionError, "'gauge' came; write a tuple", spectra, linear, nulls="gauge")
    refused(DataError, r"1 draws came; a band needs .* at least 2", spectra, linear, draws=1)
