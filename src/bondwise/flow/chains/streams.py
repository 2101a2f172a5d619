"""What enters many chains of blocks, by one run of the model for each batch."""

from collections.abc import Iterable, Sequence

import torch
from torch import nn

from bondwise.flow.chains.blocks import Entered, Growing, Stream, capture, entered, holds
from bondwise.flow.data import Batch, evaluating
from bondwise.progress import Progress, silent

Blocks = tuple[str, ...]


class Streams:
    """What enters the first block of each chain: kept where there is room, or captured again.

    Args:
        model: it is only run.
        batches: what it is shown.
        room: bytes that are kept, of all chains together; those that come first go first.
        progress: called with ("calibrate", done, total).
    """

    def __init__(
        self, model: nn.Module, batches: Sequence[Batch], room: int, progress: Progress
    ) -> None:
        self.model, self.batches, self.room, self.progress = model, batches, room, progress
        self._kept = dict[Blocks, Stream]()
        self._first = dict[Blocks, Entered | None]()
        self._taken, self._refused = set[Blocks](), set[Blocks]()

    def runs(self, blocks: Blocks) -> bool:
        """Whether blocks run in a row on the first batch and share no parameter with others.

        A block alone is believed to run; `take` finds out.
        """
        if blocks in self._refused or _tied(self.model, blocks):
            return False
        if len(blocks) == 1 or blocks in self._taken:
            return True
        if blocks not in self._first:
            chain = Growing.of(self.model, blocks)
            with torch.no_grad(), evaluating(self.model):
                found = entered(self.model, [chain.modules], self.batches[0], check=True)
            (self._first[blocks],) = found
        return self._first[blocks] is not None

    def take(self, chains: Iterable[Blocks]) -> bool:
        """Look at what enters some chains; whether all of them run on every batch.

        Raises:
            DataError: what enters is not finite.
        """
        new = [blocks for blocks in chains if blocks not in self._taken]
        growing = [Growing.of(self.model, blocks) for blocks in new]
        if growing:
            with torch.no_grad(), evaluating(self.model):
                growing = self._grown(growing)
        run = {tuple(each.blocks): each for each in growing}
        self._taken |= set(run)
        self._kept |= {blocks: each.stream() for blocks, each in run.items() if each.keeps}
        self._refused |= set(new) - set(run)
        return len(run) == len(new)

    def of(self, blocks: Blocks) -> Stream:
        """What enters blocks that run."""
        found = self._kept.get(blocks) or capture(self.model, blocks, self.batches, silent)
        assert found is not None
        return found

    def _grown(self, growing: list[Growing]) -> list[Growing]:
        """With what enters on every batch; without those that a batch does not reach."""
        for k, batch in enumerate(self.batches):
            known = self._first if k == 0 else {}
            rest = [each for each in growing if tuple(each.blocks) not in known]
            found = iter(entered(self.model, [each.modules for each in rest], batch, check=False)
                         if rest else [])  # fmt: skip
            reached = list[Growing]()
            for each in growing:
                blocks = tuple(each.blocks)
                what = self._first.pop(blocks) if blocks in known else next(found)
                if what is not None:
                    each.add(batch, what)
                    reached.append(each)
            growing = reached
            self._make_room(growing)
            self.progress("calibrate", k + 1, len(self.batches))
        return growing

    def _make_room(self, growing: Iterable[Growing]) -> None:
        """Forget the last chains, where all together are too large."""
        left = self.room - sum(stream.bytes for stream in self._kept.values())
        for each in growing:
            if each.bytes > left:
                each.forget()
            left -= each.bytes


def _tied(model: nn.Module, blocks: Sequence[str]) -> bool:
    """Whether a parameter of a block is used elsewhere too, so that blocks cannot be copied."""
    paths: dict[int, list[str]] = {}
    for path, parameter in model.named_parameters(remove_duplicate=False):
        paths.setdefault(id(parameter), []).append(path)
    return any(
        len(places) > 1 and any(holds(block, p) for p in places for block in blocks)
        for places in paths.values()
    )
