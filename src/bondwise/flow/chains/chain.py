"""A chain of blocks, walked with the data: what enters the layers of each, block by block."""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from torch import nn

from bondwise.flow.calibrate import Inputs
from bondwise.flow.chains.blocks import Stream, holds
from bondwise.flow.data import fitted_on
from bondwise.layers.hosts.convolution import convolves


@dataclass(frozen=True, eq=False)
class Stop:
    """A block on the way, and what its layers meet.

    Attributes:
        at: its position in the chain.
        layers: those to look at, by path.
        seen: what enters them on the tokens that are fitted on.
        unseen: the same on held-out tokens.
        entering: the batch that enters the block first: a held-out one where there is one.
    """

    at: int
    layers: Mapping[str, nn.Module]
    seen: Inputs
    unseen: Inputs
    entering: Stream


@dataclass(frozen=True, eq=False)
class Chain:
    """Blocks that run one after another, and what enters the first.

    Attributes:
        blocks: their paths, in the order in which they run.
        weights: paths of the layers in them that may change.
        source: what enters the first block, or what gives it: streams of many chains are large.
        held_out: batches that errors are measured on; the others are fitted on.
    """

    blocks: tuple[str, ...]
    weights: Sequence[str]
    source: Stream | Callable[[], Stream]
    held_out: Sequence[int]

    @property
    def stream(self) -> Stream:
        """What enters the first block."""
        return self.source if isinstance(self.source, Stream) else self.source()

    def part(self, which: Sequence[int]) -> "Chain":
        """The same with some of the batches."""
        return replace(self, source=lambda: self.stream.part(which))

    def walk(self, model: nn.Module, stops: Collection[int]) -> Iterator[Stop]:
        """Run the blocks of a model up to the last stop, and look at what enters the layers."""
        if not stops:
            return
        by_sample, stream = convolves(model), self.stream
        fitting = stream.part(fitted_on(len(stream), self.held_out))
        other = stream.part(self.held_out)
        for at, name in enumerate(self.blocks[: max(stops) + 1]):
            block = model.get_submodule(name)
            layers = {w: model.get_submodule(w) for w in self.weights if holds(name, w)}
            seen, unseen = Inputs(layers, by_sample), Inputs(layers, by_sample)
            entering = (other if self.held_out else fitting).part([0])
            stop = at in stops
            fitting = fitting.after(block, seen if stop else None)
            other = other.after(block, unseen if stop else None)
            if stop:
                yield Stop(at, layers, seen, unseen, entering)


def inside(blocks: Sequence[str], name: str) -> str:
    """The path of a weight inside its block; its own where it is in none.

    >>> inside(["layers.0", "layers.1"], "layers.1.mlp.up")
    '.mlp.up'
    """
    return next((name.removeprefix(b) for b in blocks if holds(b, name)), name)
