"""Units: modules outside all stacks of blocks that are worked on one at a time, in call order.

A residual block, the two convolutions of one level of a U-Net, a convolution whose model calls it
from a ``forward`` of its own: each is called once with a tensor and gives one, so it can be fitted
and refined alone, as a chain of one block.
"""

from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from bondwise.flow.chains.blocks import holds
from bondwise.flow.chains.calls import called_with, gives_state
from bondwise.flow.data import Batch, evaluating, feed, one_sample

MOST = 8  # weights of a unit, which are trained together; as many as a block of a transformer has
STAGE = 4  # members with weights that a `Sequential` in a stack may have and still be one block


@dataclass
class Calls:
    """One run of a model, by the paths of its modules.

    Attributes:
        order: when each was called first; what was not called is not in it.
        counts: how often.
        apart: those that always got a tensor first and gave one, so that they can run alone.
    """

    order: dict[str, int] = field(default_factory=dict[str, int])
    counts: dict[str, int] = field(default_factory=dict[str, int])
    apart: set[str] = field(default_factory=set[str])

    @classmethod
    def of(cls, model: nn.Module, batch: Batch) -> "Calls":
        """Those of a model for one sample of a batch.

        >>> model = nn.Sequential(nn.Linear(2, 3), nn.ReLU())
        >>> Calls.of(model, torch.zeros(4, 2)).order
        {'': 0, '0': 1, '1': 2}
        """
        found = cls()
        handles = [h for path, m in model.named_modules() for h in found._follow(path, m)]
        try:
            with torch.no_grad(), evaluating(model):
                feed(model, one_sample(batch))
        finally:
            for handle in handles:
                handle.remove()
        return found

    def once(self, path: str) -> bool:
        """Whether a module was called once, and can run alone."""
        return self.counts.get(path) == 1 and path in self.apart

    def _follow(self, path: str, module: nn.Module) -> Iterator[Any]:
        def before(module: nn.Module, args: Any, named: Any) -> None:
            self.order.setdefault(path, len(self.order))
            self.counts[path] = self.counts.get(path, 0) + 1
            if called_with(module, args, named) is not None:
                self.apart.add(path)

        def after(_module: nn.Module, _args: Any, output: Any) -> None:
            if not gives_state(output):
                self.apart.discard(path)

        yield module.register_forward_pre_hook(before, with_kwargs=True)
        yield module.register_forward_hook(after)


def units(
    model: nn.Module, targets: Iterable[str], calls: Calls, without: Collection[str] = ()
) -> list[str]:
    """Paths of the units that hold some targets, in call order; no unit lies in another.

    A unit is the smallest module around a target that holds another one too, at most `MOST`, and
    no more numbers beside them than they have; else one that holds the target alone; else the
    target. It is called once, with a tensor first, and gives a tensor first. A target that is
    called several times, or never, may have none.

    Args:
        model: it is only read.
        targets: paths of the modules whose weights may change.
        calls: one run of the model.
        without: paths of modules that no unit may hold, such as blocks of a stack.

    >>> class Two(nn.Module):
    ...     def __init__(self):
    ...         super().__init__()
    ...         self.one, self.two = nn.Linear(3, 3), nn.Linear(3, 3)
    ...         self.pair = nn.Sequential(nn.Linear(3, 3), nn.ReLU(), nn.Linear(3, 3))
    ...     def forward(self, x):
    ...         return self.one(self.pair(x) + self.two(x))
    >>> model = Two()
    >>> calls = Calls.of(model, torch.zeros(1, 3))
    >>> units(model, ["one", "two", "pair.0", "pair.2"], calls)
    ['pair', 'two', 'one']
    """
    names = list(targets)
    chosen = {
        unit
        for name in names
        if name in calls.order and (unit := _around(model, name, names, calls, without))
    }
    outermost = [u for u in chosen if not any(u != other and holds(other, u) for other in chosen)]
    return sorted(outermost, key=lambda unit: calls.order[unit])


def _around(
    model: nn.Module, name: str, names: Sequence[str], calls: Calls, without: Collection[str]
) -> str | None:
    """The unit of one target."""
    alone = name if calls.once(name) else None
    parts = name.split(".")
    for size in range(len(parts) - 1, 0, -1):
        path = ".".join(parts[:size])
        inside = [other for other in names if holds(path, other)]
        if len(inside) > MOST or any(holds(path, block) for block in without):
            break
        if not calls.once(path) or not _mostly(model, path, inside):
            continue
        if len(inside) > 1:
            return path
        alone = path if alone in (None, name) else alone
    return alone


def _mostly(model: nn.Module, path: str, inside: Iterable[str]) -> bool:
    """Whether at least half of a module's numbers are those of some layers in it."""
    numbers = sum(p.numel() for p in model.get_submodule(path).parameters())
    own = (p for name in inside for p in model.get_submodule(name).parameters())
    return 2 * sum(p.numel() for p in own) >= numbers


def is_stack(model: nn.Module, blocks: Sequence[str], targets: Collection[str]) -> bool:
    """Whether the members of a stack are blocks: one of a few layers is a unit, or in one.

    >>> model = nn.Sequential(nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 2)))
    >>> is_stack(model, ["0.0", "0.1", "0.2"], ["0.0", "0.2"])
    False
    """
    parent = blocks[0].rpartition(".")[0]
    in_a_row = isinstance(model.get_submodule(parent), nn.Sequential)
    return not parent or not in_a_row or _is_stage(blocks, targets)


def unfolded(model: nn.Module, blocks: Sequence[str], targets: Collection[str]) -> tuple[str, ...]:
    """The blocks of a stack, with those that are stages of blocks themselves taken apart.

    A stage is a ``Sequential`` whose own members have targets in them, or with more than `STAGE`
    members that are targets: it runs them one after another, so they are blocks of the same chain.

    >>> block = nn.Sequential(nn.Linear(2, 2), nn.ReLU())
    >>> model = nn.Sequential(nn.Linear(2, 2), nn.Sequential(block, nn.Sequential(*block)))
    >>> unfolded(model, ["0", "1"], ["0", "1.0.0", "1.1.0"])
    ('0', '1.0', '1.1')
    """
    found: list[str] = []
    for block in blocks:
        module = model.get_submodule(block)
        members = [f"{block}.{name}" for name, _ in module.named_children()]
        if type(module) is nn.Sequential and _is_stage(members, targets):
            found += unfolded(model, members, targets)
        else:
            found.append(block)
    return tuple(found)


def _is_stage(members: Sequence[str], targets: Collection[str]) -> bool:
    own = [m for m in members if any(holds(m, name) for name in targets)]
    return len(own) > STAGE or (len(own) > 1 and not all(m in targets for m in own))
