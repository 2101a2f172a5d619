"""A block of networks, refined until it gives what the dense block gave: cores and norms together.

After its weights are fitted one by one, a block still adds up their errors and passes on those of
the blocks before it. Some steps of Adam on all that the block stores take the most of both away
(Wang et al. 2025, AA-SVD; Frantar and Alistarh 2022 for one weight at a time):

    min  E ||block(x~) - y||^2 / ||y||^2    x~ from the compressed blocks before, y the teacher's

Every token weighs alike: a few of them are hundreds of times longer than the others. The positions
of an image are not like that, and many of them are all but zero (behind a ReLU, in the dark): there
every number weighs alike, as in the metric that the weights are fitted in.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from math import isfinite

import torch
from torch import Tensor, nn

from bondwise.flow.chains.blocks import Products, Stream
from bondwise.flow.chains.calls import is_image
from bondwise.flow.data import fitted_on
from bondwise.flow.padding import matched
from bondwise.train.schedule import scheduled

TINY = 1e-6  # of the mean squared length: tokens shorter than that would weigh too much


@dataclass(frozen=True)
class Refined:
    """Relative squared error of a block's output on held-out tokens, before and after.

    Attributes:
        before: as it came.
        after: as it is left; never more.
    """

    before: float
    after: float


def refine(
    block: nn.Module,
    inputs: Stream,
    wanted: Sequence[Tensor],
    held_out: Sequence[int] = (),
    *,
    steps: int = 40,
    rate: float = 1e-3,
    seed: int = 0,
) -> Refined:
    """Train the parameters of a block, in float32, towards the outputs that are wanted.

    The rate falls as a cosine after a short warm-up. Where the held-out batches are no better
    afterwards, the block is left as it was; so is one whose loss is not finite.

    Args:
        block: its parameters are changed in place.
        inputs: what enters it, batch by batch.
        wanted: the teacher's output for each batch.
        held_out: batches that are only measured; without them all are measured.
        steps: of Adam, one batch each.
        rate: the largest step.
        seed: the order of the batches.

    >>> _ = torch.manual_seed(0)
    >>> x, layer = torch.randn(64, 8), nn.Linear(8, 8)
    >>> inputs = Stream((x,), (((), {}),), (None,))
    >>> found = refine(layer, inputs, [x], steps=200, rate=0.05)
    >>> found.after < 0.1 * found.before
    True
    """
    goal = _Goal(block, inputs, wanted)
    full = {k for k, y in enumerate(wanted) if y.numel()}  # an expert may get no rows
    fitted = [k for k in fitted_on(len(inputs), held_out) if k in full]
    measured = [k for k in held_out if k in full] or fitted
    before = goal.measure(measured)
    parameters = [p for p in block.parameters() if p.is_floating_point()]
    if not steps or not fitted or not parameters or not before > 0:
        return Refined(before, before)
    kept = [p.detach().clone() for p in parameters]
    asked = [p.requires_grad for p in parameters]
    for p in parameters:
        p.requires_grad_(True)
    with torch.enable_grad():
        _train(goal, parameters, rate, _rounds(fitted, seed), steps)
    for p, grad in zip(parameters, asked, strict=True):
        p.grad = None
        p.requires_grad_(grad)
    after = goal.measure(measured)
    if not after < before:
        with torch.no_grad():
            for p, old in zip(parameters, kept, strict=True):
                p.copy_(old)
        after = before
    return Refined(before, after)


class _Goal:
    """The weighted error of one block, batch by batch."""

    def __init__(self, block: nn.Module, inputs: Stream, wanted: Sequence[Tensor]) -> None:
        self.block, self.inputs, self.wanted = block, inputs, wanted
        means = [float(y.float().pow(2).mean()) for y in wanted if y.numel()]
        self.mean = sum(m for m in means if isfinite(m)) / max(1, len(means))
        self.products = Products.of(inputs.hidden[0].device, inputs.hidden[0].dtype)
        self.tiny = TINY * self.mean * wanted[0].shape[-1] or TINY
        self.is_image = is_image(block, wanted[0])

    def loss(self, batch: int) -> Tensor:
        """Mean over the tokens of ``||y~ - y||^2 / ||y||^2``; over all numbers of an image."""
        y = self.wanted[batch].float()
        given = self.products(
            lambda: self.inputs.run(self.block, batch), lambda found: bool(found.isfinite().all())
        )
        off = (given.float() - y).pow(2)
        if self.is_image:
            return off.mean() / (self.mean or TINY)
        off = off.sum(-1) / (y.pow(2).sum(-1) + self.tiny)
        mask = self._mask(batch, y)
        return off.mean() if mask is None else off[mask].mean()

    def _mask(self, batch: int, y: Tensor) -> Tensor | None:
        """Which rows of the output are tokens: those of the state, where it has as many."""
        mask = self.inputs.masks[batch]
        if mask is None or mask.shape == y.shape[:-1] or not self.inputs.padding:
            return mask
        found, _ = matched(self.inputs.padding[batch], tuple(y.shape))
        return None if found is None else found.to(y.device)

    @torch.no_grad()
    def measure(self, batches: Iterable[int]) -> float:
        """The mean error over some batches."""
        losses = [float(self.loss(batch)) for batch in batches]
        return sum(losses) / len(losses) if losses else 0.0


def _train(
    goal: _Goal, parameters: Sequence[Tensor], rate: float, order: Iterator[int], steps: int
) -> None:
    """All steps, or those before a loss that is not finite."""
    warm = max(1, min(5, steps // 4))
    optimizer = torch.optim.Adam(parameters, betas=(0.9, 0.95))
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = scheduled(rate, step, steps, warm)
        optimizer.zero_grad()
        loss = goal.loss(next(order))
        if not torch.isfinite(loss):
            return
        loss.backward()  # pyright: ignore[reportUnknownMemberType]
        optimizer.step()  # pyright: ignore[reportUnknownMemberType]


def _rounds(batches: Sequence[int], seed: int) -> Iterator[int]:
    """The batches again and again, each time in another order."""
    draw = torch.Generator().manual_seed(seed)
    while True:
        for k in torch.randperm(len(batches), generator=draw).tolist():
            yield batches[k]
