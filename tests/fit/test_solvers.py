"""Conjugate gradients against numpy's solve; every iterate is lower than the one before."""

from itertools import pairwise

import numpy as np
import pytest
import torch

from bondwise.fit.alternating.solvers import conjugate_gradients
from nets import noise


def system(size: int) -> tuple[torch.Tensor, torch.Tensor]:
    rows = noise((2 * size, size))
    return rows.T @ rows, noise((size, 1), 1)[:, 0]


def test_it_solves_and_falls_from_step_to_step():
    matrix, right = system(12)
    steps = [conjugate_gradients(matrix.mv, right, lambda r: r, k, 0.0) for k in range(13)]
    values = [float(x @ matrix @ x / 2 - right @ x) for x in steps]
    assert all(after < before for before, after in pairwise(values))
    np.testing.assert_allclose(steps[-1], np.linalg.solve(matrix, right), rtol=1e-6)


def test_the_inverse_as_preconditioner_needs_one_step():
    matrix, right = system(12)
    inverse = torch.linalg.inv(matrix)
    got = conjugate_gradients(matrix.mv, right, inverse.mv, 1, 0.0)
    torch.testing.assert_close(matrix @ got, right)


@pytest.mark.parametrize("enough", [0.5, 0.1])
def test_it_stops_when_that_is_enough(enough: float):
    matrix, right = system(12)
    calls = []

    def apply(x: torch.Tensor) -> torch.Tensor:
        calls.append(1)
        return matrix @ x

    got = conjugate_gradients(apply, right, lambda r: r, 100, enough)
    assert float((right - matrix @ got).norm()) <= enough * float(right.norm())
    assert len(calls) < 12


def test_nothing_to_do_and_flat_directions_are_harmless():
    zero = torch.zeros(3)
    assert torch.equal(conjugate_gradients(lambda x: x, zero, lambda r: r, 5, 0.1), zero)
    assert torch.equal(conjugate_gradients(torch.zeros_like, zero + 1, lambda r: r, 5, 0.1), zero)
