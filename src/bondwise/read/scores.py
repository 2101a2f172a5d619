"""Scores of features without a language model as judge, each against random gauges and controls.

A score alone says little: among many indices some tell any concept by chance, and so do neurons,
principal components and random directions. So the best index is chosen on one half of the tokens
and scored on the other, random gauges of the same bond go through the same, and controls beside.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from bondwise.errors import DataError, ShapeError
from bondwise.read.directions import random_gauges
from bondwise.read.held_out import Best, best_of, group_numbers, halves, interval, labelled

EQUAL = 1e-9
"""Statistics closer than this count as equal, so that rounding decides nothing."""

RESAMPLES = 1000
"""Draws of the bootstrap."""

FEWEST = 4
"""Groups that a bootstrap over one half of them needs in all."""


@dataclass(frozen=True, eq=False)
class Against:
    """The score of a control dictionary, and how much better the features are.

    Attributes:
        best: of the control, chosen and held out on the same tokens.
        difference: AUROC of the features minus the control's, (concepts,).
        low: lower end of its 95 % interval: a paired bootstrap over held-out groups, (concepts,).
        high: upper end.
    """

    best: Best
    difference: Tensor
    low: Tensor
    high: Tensor


@dataclass(frozen=True, eq=False)
class Score:
    """How well the best index tells each concept, and how well chance would.

    Attributes:
        best: index, sign and held-out AUROC, (concepts,) each.
        null: held-out AUROC of as many random gauges, (draws, concepts).
        p: ``(1 + gauges at least as good) / (1 + draws)``, (concepts,).
        adjusted: p after Holm's correction for the number of concepts, (concepts,).
        controls: by name.
    """

    best: Best
    null: Tensor = field(repr=False)
    p: Tensor
    adjusted: Tensor
    controls: dict[str, Against]


def scored(
    values: Tensor,
    labels: Tensor,
    *,
    controls: Mapping[str, Tensor] | None = None,
    draws: int = 99,
    seed: int = 0,
    groups: Tensor | None = None,
) -> Score:
    """Best-index AUROC of features, against random gauges of the same bond and control features.

    The p value asks whether this basis tells the concept better than another basis of the same
    span does; that the span has the concept at all is not in question. Controls show what other
    dictionaries do: neurons, principal components, random directions
    (`bondwise.read.directions`).

    >>> from bondwise.read.directions import random_directions
    >>> labels = torch.arange(400) % 4 == 0
    >>> hidden = torch.randn(400, 6, generator=torch.Generator().manual_seed(0))
    >>> values = hidden + torch.outer(3.0 * labels, torch.eye(6)[2])
    >>> found = scored(values, labels, controls={"random": random_directions(values, 6)})
    >>> found.best.index.item(), round(found.p.item(), 2), bool(found.controls["random"].low > 0)
    (2, 0.01, True)

    Args:
        values: of the features, (tokens, r).
        labels: (tokens,) or (tokens, concepts), of 0 and 1.
        controls: values of other dictionaries, (tokens, any number) each.
        draws: random gauges; the smallest p is ``1 / (1 + draws)``.
        seed: of halves, gauges and bootstrap.
        groups: which tokens belong together, (tokens,), such as their document: kept in one half,
            and drawn as one by the bootstrap.

    Raises:
        ShapeError: values, labels, groups or controls do not fit together.
        DataError: too few tokens of a class, groups or draws, or values that are not finite.
    """
    flags = labelled(values, labels)
    controls = controls or {}
    for name, other in controls.items():
        try:
            labelled(other, labels)
        except (ShapeError, DataError) as error:
            raise type(error)(f"Control {name!r}: {error}") from error
    _check_draws(draws)
    first = halves(flags, groups, seed)
    own = best_of(values, flags, first)
    null = torch.stack([best_of(v, flags, first).auroc for v in random_gauges(values, draws, seed)])
    p = _share(own.auroc, null)
    at = group_numbers(groups, len(flags))
    found = {
        name: _against(own, values, other, flags, first, at, seed)
        for name, other in controls.items()
    }
    return Score(own, null, p, holm(p), found)


@dataclass(frozen=True, eq=False)
class Compared:
    """A statistic of features, of the same in random gauges, and of control features.

    Attributes:
        observed: as the statistic returns it.
        null: of the random gauges, (draws, ..).
        p: ``(1 + gauges at least as large) / (1 + draws)``, shaped as the statistic.
        controls: by name.
    """

    observed: Tensor
    null: Tensor = field(repr=False)
    p: Tensor
    controls: dict[str, Tensor]


def against_gauges(
    statistic: Callable[[Tensor], Tensor],
    values: Tensor,
    *,
    controls: Mapping[str, Tensor] | None = None,
    draws: int = 99,
    seed: int = 0,
) -> Compared:
    """Any statistic of features against random gauges of the same bond; larger has to be better.

    Write it so that no index is picked out: the largest selectivity, the mean token entropy with a
    minus, the mean cosine of an overlap. Principal angles are the same in every gauge and are not
    compared so.

    >>> labels = torch.arange(400) % 4 == 0
    >>> hidden = torch.randn(400, 6, generator=torch.Generator().manual_seed(0))
    >>> values = hidden + torch.outer(3.0 * labels, torch.eye(6)[2])
    >>> found = against_gauges(lambda v: selectivity(v, labels).max(), values, draws=19)
    >>> found.p.item()
    0.05

    Args:
        statistic: of values (tokens, r), a number or a tensor.
        values: of the features, (tokens, r); or directions, (size, r).
        controls: values of other dictionaries.
        draws: random gauges.
        seed: of the gauges.

    Raises:
        ShapeError: values are no matrix.
        DataError: fewer than one draw, or values that are all zero.
    """
    _check_draws(draws)
    observed = torch.as_tensor(statistic(values))
    null = torch.stack([torch.as_tensor(statistic(v)) for v in random_gauges(values, draws, seed)])
    others = {name: torch.as_tensor(statistic(v)) for name, v in (controls or {}).items()}
    return Compared(observed, null, _share(observed, null), others)


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


def holm(p: Tensor) -> Tensor:
    """P values corrected for their number (Holm 1979): the k-th smallest of m times m - k + 1.

    >>> holm(torch.tensor([0.01, 0.04, 0.03]))
    tensor([0.0300, 0.0600, 0.0600])

    Args:
        p: (concepts,).
    """
    order = p.argsort()
    left = torch.arange(len(p), 0, -1)
    raised = (p[order] * left).cummax(0).values.clamp(max=1)
    return torch.empty_like(p).scatter_(0, order, raised)


def _against(
    own: Best,
    values: Tensor,
    other: Tensor,
    flags: Tensor,
    first: Tensor,
    at: Tensor,
    seed: int,
) -> Against:
    best = best_of(other, flags, first)
    held = ~first
    if len(at.unique()) < FEWEST:
        raise DataError(
            f"{len(at.unique())} groups came; an interval over one half of them needs "
            f"at least {FEWEST} in all."
        )
    one = values[held][:, own.index] * own.sign
    two = other[held][:, best.index] * best.sign
    low, high = interval(one, two, flags[held], at[held], RESAMPLES, seed)
    return Against(best, own.auroc - best.auroc, low, high)


def _share(observed: Tensor, null: Tensor) -> Tensor:
    return (1 + (null >= observed - EQUAL).sum(0)).double() / (1 + len(null))


def _check_draws(draws: int) -> None:
    if isinstance(draws, bool) or not isinstance(draws, int) or draws < 1:
        raise DataError(f"{draws!r} draws came; a p value needs a whole number of at least 1.")


def _moments(centred: Tensor, side: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and variance of each column over each concept's tokens, (columns, concepts)."""
    weights = side.double() / (side.sum(0) - 1)
    mean = centred.T @ (side.double() / side.sum(0))
    squares = centred.square().T @ weights
    bessel = side.sum(0) / (side.sum(0) - 1)
    return mean, (squares - bessel * mean.square()).clamp(min=0)
