"""Bases of a latent space: whitening, and the rotations that varimax and ICA choose."""

import warnings
from dataclasses import dataclass

import torch
from torch import Tensor

from bondwise.errors import DataError, MissingExtraError
from bondwise.read.schmidt import haar

FLOOR = 1e-9  # smallest variance of a direction, over the largest: below is rounding
SWEEPS = 200  # of varimax, and of ICA, at most
LEAST_PER_VALUE = 8  # samples for each value of a bond; fewer give the samples' accidents


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
    rotation = random_rotation(z.shape[1], seed).to(z.device)
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
    try:
        from sklearn.decomposition import fastica
        from sklearn.exceptions import ConvergenceWarning
    except ImportError as error:
        raise MissingExtraError(
            "ICA needs the package scikit-learn, which is not installed; "
            "write `pip install 'bondwise[read]'`"
        ) from error
    start = random_rotation(z.shape[1], seed).numpy()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # stability says it better
        _, rotation, _ = fastica(
            z.double().cpu().numpy(),
            whiten=False,  # pyright: ignore[reportArgumentType]
            w_init=start,
            max_iter=SWEEPS,
            random_state=seed,
        )
    U, _, V = torch.linalg.svd(torch.from_numpy(rotation).T)  # exactly orthogonal
    return (U @ V).to(z.device)


def random_rotation(size: int, seed: int) -> Tensor:
    """An orthogonal matrix, uniform over all of them (Haar; Mezzadri 2007), in float64."""
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
    try:
        from scipy.optimize import linear_sum_assignment
    except ImportError as error:
        raise MissingExtraError(
            "Matching features needs the package scipy, which is not installed; "
            "write `pip install 'bondwise[read]'`"
        ) from error
    cosines = (one @ two.T).abs()
    rows, columns = linear_sum_assignment(cosines.cpu().numpy(), maximize=True)
    at = torch.from_numpy(columns[rows.argsort()]).to(one.device)
    return at, cosines.gather(1, at[:, None])[:, 0].clamp(max=1.0)
