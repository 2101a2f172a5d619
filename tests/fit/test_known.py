"""Matrices whose exact ranks are known: the fit finds these ranks, no more and no less."""

from functools import reduce

import pytest
import torch

from bondwise import cp, kron, mpo, ring, tree, tucker
from bondwise.fit.fit import fit

SITES = 6
X = torch.tensor([[0.0, 1], [1, 0]], dtype=torch.float64)
Z = torch.tensor([[1.0, 0], [0, -1]], dtype=torch.float64)
IY = torch.tensor([[0.0, 1], [-1, 0]], dtype=torch.float64)  # i times Y: real
N = 2**SITES
QUANTICS = mpo((2,) * SITES, (2,) * SITES, 8)


def placed(op: torch.Tensor, *at: int) -> torch.Tensor:
    """Product of one-site operators; the identity where it is not."""
    eye = torch.eye(2, dtype=torch.float64)
    return reduce(torch.kron, [op if k in at else eye for k in range(SITES)])


def bonds(op: torch.Tensor) -> torch.Tensor:
    return torch.stack([placed(op, k, k + 1) for k in range(SITES - 1)]).sum(0)


def fields(op: torch.Tensor) -> torch.Tensor:
    return torch.stack([placed(op, k) for k in range(SITES)]).sum(0)


ONES = torch.ones(N - 1, dtype=torch.float64)
EYE = torch.eye(N, dtype=torch.float64)
LAPLACIAN = 2 * EYE - torch.diag(ONES, 1) - torch.diag(ONES, -1)
# every inner bond but, where noted, the outermost, which their one site limits to 4
KNOWN = {
    "identity": (EYE, 1),
    "all ones": (torch.ones(N, N, dtype=torch.float64), 1),
    "cyclic shift (Kazeev et al. 2013)": (EYE.roll(1, 0), 2),
    "shift": (torch.diag(ONES, -1), 2),
    "Laplacian (Kazeev and Khoromskij 2012)": (LAPLACIAN, 3),
    "cumulative sum": (torch.tril(torch.ones(N, N, dtype=torch.float64)), 2),
    "counting (sum of fields)": (fields(Z), 2),
    "transverse Ising chain": (bonds(Z) + 0.7 * fields(X), 3),
    "Heisenberg chain (Schollwoeck 2011)": (bonds(X) + bonds(Z) - bonds(IY), 5),
}


@pytest.mark.parametrize("name", KNOWN)
def test_chains_find_the_known_ranks(name: str):
    weight, rank = KNOWN[name]
    got = fit(weight, QUANTICS, tol=1e-10)
    outer = min(rank, 4)
    assert list(got.network.bonds.values()) == [outer, *[rank] * (SITES - 3), outer]
    assert got.error < 1e-12


def test_kronecker_products_have_rank_one_in_every_format():
    factors = [torch.randn(3, 4), torch.randn(2, 5), torch.randn(4, 2)]
    weight = reduce(torch.kron, [factor.double() for factor in factors])
    sides = (3, 2, 4), (4, 5, 2)
    for build in (mpo, kron, tree, ring):
        assert fit(weight, build(*sides, 1)).error < 1e-13
    chain, product = fit(weight, mpo(*sides, 1)), fit(weight, kron(*sides, 1))
    for one, two, factor in zip(chain.cores, product.cores, factors, strict=True):
        scale = two.flatten() @ one.flatten() / one.flatten().square().sum()
        torch.testing.assert_close(two.flatten(), scale * one.flatten())
        scale = two.flatten() @ factor.double().flatten() / factor.double().square().sum()
        torch.testing.assert_close(two.reshape(factor.shape), scale * factor.double())


def test_a_chain_is_a_tree_is_a_ring():
    weight = KNOWN["transverse Ising chain"][0]
    sides = (4, 4, 4), (4, 4, 4)
    assert fit(weight, mpo(*sides, 3)).error < 1e-12
    assert fit(weight, tree(*sides, 9)).error < 1e-12
    assert fit(weight, ring(*sides, (1, 3, 3))).error < 1e-12


def test_the_identity_over_two_modes_is_a_cp_of_full_rank_and_a_full_tucker():
    assert fit(torch.eye(6).double(), cp((2, 3), (2, 3), 6)).error < 1e-9
    assert fit(torch.eye(6).double(), tucker((2, 3), (2, 3), 3)).error < 1e-13
