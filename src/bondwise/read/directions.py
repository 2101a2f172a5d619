"""Bases of a latent space: random, white, by varimax, by ICA, principal; and how two overlap."""

import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor

from bondwise.errors import DataError, ShapeError, optional

FLOOR = 1e-9  # smallest variance of a direction, over the largest: below is rounding
SWEEPS = 200  # of varimax, and of ICA, at most
LEAST_PER_VALUE = 8  # samples for each value of a bond; fewer give the samples' accidents
NOTHING = 1e-12
"""Part of the largest second moment below which a direction of the values counts as empty."""


def haar(
    size: int, generator: torch.Generator, *batch: int, dtype: torch.dtype = torch.float32
) -> Tensor:
    """Random orthogonal matrices, uniform over the group (Mezzadri 2007).

    >>> Q = haar(3, torch.Generator().manual_seed(0))
    >>> torch.allclose(Q.T @ Q, torch.eye(3), atol=1e-6)
    True
    """
    q, r = torch.linalg.qr(torch.randn(*batch, size, size, generator=generator, dtype=dtype))
    return q * r.diagonal(dim1=-2, dim2=-1).sign().unsqueeze(-2)


@dataclass(frozen=True)
class Whitening:
    """``h -> L^-1 h`` has the identity as its second moment; ``back`` is L, ``to`` its inverse."""

    to: Tensor
    back: Tensor


def whitening(moments: Tensor) -> Whitening:
    """What makes values white, from their second moments (rank x rank), by eigenvectors.

    Variances below `FLOOR` of the largest are taken as that, so that L has an inverse.

    >>> H = torch.tensor([[2.0, 1.0], [1.0, 2.0]])
    >>> W = whitening(H)
    >>> torch.allclose(W.to @ H.double() @ W.to.T, torch.eye(2).double())
    True
    """
    own, vectors = torch.linalg.eigh(moments.double())
    if not float(own[-1]) > 0:
        raise DataError("Values on the bond are all zero; give inputs that the layer answers to.")
    roots = own.clamp_min(FLOOR * float(own[-1])).sqrt()
    return Whitening((vectors / roots).T, vectors * roots)


def varimax(z: Tensor, seed: int = 0) -> Tensor:
    """The rotation R, rank x rank, whose values ``z R`` are as unevenly spread as can be.

    Maximises the variance of the squared values, each column apart (Kaiser 1958), from a random
    start, by alternating polar decompositions. Columns of R are the new basis.

    Args:
        z: white values, (samples, rank).
        seed: of the start.

    Raises:
        DataError: too few samples.
    """
    check_samples(z)
    z = z.double()
    rotation = _start(z.shape[1], seed).to(z.device)
    before = 0.0
    for _ in range(SWEEPS):
        turned = z @ rotation
        slope = z.T @ (turned**3 - turned * turned.square().mean(0))
        left, strengths, right = torch.linalg.svd(slope)
        rotation, now = left @ right, float(strengths.sum())
        if now <= before * (1 + 1e-7):
            break
        before = now
    return rotation


def ica(z: Tensor, seed: int = 0) -> Tensor:
    """The rotation R whose values ``z R`` are as independent as can be: FastICA (Hyvarinen 1999).

    With the logcosh contrast, all columns at once, from a random start, through scikit-learn.

    Args:
        z: white values, (samples, rank).
        seed: of the start.

    Raises:
        DataError: too few samples.
        MissingExtraError: scikit-learn is not installed.
    """
    check_samples(z)
    if z.shape[1] == 1:
        return z.new_ones(1, 1, dtype=torch.float64)
    fastica = optional("sklearn.decomposition", "read").fastica
    start = _start(z.shape[1], seed).numpy()
    white = z.double().cpu().numpy()
    with warnings.catch_warnings():
        # ConvergenceWarning: stability says it better
        warnings.filterwarnings("ignore", message="FastICA did not converge")
        _, rotation, _ = fastica(
            white, whiten=False, w_init=start, max_iter=SWEEPS, random_state=seed
        )
    U, _, V = torch.linalg.svd(torch.from_numpy(rotation).T)  # exactly orthogonal
    return (U @ V).to(z.device)


def _start(size: int, seed: int) -> Tensor:
    return haar(size, torch.Generator().manual_seed(seed), dtype=torch.float64)


def check_samples(z: Tensor, least: int = LEAST_PER_VALUE) -> None:
    """Refuse too few samples for a rotation.

    Raises:
        DataError: fewer than so many for each value.
    """
    count, rank = z.shape
    if count < least * rank:
        raise DataError(
            f"{count:,} samples came for a bond of {rank} values; "
            f"give at least {least * rank:,} ({least} for each value)."
        )


def matched(one: Tensor, two: Tensor) -> tuple[Tensor, Tensor]:
    """Which feature of a second set is which of a first one's, and how alike they are, 0 to 1.

    One to one, with the largest sum (Kuhn 1955).

    Args:
        one: (rank, n), each feature's coordinates, of length one.
        two: the same of the second set.

    >>> at, alike = matched(torch.eye(3), torch.eye(3)[[2, 0, 1]])
    >>> at, alike
    (tensor([1, 2, 0]), tensor([1., 1., 1.]))
    """
    assign = optional("scipy.optimize", "read").linear_sum_assignment
    cosines = (one @ two.T).abs()
    _, other = assign(cosines.cpu().numpy(), maximize=True)  # the first set comes in order
    at = torch.from_numpy(other).to(one.device)
    return at, cosines.gather(1, at[:, None])[:, 0].clamp(max=1.0)


def random_gauges(values: Tensor, draws: int, seed: int = 0) -> Iterator[Tensor]:
    """The same values in random gauges: whitened, then turned by a random orthogonal matrix.

    ``V C^(-1/2) Q`` with ``C = V^T V / n`` and Q uniform over the orthogonal group: what the
    features of the same bond are in a basis that nothing recommends. Nothing is centred, for a
    gauge is linear. Directions (size, r) can be given as well: bases of the same span come.

    >>> [turned] = random_gauges(torch.randn(100, 3), draws=1)
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

    The angles are scipy's ``subspace_angles``, which takes small ones from sines (Knyazev and
    Argentati 2002).

    >>> found = overlap(torch.eye(3)[:, :2], torch.eye(3)[:, 1:])
    >>> found.angles, found.cosine
    (tensor([0.0000, 1.5708], dtype=torch.float64), 0.5)

    Args:
        one: (size, r), a direction in each column; a zero one has cosine 0.
        two: (size, s).

    Raises:
        ShapeError: no matrices, or of different sizes.
        DataError: values that are not finite, or a dictionary that is all zero.
        MissingExtraError: scipy is not installed.
    """
    first, second = _matrix(one, "Directions"), _matrix(two, "Directions")
    if len(first) != len(second):
        raise ShapeError(
            f"Directions of shapes {tuple(one.shape)} and {tuple(two.shape)} came; "
            "give (size, r) and (size, s) with the same size."
        )
    for each in (first, second):
        if not bool(each.any()):
            raise DataError("Directions that are all zero came; give some that are not.")
    linalg = optional("scipy.linalg", "read")
    angles = linalg.subspace_angles(first.cpu().numpy(), second.cpu().numpy())
    unit, other = (d / d.norm(dim=0).clamp(min=1e-300) for d in (first, second))
    return Overlap(
        torch.from_numpy(angles[::-1].copy()),
        float((unit.T @ other).abs().max(dim=1).values.mean()),
    )


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
