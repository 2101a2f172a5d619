"""What the model is shown, and what then enters its blocks and the layers outside them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from torch import Tensor, nn

from bondwise.choose.candidates import Group
from bondwise.choose.survey import outside_groups
from bondwise.choose.table import Line
from bondwise.compress.recipe import Recipe
from bondwise.compress.shown.continuations import continuations
from bondwise.flow.chains.blocks import chains, holds
from bondwise.flow.chains.chain import Chain
from bondwise.flow.chains.streams import Streams
from bondwise.flow.chains.units import Calls, is_stack, unfolded, units
from bondwise.flow.data import Batch, checked, fitted_on, is_vectors, part, samples
from bondwise.flow.forms.door import Texts, opened
from bondwise.flow.text import fitting
from bondwise.progress import Progress

HELD_OUT = 8  # one batch in so many is measured on and never fitted on
ROOM = 2**29  # bytes of what enters chains that are kept from one look to the next
COMPARED = 2  # samples of a batch that a whole model's output is compared on
SAMPLES = 32  # that a model with convolutions is compared on at most
NUMBERS = 2**20  # of images and the like that it is compared on, if those are more samples


@dataclass(frozen=True, eq=False)
class Shown:
    """What the model is shown.

    Attributes:
        given: the user's batches, those held out cut small.
        held_out: which of them are held out; none where a sample is all that came.
        drawn: batches that the model drew itself.
    """

    given: Sequence[Batch]
    held_out: Sequence[int]
    drawn: Sequence[Batch] = ()

    @property
    def every(self) -> list[Batch]:
        """Those given, then those drawn."""
        return [*self.given, *self.drawn]

    @property
    def compared(self) -> Batch:
        """The batch that outputs of whole models are compared on."""
        return self.given[self.held_out[0] if self.held_out else 0]

    @property
    def first(self) -> Batch:
        """The first batch, or as much of it as has outputs that are small enough to be kept."""
        return _small(self.given[0])[0]

    def with_drawn(self, model: nn.Module, times: int, seed: int, progress: Progress) -> "Shown":
        """The same, and what the model draws from what is fitted on."""
        fitted = [self.given[k] for k in fitted_on(len(self.given), self.held_out)]
        return replace(self, drawn=continuations(model, fitted, times, seed, progress))


@dataclass(frozen=True, eq=False)
class Calibrated:
    """A model's chains of blocks with what enters them, and the groups of weights outside."""

    shown: Shown
    chains: Sequence[Chain]
    outside: Sequence[Group]

    def as_given(self) -> "Calibrated":
        """The same without what the model drew itself."""
        given = range(len(self.shown.given))
        short = [chain.part(given) for chain in self.chains] if self.shown.drawn else self.chains
        return replace(self, shown=replace(self.shown, drawn=()), chains=short)


def listed_batches(
    model: nn.Module, recipe: Recipe, data: Any, tokenizer: Any
) -> tuple[list[Batch], list[str]]:
    """The batches that data of any kind holds, and a note where windows had to be shorter.

    Raises:
        DataError: data that cannot be used, or that the model cannot run.
    """
    length, notes = fitting(model, recipe.length), list[str]()
    found = opened(data, tokenizer, count=recipe.windows, length=length, seed=recipe.seed)
    if isinstance(found, Texts):
        found = found.batches(tokenizer, recipe.windows, length, recipe.seed)
        if length < recipe.length:
            notes = [f"windows of {length} tokens were shown: the model has no more positions"]
    return [_normal(batch) for batch in checked(model, found)], notes


def held_apart(batches: Sequence[Batch], most: int | None = None) -> Shown:
    """The batches, one in `HELD_OUT` of them held out, or a part of the last one.

    Args:
        batches: what the user gave.
        most: samples of a batch that is held out.
    """
    shown, count = list(batches), len(batches) // HELD_OUT or int(len(batches) > 2)
    if not count and samples(batches[-1]) > 1:
        *shown, last = batches
        size = samples(last)
        cut = size - max(1, size // HELD_OUT)
        shown += [part(last, 0, cut), part(last, cut, size)]
        count = 1
    start = len(shown) - count
    small = [piece for batch in shown[start:] for piece in _small(batch, most)]
    return Shown([*shown[:start], *small], range(start, start + len(small)))


def calibrate(
    model: nn.Module, lines: Mapping[str, Line], shown: Shown, progress: Progress
) -> Calibrated:
    """Run the model on what it is shown, and keep what enters the weights of some lines."""
    plain = [
        name
        for name, line in lines.items()
        if not isinstance(model.get_submodule(name), nn.Embedding) and not line.weight.aliases
    ]
    streams = Streams(model, shown.every, ROOM, progress)
    calls = Calls.of(model, shown.given[0])
    found = _chains(model, plain, calls, streams)
    while not streams.take(found):
        found = _chains(model, plain, calls, streams)
    made = [
        Chain(
            blocks,
            [n for n in plain if any(holds(block, n) for block in blocks)],
            partial(streams.of, blocks),
            shown.held_out,
        )
        for blocks in found
    ]
    inside = {name for chain in made for name in chain.weights}
    rest = {name: model.get_submodule(name) for name in lines if name not in inside}
    outside = outside_groups(model, rest, shown.given, shown.held_out, progress)
    return Calibrated(shown, made, outside)


def _chains(
    model: nn.Module, plain: Sequence[str], calls: Calls, streams: Streams
) -> list[tuple[str, ...]]:
    """Stacks of blocks, and units of what is in none, in call order."""

    def runs(blocks: tuple[str, ...]) -> bool:
        return is_stack(model, blocks, plain) and streams.runs(unfolded(model, blocks, plain))

    found = [unfolded(model, blocks, plain) for blocks in chains(model, plain, runs)]
    taken = [block for blocks in found for block in blocks]
    rest = [n for n in plain if not any(holds(block, n) for block in taken)]
    found += [(u,) for u in units(model, rest, calls, taken) if streams.runs((u,))]
    return sorted(found, key=lambda blocks: calls.order.get(blocks[0], len(calls.order)))


def _normal(batch: Batch) -> Batch:
    """A batch through which gradients can be taken: none made under `torch.inference_mode`."""
    if isinstance(batch, Tensor):
        return batch.clone() if batch.is_inference() else batch
    return {n: v.clone() if isinstance(v, Tensor) and v.is_inference() else v
            for n, v in batch.items()}  # fmt: skip


def _small(batch: Batch, most: int | None = None) -> list[Batch]:
    """A batch in parts whose outputs are small enough to be kept: logits are wide."""
    size, many = samples(batch), COMPARED
    if isinstance(batch, Tensor) and batch.is_floating_point() and batch.numel():
        many = max(COMPARED, NUMBERS // batch[0].numel())
    if is_vectors(batch):
        many = size
    many = min(many, most or many)
    if size <= many:
        return [batch]
    return [part(batch, k, min(k + many, size)) for k in range(0, size, many)]
