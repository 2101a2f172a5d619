"""What each index does over tokens: how selective it is, and to how many tokens it answers."""

import torch
from torch import Tensor

from bondwise.errors import DataError, ShapeError
from bondwise.read.ranking import labelled


def selectivity(values: Tensor, labels: Tensor) -> Tensor:
    """How far apart labelled and other tokens are: d' (Green and Swets 1966).

    ``(mean of the labelled - mean of the others) / sqrt((var + var) / 2)``, in standard
    deviations; 0 where neither class varies.

    >>> selectivity(torch.tensor([[0.0], [2.0], [3.0], [5.0]]), torch.tensor([0, 0, 1, 1]))
    tensor([2.1213], dtype=torch.float64)

    Args:
        values: (tokens, columns).
        labels: (tokens,) or (tokens, concepts), of 0 and 1.

    Returns:
        (columns,), or (columns, concepts) for labels that have concepts; float64.

    Raises:
        ShapeError: values and labels do not fit together.
        DataError: fewer than two tokens of a class, or values that are not finite.
    """
    flags = labelled(values, labels, least=2)
    centred = values.double() - values.double().mean(0)
    means, variances = zip(*(_moments(centred, side) for side in (flags, ~flags)), strict=True)
    spread = ((variances[0] + variances[1]) / 2).sqrt()
    found = torch.where(spread > 0, (means[0] - means[1]) / spread, 0.0)
    return found if labels.ndim == 2 else found[:, 0]


def token_entropy(values: Tensor, tokens: Tensor, top: int = 20) -> Tensor:
    """Entropy in nats of the token ids where each index is largest in size, (columns,).

    0 where an index answers to one token alone, at most ``log(top)``. The size counts, for the sign
    of an index is a matter of gauge.

    >>> token_entropy(torch.tensor([[3.0, 1.0], [2.0, 3.0], [0.0, -2.0]]), torch.arange(3), top=1)
    tensor([0., 0.], dtype=torch.float64)

    Args:
        values: (tokens, columns).
        tokens: their ids, (tokens,).
        top: how many examples of each index.

    Raises:
        ShapeError: values and tokens do not fit together.
        DataError: fewer tokens than ``top``.
    """
    if values.ndim != 2 or tuple(tokens.shape) != (len(values),):
        raise ShapeError(
            f"Values of shape {tuple(values.shape)} and tokens of shape {tuple(tokens.shape)} "
            "came; give (tokens, columns) and (tokens,)."
        )
    if not 1 <= top <= len(values):
        raise DataError(f"{len(values)} tokens came; the top {top} of each index need as many.")
    at = values.abs().topk(top, dim=0).indices
    ids = tokens[at].unique(return_inverse=True)[1]
    counts = torch.zeros(int(ids.max()) + 1, values.shape[1], dtype=torch.float64)
    shares = counts.scatter_add_(0, ids, torch.ones_like(ids, dtype=torch.float64)) / top
    return torch.special.xlogy(shares, shares).sum(0).abs()


def _moments(centred: Tensor, side: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and variance of each column over each concept's tokens, (columns, concepts)."""
    weights = side.double() / (side.sum(0) - 1)
    mean = centred.T @ (side.double() / side.sum(0))
    squares = centred.square().T @ weights
    bessel = side.sum(0) / (side.sum(0) - 1)
    return mean, (squares - bessel * mean.square()).clamp(min=0)
