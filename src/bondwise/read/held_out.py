"""AUROC, with the best index chosen on one half of the tokens and scored on the other."""

from dataclasses import dataclass

import torch
from torch import Tensor

from bondwise.errors import DataError, ShapeError, optional

LEAST = 10
"""Tokens of each class that a choice on one half and a score on the other need."""

TRIES = 100
"""How many halvings are drawn before the labels count as too clumped to be halved."""

ROOM = 2**22
"""Numbers in one go of the bootstrap."""


def auroc(values: Tensor, labels: Tensor) -> Tensor:
    """Area under the ROC curve of every column for every concept (Mann and Whitney 1947).

    The share of pairs of a labelled and another token in which the labelled one has the larger
    value; ties count one half. By ranks: ``(R - P (P + 1) / 2) / (P N)``, with R the sum of the
    ranks of the P labelled tokens, N the number of the others.

    >>> values = torch.tensor([[0.1, 5.0], [0.4, 5.0], [0.3, 5.0], [0.9, 5.0]])
    >>> auroc(values, torch.tensor([0, 0, 1, 1]))
    tensor([0.7500, 0.5000], dtype=torch.float64)

    Args:
        values: (tokens, columns).
        labels: (tokens,) or (tokens, concepts), of 0 and 1.

    Returns:
        (columns,), or (columns, concepts) for labels that have concepts; float64.

    Raises:
        ShapeError: values and labels do not fit together.
        DataError: labels of one class only or other than 0 and 1; values that are not finite.
        MissingExtraError: scipy is not installed.
    """
    flags = labelled(values, labels, least=1)
    found = _areas(values, flags)
    return found if labels.ndim == 2 else found[:, 0]


@dataclass(frozen=True, eq=False)
class Best:
    """The index that tells each concept best, chosen on one half of the tokens.

    Attributes:
        index: column of the values, (concepts,).
        sign: 1 where labelled tokens have the larger values, -1 where the smaller, (concepts,).
        auroc: on the other half, with that sign: 0.5 is chance, (concepts,).
        chosen: on the half where it was chosen, and so too high, (concepts,).
    """

    index: Tensor
    sign: Tensor
    auroc: Tensor
    chosen: Tensor


def best_index(values: Tensor, labels: Tensor, groups: Tensor | None = None, seed: int = 0) -> Best:
    """The best index of either sign for each concept, with its AUROC held out.

    >>> labels = torch.arange(80) % 2
    >>> values = torch.stack([torch.zeros(80), 1.0 - labels], dim=1)
    >>> best = best_index(values, labels)
    >>> best.index.item(), best.sign.item(), best.auroc.item()
    (1, -1, 1.0)

    Args:
        values: (tokens, columns).
        labels: (tokens,) or (tokens, concepts), of 0 and 1.
        groups: which tokens belong together, (tokens,), such as the number of their document: a
            group is never in both halves. Without it each token is on its own, which flatters
            where neighbours are alike.
        seed: of the halves.

    Raises:
        ShapeError: values, labels and groups do not fit together.
        DataError: fewer than `LEAST` tokens of a class, or labels in too few groups to be halved.
    """
    flags = labelled(values, labels)
    return best_of(values, flags, halves(flags, groups, seed))


def best_of(values: Tensor, flags: Tensor, first: Tensor) -> Best:
    """`best_index` where the half for the choice is at hand."""
    areas = _areas(values[first], flags[first])
    index = (areas - 0.5).abs().argmax(0)
    chosen = areas.gather(0, index[None])[0]
    sign = torch.where(chosen < 0.5, -1, 1)
    other = ~first
    held = _from_sums((_ranks(values[other][:, index]) * flags[other]).sum(0), flags[other])
    return Best(index, sign, _signed(held, sign), _signed(chosen, sign))


def halves(flags: Tensor, groups: Tensor | None = None, seed: int = 0) -> Tensor:
    """Which tokens are in the first half; groups stay whole, and both halves have all classes.

    Groups are dealt in turn to both halves, those with the same rarest class after one another
    (after Sechidis et al. 2011).

    Args:
        flags: (tokens, concepts), bool.
        groups: (tokens,); None for each token on its own.
        seed: of the deal.

    Raises:
        ShapeError: another number of groups than of tokens.
        DataError: a class of some concept is in one group only, or no deal has all in both.
    """
    at = group_numbers(groups, len(flags))
    count = int(at.max()) + 1
    both = torch.cat([flags, ~flags], dim=1)
    has = torch.zeros(count, both.shape[1], dtype=torch.long).index_add_(0, at, both.long()) > 0
    few = (has.sum(0) < 2).nonzero().flatten().tolist()
    if few:
        concept, said = few[0] % flags.shape[1], "labelled" if few[0] < flags.shape[1] else "other"
        raise DataError(
            f"Concept {concept} has {said} tokens in one group of {count}; "
            "halves need them in at least 2 groups."
        )
    rarest = torch.where(has, has.sum(0), count + 1).argmin(1)
    generator = torch.Generator().manual_seed(seed)
    for _ in range(TRIES):
        order = torch.randperm(count, generator=generator)
        order = order[rarest[order].argsort(stable=True)]
        first = torch.zeros(count, dtype=torch.bool)
        first[order[::2]] = True
        if bool((has[first].any(0) & has[~first].any(0)).all()):
            return first[at]
    raise DataError(
        f"No halves of {count} groups with all classes of {flags.shape[1]} concepts in both came "
        f"up in {TRIES} deals; give more groups or fewer concepts."
    )


