"""Block by block: weights fitted to what the compressed blocks before give them, then refined.

Two streams run side by side: what enters the dense block, and what enters the same block once all
before it are networks. The second is what the weights are fitted on, the dense block's output is
what the whole block is refined towards (Wang et al. 2025, AA-SVD).
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import cast

import torch
from torch import Tensor, nn

from bondwise.choose.candidates import Candidate, Group, grouped
from bondwise.choose.losses.reference import Reference
from bondwise.compress.fit_group import New, fit_group, shrunk
from bondwise.compress.refine import Refined, refine
from bondwise.compress.shown.calibrated import Calibrated
from bondwise.compress.store import Weighing, restore, store
from bondwise.compress.swap import apart, with_modules
from bondwise.flow.calibrate import Inputs
from bondwise.flow.chains.blocks import Stream, capture, holds
from bondwise.flow.chains.chain import Chain, inside
from bondwise.flow.data import fitted_on
from bondwise.layers.embedding import TensorEmbedding
from bondwise.layers.module import TensorLayer
from bondwise.progress import Progress, silent

Picks = Mapping[str, Candidate]


@dataclass(frozen=True)
class Fitting:
    """How blocks are fitted.

    Attributes:
        steps: of refinement for each block; 0 for none.
        rate: its largest step.
        seed: of the order of batches, and the starts of fits that have random ones.
        dtype: of the model in the end; None for that of each weight.
    """

    steps: int
    rate: float
    seed: int
    dtype: torch.dtype | None = None


@dataclass(frozen=True)
class Fitted:
    """What was found.

    Attributes:
        modules: the new blocks and layers, by path.
        errors: of every fit, on its own tokens and on held-out ones, before refinement.
        refined: the error of every block's output before and after refinement.
        unseen: weights that no token reached, fitted to the weight alone.
    """

    modules: dict[str, nn.Module] = field(default_factory=dict[str, nn.Module])
    errors: dict[str, tuple[float, float | None]] = field(
        default_factory=dict[str, tuple[float, float | None]]
    )
    refined: dict[str, Refined] = field(default_factory=dict[str, Refined])
    unseen: list[str] = field(default_factory=list[str])

    def add(self, other: "Fitted") -> None:
        """What was found elsewhere, too."""
        self.modules.update(other.modules)
        self.errors.update(other.errors)
        self.refined.update(other.refined)
        self.unseen.extend(other.unseen)

    def note(self, group: Group, new: Mapping[str, New]) -> None:
        """The errors of a group, and that no token reached it."""
        self.errors.update({w: (each.error, each.held_out) for w, each in new.items()})
        if group.metric is None:
            fitted = (w for w in group.weights if w in new)
            self.unseen.extend(w for w in fitted if not isinstance(new[w].layer, TensorEmbedding))


def best(
    model: nn.Module,
    seen: Calibrated,
    allocations: Sequence[dict[str, Candidate]],
    reference: Reference | None,
    how: Fitting,
) -> dict[str, Candidate]:
    """The allocation whose blocks, fitted but not refined, change a held-out output least."""
    if reference is None or len(allocations) == 1 or not seen.chains:
        return allocations[0]
    quick = replace(how, steps=0)

    def distance(picks: Picks) -> float:
        done = fit_chains(model, seen.as_given(), picks, quick, silent)
        return reference.distance(with_modules(model, done.modules))

    return min(allocations, key=distance)


def fit_chains(
    model: nn.Module, seen: Calibrated, picks: Picks, how: Fitting, progress: Progress
) -> Fitted:
    """New blocks for every chain of a model, one chain after another; the model is not changed."""
    done, before = Fitted(), 0
    total = sum(len(chain.blocks) for chain in seen.chains)
    for chain in seen.chains:
        entering = None
        if done.modules:
            compressed = with_modules(model, done.modules)
            entering = capture(compressed, chain.blocks, seen.shown.every, silent)
        given = len(seen.shown.given)
        tell = partial(_told, progress, before, total)
        done.add(fit_chain(model, chain, entering or chain.stream, picks, given, how, tell))
        before += len(chain.blocks)
    return done


def _told(progress: Progress, before: int, total: int, stage: str, done: int, _total: int) -> None:
    """Progress of one chain as that of all."""
    progress(stage, before + done, total)


def fit_chain(
    teacher: nn.Module,
    chain: Chain,
    entering: Stream,
    picks: Picks,
    given: int,
    how: Fitting,
    progress: Progress,
) -> Fitted:
    """New blocks for a chain, one after another; the teacher is not changed.

    Args:
        teacher: the dense model.
        chain: its blocks, and what enters the first.
        entering: what enters the first where all before it is compressed.
        picks: what becomes of each weight.
        given: batches that the user gave; what the model drew comes after them, for refinement
            only, since its inputs are not spread as theirs are.
        how: steps, rate and seed.
        progress: called with ("fit", done, total).
    """
    found, stream = Fitted(), chain.stream
    progress("fit", 0, len(chain.blocks))
    for at, name in enumerate(chain.blocks):
        dense = teacher.get_submodule(name)
        wanted = stream.after(dense)
        mine = {w: picks[w] for w in chain.weights if w in picks and holds(name, w)}
        chosen = {w: candidate for w, candidate in mine.items() if candidate.network is not None}
        if chosen:
            job = _Block(name, dense, chosen, how)
            block, metrics = job.fitted(entering, given, chain.held_out, found)
            if how.steps:
                found.refined[name] = refine(
                    block,
                    entering.to(torch.float32),
                    wanted.hidden,
                    chain.held_out,
                    steps=how.steps,
                    rate=how.rate,
                    seed=how.seed + at,
                )
            found.modules[name] = job.stored(block, metrics)
        entering, stream = entering.after(found.modules.get(name, dense)), wanted
        progress("fit", at + 1, len(chain.blocks))
    return found


def fit_layers(
    model: nn.Module,
    groups: Iterable[Group],
    picks: Picks,
    how: Fitting,
    progress: Progress = silent,
) -> Fitted:
    """New layers for weights outside the blocks, fitted to the dense model's inputs."""
    found = Fitted()
    chosen = {w: candidate for w, candidate in picks.items() if candidate.network is not None}
    layers = {name: model.get_submodule(name) for name in chosen}
    todo = [group for group in groups if chosen.keys() & group.weights]
    for at, group in enumerate(todo):
        progress("fit", at, len(todo))
        group = shrunk(group, chosen)
        new = fit_group(group, chosen, layers, how.seed)
        found.note(group, new)
        for w, each in new.items():
            own = group.weights[w].dtype
            found.modules[w] = store(each.layer, layers[w], own, how.dtype, group.metric)
    progress("fit", len(todo), len(todo))
    return found


