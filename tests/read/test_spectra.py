"""Spectra: against numpy, on states that are known, of tensorized and dense models."""

from math import exp, log

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import bondwise as bw
import tiny
from bondwise import TensorEmbedding, TensorLinear, btt, cp, kron, lowrank, mpo, ring
from bondwise.errors import FitError, SelectionError, ShapeError
from bondwise.read.bonds import Bond, bond, opened
from bondwise.read.schmidt import folded, profile, schmidt_values
from bondwise.read.spectra import Spectrum, spectra
from nets import random_cores
from read.planted import refused


def linear(weight: torch.Tensor) -> nn.Linear:
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias=False)
    layer.weight.data = weight.float()
    return layer


def only(layer: nn.Module, **options):
    [found] = spectra(layer, nulls=(), **options)
    return found


def unfolded(weight: np.ndarray, rows: tuple[int, ...], cols: tuple[int, ...], sites: int):
    """The weight as (first sites) x (the others), by numpy alone."""
    k = len(rows)
    axes = [*range(sites), *range(k, k + sites), *range(sites, k), *range(k + sites, 2 * k)]
    first = int(np.prod(rows[:sites]) * np.prod(cols[:sites]))
    return weight.reshape(*rows, *cols).transpose(axes).reshape(first, -1)


def test_a_kronecker_product_has_no_entropy():
    product = torch.kron(torch.randn(3, 4), torch.randn(5, 6))
    found = only(linear(product), fold={"": ((3, 5), (4, 6))} | {"Linear": ((3, 5), (4, 6))})
    assert found.entropy == pytest.approx(0, abs=1e-6)
    assert found.effective_rank == pytest.approx(1, abs=1e-6)
    assert float(found.values[0]) == pytest.approx(float(product.norm()), rel=1e-6)


def test_a_swap_has_an_entropy_of_log_d_squared():
    for d in (2, 3, 4):
        swap = torch.eye(d * d).reshape(d, d, d, d).transpose(0, 1).reshape(d * d, d * d)
        found = only(linear(swap), fold=lambda *_, d=d: ((d, d), (d, d)))
        assert (found.entropy, found.normalised) == pytest.approx((log(d * d), 1), abs=1e-9)
        torch.testing.assert_close(found.values, torch.ones(d * d).double())


def test_an_identity_is_a_product_of_sites_and_full_between_rows_and_columns():
    assert only(linear(torch.eye(12))).entropy == pytest.approx(0, abs=1e-9)
    found = only(linear(torch.eye(12)), fold=lambda *_: ((12, 1), (1, 12)))
    assert found.entropy == pytest.approx(log(12))
    assert found.effective_rank == pytest.approx(12)


@settings(max_examples=30, deadline=None)
@given(
    st.lists(st.integers(1, 4), min_size=3, max_size=3),
    st.lists(st.integers(1, 4), min_size=3, max_size=3),
    st.integers(1, 9),
    st.integers(0, 99),
)
def test_any_mpo_has_the_singular_values_of_its_unfoldings(rows, cols, rank, seed):
    net = mpo(tuple(rows), tuple(cols), rank)
    cores = random_cores(net, seed)
    weight = bw.dense(net, cores).numpy()
    for sites, name in enumerate(net.bonds, start=1):
        expected = np.linalg.svd(unfolded(weight, rows, cols, sites), compute_uv=False)
        values = profile(schmidt_values(Bond("", net, tuple(cores), name)))
        spectrum = Spectrum("", name, "cut", "", net, values, {})
        count = len(spectrum.values)
        assert count <= min(rank, len(expected))
        np.testing.assert_allclose(spectrum.values, expected[:count], atol=1e-9 * expected[0])
        assert np.all(expected[count:] <= 1e-9 * expected[0])
        shares = expected**2 / (expected**2).sum()
        shares = shares[shares > 1e-30]
        assert spectrum.entropy == pytest.approx(-(shares * np.log(shares)).sum(), abs=1e-9)
        assert spectrum.effective_rank == pytest.approx(exp(spectrum.entropy))


def test_the_fold_of_a_matrix_of_is_an_mpo():
    weight = torch.randn(24, 18)
    [one, two] = spectra(linear(weight), nulls=(), fold=lambda *_: ((2, 3, 4), (3, 2, 3)))
    assert (one.bond, two.bond) == ("a", "b")
    assert one.network.shape == (24, 18)
    for sites, found in ((1, one), (2, two)):
        expected = np.linalg.svd(unfolded(weight.numpy(), (2, 3, 4), (3, 2, 3), sites))[1]
        np.testing.assert_allclose(found.values, expected, rtol=1e-5)
        assert "folded to rows (2, 3, 4) and columns (3, 2, 3)" in found.shown


def test_blocks_are_shown_as_the_root_mean_square_of_their_values():
    layer = TensorLinear(btt((4, 3), (3, 4), 2), dtype=torch.float64)
    found = only(layer)
    assert found.kind == "blocks"
    weight = layer.dense().detach().numpy().reshape(4, 3, 3, 4)  # o1 o2 i1 i2
    each = [np.linalg.svd(weight[:, k, j])[1][:2] for k in range(3) for j in range(3)]
    np.testing.assert_allclose(found.values, np.sqrt(np.mean(np.square(each), 0)), rtol=1e-9)
    assert "9 blocks" in found.shown