def interval(
    one: Tensor, two: Tensor, flags: Tensor, at: Tensor, resamples: int, seed: int
) -> tuple[Tensor, Tensor]:
    """Ends of a 95 % interval of ``auroc(one) - auroc(two)``, by a paired bootstrap over groups.

    Groups are drawn with replacement (Efron 1979), the same for both sides; draws without tokens
    of both classes are left out.

    Args:
        one: (tokens, concepts), the values that tell each concept.
        two: the same of the other side.
        flags: (tokens, concepts), bool.
        at: number of each token's group, (tokens,).
        resamples: how many draws.
        seed: of the draws.
    """
    generator = torch.Generator().manual_seed(seed)
    numbers = at.unique(return_inverse=True)[1]
    count = int(numbers.max()) + 1
    parts: list[Tensor] = []
    step = max(1, ROOM // len(at))
    for start in range(0, resamples, step):
        rows = min(step, resamples - start)
        drawn = torch.randint(count, (rows, count), generator=generator)
        times = torch.zeros(rows, count, dtype=torch.float64)
        weights = times.scatter_add_(1, drawn, torch.ones_like(drawn, dtype=torch.float64))
        weights = weights[:, numbers]
        pairs = zip(one.T, two.T, flags.T, strict=True)
        parts.append(
            torch.stack([_weighted(a, f, weights) - _weighted(b, f, weights) for a, b, f in pairs])
        )
    ends = torch.cat(parts, dim=1).nanquantile(
        torch.tensor([0.025, 0.975], dtype=torch.float64), dim=1
    )
    return ends[0], ends[1]


def labelled(values: Tensor, labels: Tensor, least: int = LEAST) -> Tensor:
    """Labels as bool, (tokens, concepts), looked at together with the values.

    Raises:
        ShapeError: values are no matrix, or labels are of another number of tokens.
        DataError: values that are not finite, labels other than 0 and 1, or fewer than ``least``
            tokens of a class.
    """
    if values.ndim != 2 or labels.ndim not in (1, 2) or len(values) != len(labels):
        raise ShapeError(
            f"Values of shape {tuple(values.shape)} and labels of shape {tuple(labels.shape)} "
            "came; give (tokens, columns) and (tokens,) or (tokens, concepts)."
        )
    if not bool(values.isfinite().all()):
        bad = int((~values.isfinite()).sum())
        raise DataError(f"{bad:,} of {values.numel():,} values are not finite; give finite ones.")
    flags = labels.bool()
    if not torch.equal(flags.to(labels.dtype), labels):
        raise DataError("Labels other than 0 and 1 came; write labels > 0, say.")
    flags = flags if flags.ndim == 2 else flags[:, None]
    for concept, hits in enumerate(flags.sum(0).tolist()):
        if min(hits, len(flags) - hits) < least:
            raise DataError(
                f"Concept {concept} has {hits} labelled tokens and {len(flags) - hits} others; "
                f"give at least {least} of each."
            )
    return flags


def group_numbers(groups: Tensor | None, tokens: int) -> Tensor:
    """Groups as 0, 1, ..; each token on its own where there are none.

    Raises:
        ShapeError: another number of groups than of tokens.
    """
    if groups is None:
        return torch.arange(tokens)
    if tuple(groups.shape) != (tokens,):
        raise ShapeError(
            f"Groups of shape {tuple(groups.shape)} came; give one per token, {tokens}."
        )
    return groups.unique(return_inverse=True)[1]


def _areas(values: Tensor, flags: Tensor) -> Tensor:
    """AUROC of all columns for all concepts, (columns, concepts)."""
    return _from_sums(_ranks(values).T @ flags.double(), flags)


def _from_sums(sums: Tensor, flags: Tensor) -> Tensor:
    hits = flags.sum(0).double()
    return (sums - hits * (hits + 1) / 2) / (hits * (len(flags) - hits))


def _ranks(values: Tensor) -> Tensor:
    # scikit-learn's roc_auc_score takes a column at a time, far too slow for all random gauges
    ranked = optional("scipy.stats", "read").rankdata(values.cpu().numpy(), axis=0)
    return torch.from_numpy(ranked).to(values.device)


def _weighted(values: Tensor, flags: Tensor, weights: Tensor) -> Tensor:
    """AUROC of one column for one concept under several weightings of the tokens, (draws,)."""
    place = values.unique(return_inverse=True)[1]  # equal values share one
    hits, others = weights * flags, weights * ~flags
    at = others.new_zeros(len(weights), int(place.max()) + 1).index_add_(1, place, others)
    below = at.cumsum(1) - at / 2  # ties count one half
    won = (hits * below[:, place]).sum(1)
    return won / (hits.sum(1) * others.sum(1))  # 0 / 0 where a class is missing


def _signed(areas: Tensor, sign: Tensor) -> Tensor:
    return torch.where(sign < 0, 1 - areas, areas)
