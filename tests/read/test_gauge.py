"""Every gauge leaves the outputs; planted features come back where that is possible at all."""

from itertools import product

import numpy as np
import pytest
import torch

import bondwise as bw
from bondwise.errors import DataError, NetworkError, SelectionError
from bondwise.read import bond, gauge, spectra, values
from bondwise.read.bonds import sides
from bondwise.read.directions import haar
from bondwise.read.gauge import KINDS
from read.planted import NETS, layer, match, refused, scrambled, sparse

CUTS = [(n, name) for n in NETS for name in n.bonds if sides(n, name) is not None]


def test_outputs_stay():
    for (net, name), kind in product(CUTS, KINDS):
        own = layer(net)
        x = torch.randn(400, net.shape[1], dtype=torch.float64)
        if sides(net, name).blocks and kind not in ("raw", "canonical"):
            refused(DataError, "take 'canonical'", gauge, own, kind, bond=name, data=x)
            continue
        found = gauge(own, kind, bond=name, data=x)
        torch.testing.assert_close(found.layer(x), own(x), rtol=0, atol=1e-10)
        assert found.norms.shape == found.identified.shape == (net.bonds[name],)


def test_the_canonical_gauge_and_spectra_are_the_schmidt_decomposition():
    for net, name in CUTS:
        cut = sides(net, name)
        if cut.blocks:
            continue  # each block has its own
        indices = [i.name for i in (*net.rows, *net.cols)]
        own = layer(net)
        W = own.dense().detach().numpy().reshape([net.sizes[n] for n in indices])
        first = [n for n in indices if any(n in net.names[k] for k in cut.first)]
        order = [indices.index(n) for n in (*first, *(n for n in indices if n not in first))]
        rows = int(np.prod([net.sizes[n] for n in first]))
        s = np.linalg.svd(W.transpose(order).reshape(rows, -1), compute_uv=False)
        [shown] = [x.values for x in spectra(own, nulls=()) if x.bond == name]
        np.testing.assert_allclose(shown, s[: len(shown)], rtol=1e-9)
        norms = gauge(own, "canonical", bond=name).norms.numpy()
        count = min(len(s), len(norms))
        np.testing.assert_allclose(norms[:count], s[:count], atol=1e-10)
        np.testing.assert_allclose(norms[count:], 0, atol=1e-10)


def test_a_bond_larger_than_its_weight_can_use_keeps_an_invertible_gauge():
    own = layer(bw.lowrank(3, 4, 6))
    found = gauge(own, "canonical")
    assert int((found.norms > 1e-9).sum()) == 3
    torch.testing.assert_close(found.layer.dense(), own.dense(), rtol=0, atol=1e-12)
    assert (3, 4, 5) in found.groups


@pytest.mark.parametrize("kind", ["varimax", "ica"])
def test_planted_sparse_features_come_back_from_a_random_gauge(kind):
    sources = sparse(6000, 12)
    own, x = scrambled(sources)
    found = gauge(own, kind, data=x)
    assert match(values(bond(own), x).values, sources) < 0.75
    assert match(values(found.bond, x).values, sources) > 0.95
    assert bool(found.identified.all())


def test_gaussian_features_do_not_come_back_and_are_flagged():
    sources = torch.randn(6000, 12, dtype=torch.float64)
    own, x = scrambled(sources)
    found = gauge(own, "ica", data=x)
    assert match(values(found.bond, x).values, sources) < 0.95
    assert float(found.identified.double().mean()) < 0.5


def test_the_schmidt_basis_finds_planted_directions_only_where_their_strengths_differ():
    U, V = (torch.linalg.qr(torch.randn(n, 5, dtype=torch.float64)).Q for n in (20, 30))
    for strengths, known in (([5.0, 4, 3, 2, 1], True), ([2.0, 2, 2, 2, 2], False)):
        X = torch.randn(5, 5, dtype=torch.float64)
        cores = [U * torch.tensor(strengths, dtype=torch.float64) @ X, torch.linalg.inv(X) @ V.T]
        own = bw.TensorLinear(bw.lowrank(20, 30, 5), cores, dtype=torch.float64)
        found = gauge(own, "canonical")
        cosines = (V.T @ found.bond.cores[1].T).abs() / found.bond.cores[1].norm(dim=1)
        assert bool(found.identified.all()) == known
        assert (float(cosines.max(0).values.min()) > 0.999) == known
        assert found.groups == (() if known else ((0, 1, 2, 3, 4),))


def test_a_gauge_does_not_depend_on_the_one_before():
    sources = sparse(3000, 6)
    own, x = scrambled(sources)
    X = torch.randn(6, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(5))
    cores = bw.insert_gauge(own.network, own.cores(), "a", X)
    other = bw.TensorLinear(own.network, cores, dtype=torch.float64)
    for kind in ("canonical", "whitened"):
        one, two = gauge(own, kind, data=x), gauge(other, kind, data=x)
        torch.testing.assert_close(one.norms, two.norms)


def test_whitened_values_are_white_and_their_outputs_do_not_overlap():
    own, x = scrambled(sparse(4000, 6))
    found = gauge(own, "whitened", data=x)
    h = values(found.bond, x).values
    torch.testing.assert_close(h.T @ h / len(h), torch.eye(6, dtype=torch.float64))
    A = found.bond.cores[0]
    across = A.T @ A
    torch.testing.assert_close(across, across.diagonal().diag(), rtol=0, atol=1e-9)


def test_a_random_rotation_is_orthogonal_and_follows_its_seed():
    one, two, other = (haar(7, torch.Generator().manual_seed(seed)) for seed in (3, 3, 4))
    torch.testing.assert_close(one @ one.T, torch.eye(7))
    assert torch.equal(one, two)
    assert not torch.equal(one, other)


def test_bad_input():
    own, nan = layer(bw.lowrank(6, 8, 4)), torch.full((80, 8), float("nan"))
    refused(SelectionError, "write one of raw, canonical", gauge, own, "svd")
    refused(DataError, "add data=", gauge, own, "ica")
    refused(DataError, "at least 64", gauge, own, "ica", data=torch.randn(10, 8))
    refused(DataError, "not finite", gauge, own, "ica", data=nan)
    refused(DataError, "all zero", gauge, own, "ica", data=torch.zeros(80, 8))
    loop, star = layer(bw.ring((2, 2), (2, 2), 3)), layer(bw.cp((2, 2), (2, 2), 3))
    refused(NetworkError, "lies on a loop", gauge, loop, "canonical")
    refused(NetworkError, "sits on 4 cores", gauge, star, "canonical")
    refused(SelectionError, "nearest", gauge, own, "canonical", bond="z")