@pytest.mark.parametrize("net", [cp((2, 3), (3, 2), 4), ring((2, 3), (3, 2), 3)])
def test_terms_are_shown_by_their_norms(net):
    layer = TensorLinear(net, dtype=torch.float64)
    for found in spectra(layer, nulls=()):
        own = bond(layer, name=found.bond)
        assert own.kind == found.kind == "terms"
        terms = bw.dense(opened(net, found.bond), own.cores).reshape(own.size, -1)
        torch.testing.assert_close(found.values, terms.norm(dim=1).sort(descending=True).values)
        assert "gauge as given" in found.shown


def test_attention_is_folded_at_its_heads():
    model = tiny.llama()  # 4 heads of 12, 2 for keys and values
    found = {s.layer.rpartition(".")[2]: s.network for s in spectra(model, nulls=(), names="0")}
    rows = {name: tuple(i.size for i in net.rows) for name, net in found.items()}
    assert rows["q_proj"] == (4, 12)
    assert rows["k_proj"] == rows["v_proj"] == (2, 12)
    assert rows["gate_proj"] == (8, 12)
    assert tuple(i.size for i in found["o_proj"].cols) == (4, 12)
    assert rows["o_proj"] == (6, 8)


def test_conv1d_is_read_as_out_by_in():
    model = tiny.gpt2()
    [found] = spectra(model, names="h.0.attn.c_attn", nulls=())
    weight = model.transformer.h[0].attn.c_attn.weight.detach().numpy().T  # kept as in x out
    rows, cols = (tuple(i.size for i in m) for m in (found.network.rows, found.network.cols))
    assert (rows, cols) == ((8, 12), (4, 8))
    expected = np.linalg.svd(unfolded(weight, rows, cols, 1), compute_uv=False)
    np.testing.assert_allclose(found.values, expected, rtol=1e-5)


def test_a_model_may_mix_both_and_stays_as_it_is():
    mixed = nn.Sequential(
        TensorLinear(mpo((2, 3), (2, 3), 3)), nn.ReLU(), nn.Linear(6, 4), nn.Embedding(8, 6)
    )
    before = {name: value.clone() for name, value in mixed.state_dict().items()}
    seen: list[tuple[str, int, int]] = []
    found = spectra(mixed, draws=2, progress=lambda *at: seen.append(at))
    assert [s.layer for s in found] == ["0", "2"]
    assert seen == [("spectra", 0, 2), ("spectra", 1, 2), ("spectra", 2, 2)]
    assert all(torch.equal(before[name], value) for name, value in mixed.state_dict().items())
    named = spectra(mixed, names=["embedding", "linear"], nulls=())
    assert [s.layer for s in named] == ["0", "2", "3"]


def test_the_head_is_read_only_where_it_is_named():
    model = tiny.llama()
    layers = [s.layer for s in spectra(model, nulls=())]
    assert len(layers) == 14
    assert "lm_head" not in layers
    assert [s.layer for s in spectra(model, nulls=(), names="lm_head")] == ["lm_head"]


def test_embeddings_half_precision_and_shared_layers_are_read():
    assert only(TensorEmbedding(lowrank(6, 4, 2))).values.shape == (2,)
    layer = linear(torch.randn(6, 6))
    exact, half = only(layer), only(layer.bfloat16())
    assert half.values.dtype == torch.float64
    assert half.entropy == pytest.approx(exact.entropy, abs=0.01)
    shared = nn.Linear(4, 4)
    assert len(spectra(nn.Sequential(shared, shared), nulls=())) == 1
    assert spectra(nn.Sequential(shared, shared), names="1", nulls=())[0].layer == "0"


def test_bad_input_is_refused_in_a_sentence():
    model, alone = nn.Sequential(nn.Linear(4, 6), nn.ReLU()), bw.parse("o i -> (o) (i)", o=3, i=4)
    said = r"'q_proj' names no layer of Sequential .* are 0"
    refused(SelectionError, said, spectra, model, names="q_proj")
    refused(SelectionError, "ReLU has no bond to read", spectra, nn.ReLU())
    refused(SelectionError, "has no bond to read", spectra, TensorLinear(alone))
    refused(SelectionError, "Fold 'heads' came; write 'auto'", spectra, model, fold="heads")
    said, fold = r"Rows of 0: 6 does not split as \(2, 2\); try \(2, 3\)", ((2, 2), (2, 2))
    refused(ShapeError, said, spectra, model, fold={"linear": fold})
    fold = {"linear": ((6,), (4,))}
    refused(ShapeError, "a single site without a bond", spectra, model, fold=fold)
    nn.init.constant_(model[0].weight, float("nan"))
    refused(FitError, "Weight 0 has NaN or infinite entries", spectra, model)


def test_a_fold_by_pattern_leaves_the_others_as_they_are():
    net = folded("b", nn.Linear(6, 6), {"a": ((6, 1), (1, 6))})
    assert [i.size for i in net.rows] == [2, 3]
    assert kron((2, 3), (2, 3), 1).shape == net.shape