@dataclass(frozen=True, eq=False)
class _Block:
    """One block on its way: its networks in float32 while they are trained, then as they stay."""

    name: str
    dense: nn.Module
    picks: Picks
    how: Fitting

    def fitted(
        self, entering: Stream, given: int, held_out: Sequence[int], found: Fitted
    ) -> tuple[nn.Module, dict[str, Weighing]]:
        """The block with its networks in plain form and float32; the metric of each weight."""
        block = apart(self.dense)
        layers = {w: block.get_submodule(self._inside(w)) for w in self.picks}
        seen, unseen = Inputs(layers), Inputs(layers)
        entering.part(fitted_on(given, held_out)).after(block, seen)
        if held_out:
            entering.part(held_out).after(block, unseen)
        metrics: dict[str, Weighing] = {}
        every: dict[str, New] = {}
        for group in grouped(layers, seen, unseen):
            group = shrunk(group, self.picks)
            metrics |= dict.fromkeys(group.weights, group.metric)
            new = fit_group(group, self.picks, layers, self.how.seed)
            found.note(group, new)
            every |= new
        for w, each in every.items():
            block = self._put(block, w, each.layer)
        return block.float(), metrics

    def stored(self, block: nn.Module, metrics: Mapping[str, Weighing]) -> nn.Module:
        """The block as it is kept: networks without their gauge, everything in its old dtype."""
        for w in self.picks:
            layer = cast(TensorLayer, block.get_submodule(self._inside(w)))
            own = cast(Tensor, self.dense.get_submodule(self._inside(w)).weight).dtype
            made = store(layer, layer, own, self.how.dtype, metrics[w])
            block = self._put(block, w, made)
        restore(block, self.dense)
        return block

    def _inside(self, path: str) -> str:
        """The path of a layer in the block, by that in the model; empty for the block itself."""
        return inside([self.name], path).lstrip(".")

    def _put(self, block: nn.Module, path: str, layer: nn.Module) -> nn.Module:
        """The block with another layer at a path; the layer itself where the block is no more."""
        parent, _, last = self._inside(path).rpartition(".")
        if not last:
            return layer
        setattr(block.get_submodule(parent), last, layer)
        return block
