"""How much each value of a bond matters: a ladder from cheap to true, and how well it predicts."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from bondwise.compute.plan import plan
from bondwise.compute.run import apply
from bondwise.errors import DataError, optional
from bondwise.flow.data import Batch, evaluating, feed
from bondwise.flow.forms.door import batches as opened_batches
from bondwise.progress import Progress, silent
from bondwise.read.bonds import Bond
from bondwise.read.contributions import gram
from bondwise.read.edits import Edit, edited, zero
from bondwise.read.schmidt import term_norms

RUNGS = ("schmidt", "output", "gradient")
Loss = Callable[[nn.Module, Batch], Tensor]
FEWEST = 8  # measured values, below which no agreement is told


@dataclass(frozen=True, eq=False)
class Importance:
    """The rungs of the ladder for one bond; each is (rank,), for leaving that value out.

    Attributes:
        bond: in the gauge whose values are meant.
        schmidt: ``||W_b||``, the length of the term; in the canonical gauge its Schmidt value.
        output: ``E ||y_b||^2 / E ||y||^2``, exact over the inputs seen.
        gradient: by how much the loss would rise, to first order: ``-E <dL/dy, y_b>``.
        measured: by how much it rose; NaN where it was not measured.
    """

    bond: Bond
    schmidt: Tensor = field(repr=False)
    output: Tensor = field(repr=False)
    gradient: Tensor = field(repr=False)
    measured: Tensor = field(repr=False)


@dataclass(frozen=True)
class Agreement:
    """How well each rung orders the measured changes of loss.

    Attributes:
        rank_correlation: Spearman's, of each rung's size with the size of the measured change.
        measured: how many values were measured.
    """

    rank_correlation: Mapping[str, float]
    measured: int


def importance(
    model: nn.Module,
    bonds: Sequence[Bond],
    batches: Any,
    moments: Mapping[str, Tensor],
    *,
    tokenizer: Any = None,
    measure: int = 64,
    loss: Loss | None = None,
    seed: int = 0,
    progress: Progress = silent,
) -> tuple[list[Importance], Agreement]:
    """All rungs for all values of some bonds; the last for a drawn sample of them.

    Args:
        model: a tensorized model.
        bonds: in the gauges whose values are meant.
        batches: on which the loss is taken, or data in any form (`bondwise.flow.forms.door`).
        moments: ``E[x x^T]`` of the layers' inputs (`bondwise.read.features.input_moments`).
        tokenizer: for text, chats and padding.
        measure: how many values are left out one by one to see the loss itself, drawn evenly
            from all; each takes a pass over the batches.
        loss: of a model on a batch, a mean; None for the cross entropy of the next token.
        seed: which are measured.
        progress: is told a stage, what is done and what there is.

    Raises:
        DataError: no batch, or a loss that is not finite.

    >>> from bondwise import TensorLinear, lowrank
    >>> from bondwise.read import bond
    >>> from bondwise.read import input_moments
    >>> model = nn.Sequential(TensorLinear(lowrank(6, 8, 4)))
    >>> x = [torch.randn(64, 8)]
    >>> square = lambda m, b: m(b).square().sum(1).mean()
    >>> own, how = importance(model, [bond(model, "0")], x, input_moments(model, ["0"], x),
    ...                       loss=square)
    >>> bool(own[0].measured.isfinite().all()), how.measured
    (True, 4)
    """
    batches = opened_batches(batches, tokenizer, count=None)
    told = loss or next_token_loss
    slopes = gradients(model, bonds, batches, told, progress)
    rungs = [_cheap(bond, moments[bond.layer]) for bond in bonds]
    measured = [torch.full((bond.size,), float("nan"), dtype=torch.float64) for bond in bonds]
    every = [(k, b) for k, bond in enumerate(bonds) for b in range(bond.size)]
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randperm(len(every), generator=generator)[:measure].tolist()
    with torch.no_grad(), evaluating(model):
        whole = _mean(model, batches, told)
        for done, (k, b) in enumerate(every[n] for n in sorted(drawn)):
            progress("measure", done, len(drawn))
            with edited(model, zero(bonds[k], [b])):
                measured[k][b] = _mean(model, batches, told) - whole
        progress("measure", len(drawn), len(drawn))
    found = [
        Importance(bond, *cheap, slope, seen)
        for bond, cheap, slope, seen in zip(bonds, rungs, slopes, measured, strict=True)
    ]
    return found, agreement(found)


def gradients(
    model: nn.Module,
    bonds: Sequence[Bond],
    batches: Sequence[Batch],
    loss: Loss,
    progress: Progress = silent,
) -> list[Tensor]:
    """By how much the loss would rise if each value was left out, to first order.

    Each value gets a factor m_b, 1 as it is and 0 where it is left out; told is ``-dL/dm_b``. Where
    a layer has several bonds each is seen alone, the others as they are.
    """
    masks = [
        torch.ones(b.size, requires_grad=True, device=b.cores[0].device, dtype=b.cores[0].dtype)
        for b in bonds
    ]
    edits = [_masked(bond, mask) for bond, mask in zip(bonds, masks, strict=True)]
    total = [torch.zeros(bond.size, dtype=torch.float64) for bond in bonds]
    frozen = {p: p.requires_grad for p in model.parameters()}
    try:
        for p in frozen:
            p.requires_grad_(False)
        with torch.enable_grad(), evaluating(model), edited(model, *edits):
            for done, batch in enumerate(batches):
                progress("gradients", done, len(batches))
                value = _finite(loss(model, batch))
                slopes = torch.autograd.grad(value, masks, materialize_grads=True)
                for own, slope in zip(total, slopes, strict=True):
                    own -= slope.double().cpu() / len(batches)
    finally:
        for p, was in frozen.items():
            p.requires_grad_(was)
    progress("gradients", len(batches), len(batches))
    return total


def agreement(found: Sequence[Importance]) -> Agreement:
    """Spearman's rank correlation (1904) of each rung with the measured changes, over all bonds.

    0 where one side is all alike.

    Args:
        found: as `importance` gives it.

    Raises:
        MissingExtraError: scipy is not installed.
    """
    seen = torch.cat([own.measured for own in found])
    known = seen.isfinite()
    count = int(known.sum())
    if count < FEWEST:
        return Agreement({}, count)
    sizes = {rung: torch.cat([getattr(own, rung) for own in found])[known].abs() for rung in RUNGS}
    true = seen[known].abs()
    return Agreement({rung: _spearman(size, true) for rung, size in sizes.items()}, count)


def _spearman(one: Tensor, two: Tensor) -> float:
    if one.unique().numel() == 1 or two.unique().numel() == 1:
        return 0.0  # not defined
    return float(optional("scipy.stats", "read").spearmanr(one.cpu(), two.cpu()).statistic)


def next_token_loss(model: nn.Module, batch: Batch) -> Tensor:
    """The mean cross entropy of each next token, in nats.

    Raises:
        DataError: the model gives no logits.
    """
    out: Any = feed(model, batch)
    logits = getattr(out, "logits", out)
    ids = batch if isinstance(batch, Tensor) else batch.get("input_ids")
    if not isinstance(logits, Tensor) or ids is None or ids.is_floating_point():
        raise DataError(
            f"{type(model).__name__} gives no logits of next tokens for this data; add loss=.."
        )
    ahead = logits[:, :-1].flatten(0, 1).float()
    return nn.functional.cross_entropy(ahead, ids[:, 1:].flatten().to(ahead.device))


def _cheap(bond: Bond, moments: Tensor) -> tuple[Tensor, Tensor]:
    G = gram(bond, moments)
    norms = term_norms(bond.network, bond.cores, bond.name)
    return norms.cpu(), (G.diagonal().clamp_min(0) / G.sum().clamp_min(1e-300)).cpu()


def _masked(bond: Bond, mask: Tensor) -> Edit:
    """A factor on each value of a bond, all of them one for now; outputs stay as they are."""
    net = bond.network
    first = net.places[bond.name][0]
    axis = net.names[first].index(bond.name)
    shape = [-1 if k == axis else 1 for k in range(len(net.names[first]))]

    def change(bond: Bond, x: Tensor) -> Tensor:
        flat = x.reshape(-1, x.shape[-1]).to(mask.dtype)
        cores = list(bond.cores)
        cores[first] = cores[first] * (mask - 1).reshape(shape)  # zero now, with a slope
        found = apply(plan(net, batch=max(1, len(flat))), cores, flat)
        return found.reshape(*x.shape[:-1], -1)

    return Edit(bond, tuple(range(bond.size)), change, "masked")


def _mean(model: nn.Module, batches: Sequence[Batch], loss: Loss) -> float:
    return sum(float(_finite(loss(model, batch))) for batch in batches) / len(batches)


def _finite(value: Tensor) -> Tensor:
    if not bool(value.isfinite()):
        raise DataError(
            f"A loss of {float(value.detach())} came; give a model and data whose loss is finite."
        )
    return value
