"""A split is the truncated SVD of numpy, with the error that it says."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bondwise.fit.split import split, tails
from nets import noise, thorough


@settings(deadline=None, max_examples=20)
@given(st.integers(1, 9), st.integers(1, 9), st.integers(1, 9), st.integers(0, 5))
def test_a_split_is_the_best_of_its_rank(m: int, n: int, rank: int, seed: int):
    matrix = noise((m, n), seed)
    cut = split(matrix, rank)
    values = np.linalg.svd(matrix.numpy(), compute_uv=False)
    best = float(np.sqrt((values[rank:] ** 2).sum()))
    assert cut.rank == min(rank, m, n)
    assert cut.error == pytest.approx(best, abs=1e-12)
    assert float((matrix - cut.left @ cut.right).norm()) == pytest.approx(best, abs=1e-12)
    torch.testing.assert_close(cut.left.mT @ cut.left, torch.eye(cut.rank, dtype=torch.float64))


@settings(deadline=None, max_examples=20)
@given(st.integers(1, 9), st.integers(1, 9), st.floats(0, 4), st.integers(0, 5))
def test_a_tolerance_takes_the_smallest_rank(m: int, n: int, tol: float, seed: int):
    matrix = noise((m, n), seed)
    cut = split(matrix, tol=tol)
    values = np.linalg.svd(matrix.numpy(), compute_uv=False)
    left_out = [float(np.sqrt((values[r:] ** 2).sum())) for r in range(len(values) + 1)]
    assert cut.error <= tol or cut.rank == min(m, n)
    assert cut.rank == 1 or left_out[cut.rank - 1] > tol


def test_a_batch_shares_its_rank_and_its_error():
    batch = noise((3, 5, 8))
    cut = split(batch, 2)
    off = batch - cut.left @ cut.right
    assert cut.error == pytest.approx(float(off.norm()), rel=1e-12)
    each = [split(matrix, 2).error for matrix in batch]
    assert cut.error == pytest.approx(float(np.linalg.norm(each)), rel=1e-12)


@pytest.mark.parametrize("shape", [(30, 50), (50, 30)])
def test_small_errors_are_exact_too(shape: tuple[int, int]):
    """Squaring the matrix would leave nothing of singular values below 1e-8."""
    left, right = torch.linalg.qr(noise((shape[0], 4))).Q, torch.linalg.qr(noise((shape[1], 4))).Q
    matrix = left @ torch.diag(torch.tensor([1, 1e-3, 1e-7, 1e-10], dtype=torch.float64)) @ right.T
    for rank, error in [(1, 1e-3), (2, 1e-7), (3, 1e-10)]:
        assert split(matrix, rank).error == pytest.approx(error, rel=1e-3)
        assert split(matrix, tol=error * 1.01).rank == rank


@pytest.mark.parametrize("dtype", [torch.bfloat16, *thorough(torch.float16, torch.float32)])
def test_halves_are_computed_in_float64(dtype: torch.dtype):
    matrix = noise((6, 7)).to(dtype)
    cut = split(matrix, 6)
    assert cut.left.dtype == torch.float64
    torch.testing.assert_close(cut.left @ cut.right, matrix.double())


def test_tails_are_the_energy_dropped_at_every_rank():
    assert tails(torch.tensor([3.0, 2.0, 1.0])).tolist() == [14, 5, 1, 0]
