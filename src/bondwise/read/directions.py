"""Dictionaries of directions: random gauges, principal components, and how two of them overlap."""

from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor

from bondwise.errors import DataError, ShapeError
from bondwise.read.schmidt import haar

NOTHING = 1e-12
"""Part of the largest second moment below which a direction of the values counts as empty."""


def gauges(values: Tensor, draws: int, seed: int = 0) -> Iterator[Tensor]:
    """The same values in random gauges: whitened, then turned by a random orthogonal matrix.

    ``V C^(-1/2) Q`` with ``C = V^T V / n`` and Q uniform over the orthogonal group: what the
    features of the same bond are in a basis that nothing recommends. Nothing is centred, for a
    gauge is linear. Directions (size, r) can be given as well: bases of the same span come.

    >>> [turned] = gauges(torch.randn(100, 3), draws=1)
    >>> torch.allclose(turned.T @ turned / 100, torch.eye(3), atol=1e-5)
    True

    Args:
        values: (tokens, r). Where they span fewer than r dimensions, so do the draws, which still
            have r columns.
        draws: how many.
        seed: of the draws.

    Raises:
        ShapeError: values are no matrix.
        DataError: all values are zero.
    """
    matrix = _matrix(values, "Values")
    count = matrix.shape[1]
    moments, basis = torch.linalg.eigh(matrix.T @ matrix / len(matrix))
    kept = moments > NOTHING * moments[-1]
    if not bool(kept.any()):
        raise DataError("Values that are all zero came; a gauge needs some that are not.")
    white = (matrix @ (basis[:, kept] / moments[kept].sqrt())).to(values.dtype)
    generator = torch.Generator().manual_seed(seed)
    for _ in range(draws):
        yield white @ haar(count, generator, dtype=values.dtype)[: white.shape[1]]


def principal(x: Tensor, r: int) -> Tensor:
    """Values of the r first principal components of x, (tokens, r) (Pearson 1901).

    >>> principal(torch.tensor([[1.0, 0.0], [-1.0, 0.0], [3.0, 0.0], [-3.0, 0.0]]), 1).abs()
    tensor([[1.], [1.], [3.], [3.]])

    Args:
        x: (tokens, size), what enters or leaves a layer.
        r: how many.

    Raises:
        ShapeError: x is no matrix, or has fewer than r columns.
    """
    matrix = _matrix(x, "x")
    _check_count(matrix, r)
    centred = matrix - matrix.mean(0)
    basis = torch.linalg.eigh(centred.T @ centred).eigenvectors
    return (centred @ basis.flip(1)[:, :r]).to(x.dtype)


def random_directions(x: Tensor, r: int, seed: int = 0) -> Tensor:
    """Values of x along r random directions of length 1, (tokens, r).

    >>> random_directions(torch.eye(4), 2).norm(dim=0).round(decimals=4)
    tensor([1., 1.])

    Args:
        x: (tokens, size), what enters or leaves a layer.
        r: how many.
        seed: of the directions.

    Raises:
        ShapeError: x is no matrix, or r is below 1.
    """
    matrix = _matrix(x, "x")
    _check_count(matrix, r)
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randn(matrix.shape[1], r, generator=generator, dtype=torch.float64)
    return (matrix @ (drawn / drawn.norm(dim=0))).to(x.dtype)


@dataclass(frozen=True, eq=False)
class Overlap:
    """How alike two dictionaries of directions are.

    Attributes:
        angles: between the two spans, in radians, ascending: (smaller dimension,). The same in
            every gauge.
        cosine: for each direction of the first the largest absolute cosine with one of the second,
            in the mean. This one depends on the gauge.
    """

    angles: Tensor = field(repr=False)
    cosine: float


def overlap(one: Tensor, two: Tensor) -> Overlap:
    """Principal angles between the spans of two dictionaries, and their mean largest cosine.

    Small angles are computed from sines (Bjoerck and Golub 1973; Knyazev and Argentati 2002).

    >>> found = overlap(torch.eye(3)[:, :2], torch.eye(3)[:, 1:])
    >>> found.angles, found.cosine
    (tensor([0.0000, 1.5708], dtype=torch.float64), 0.5)

    Args:
        one: (size, r), a direction in each column; a zero one has cosine 0.
        two: (size, s).

    Raises:
        ShapeError: no matrices, or of different sizes.
        DataError: values that are not finite, or a dictionary that is all zero.
    """
    first, second = _matrix(one, "Directions"), _matrix(two, "Directions")
    if len(first) != len(second):
        raise ShapeError(
            f"Directions of shapes {tuple(one.shape)} and {tuple(two.shape)} came; "
            "give (size, r) and (size, s) with the same size."
        )
    a, b = sorted((_basis(first), _basis(second)), key=lambda basis: -basis.shape[1])
    cosines = torch.linalg.svdvals(a.T @ b).clamp(max=1)
    sines = torch.linalg.svdvals(b - a @ (a.T @ b)).clamp(max=1).flip(0)
    angles = torch.where(cosines**2 > 0.5, sines.asin(), cosines.acos())
    unit, other = (d / d.norm(dim=0).clamp(min=1e-300) for d in (first, second))
    return Overlap(angles, float((unit.T @ other).abs().max(dim=1).values.mean()))


def _basis(directions: Tensor) -> Tensor:
    """An orthonormal basis of a span."""
    left, values, _ = torch.linalg.svd(directions, full_matrices=False)
    kept = values > values[0] * max(directions.shape) * torch.finfo(values.dtype).eps
    if not bool(kept.any()):
        raise DataError("Directions that are all zero came; give some that are not.")
    return left[:, kept]


def _matrix(values: Tensor, what: str) -> Tensor:
    """In float64, looked at."""
    if values.ndim != 2 or not values.numel():
        raise ShapeError(f"{what} of shape {tuple(values.shape)} came; give a matrix with entries.")
    if not bool(values.isfinite().all()):
        raise DataError(f"{what} that are not finite came; give finite ones.")
    return values.detach().double()


def _check_count(x: Tensor, r: int) -> None:
    if not 1 <= r <= x.shape[1]:
        raise ShapeError(
            f"{r} directions were asked of x with {x.shape[1]} columns; "
            f"write a number from 1 to {x.shape[1]}."
        )
