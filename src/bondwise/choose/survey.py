"""A look at every weight before any is changed: what each format costs it, and how much it matters.

One pass of the dense model, block by block. A weight's *sensitivity* is measured, not guessed: the
weight alone is cut, and the change of the model's output is divided by the weight's own relative
squared error, so that errors of different weights can be added up. Among convolutions the change is
not in proportion to the error, and is measured at several.
"""

from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from math import isfinite, log
from typing import cast

from torch import Tensor, nn

from bondwise.choose.candidates import EXACT, Candidate, Group, candidates, grouped
from bondwise.choose.kinds.kernels import cuts
from bondwise.choose.losses.felt import LEAST, Felt
from bondwise.choose.losses.reference import Reference, resumed
from bondwise.choose.scout import Scout
from bondwise.choose.seconds.clock import Clock
from bondwise.choose.seconds.place import Place
from bondwise.fit.whitened import whitened_split
from bondwise.flow.calibrate import Inputs
from bondwise.flow.chains.blocks import holds
from bondwise.flow.chains.chain import Chain, inside
from bondwise.flow.data import Batch, fitted_on
from bondwise.layers.hosts.convolution import convolves, geometry_of
from bondwise.layers.hosts.registry import host_of, matrix_of
from bondwise.progress import Progress

CUT = 0.6  # of its numbers a weight keeps when its sensitivity is measured
LEVELS = (0.3, 0.1, 0.03, 0.01, 0.003)  # squared errors at which a loss that is no line is measured
HEARD = 1e-3  # squared error below which a change drowns in the rounding of bfloat16
MADE = ("lowrank", "tucker2")  # formats of which a weight can be made at once


@dataclass(frozen=True)
class Survey:
    """What was found of all weights.

    Attributes:
        groups: the candidates of each group.
        sensitivity: of each weight, or its losses, by name.
        places: where each weight stands.
    """

    groups: list[list[Candidate]]
    sensitivity: dict[str, float | Felt]
    places: dict[str, Place] = field(default_factory=dict[str, Place])

    def with_rest(self, other: "Survey") -> "Survey":
        """Both surveys as one."""
        return Survey(
            self.groups + other.groups,
            self.sensitivity | other.sensitivity,
            self.places | other.places,
        )

    def timed(self, clock: Clock) -> tuple["Survey", list[str]]:
        """The survey of those candidates whose seconds a clock knows, and notes on the others.

        Raises:
            DataError: a weight was not measured.
        """
        watch = clock.on(self.places)
        groups, left = list[list[Candidate]](), dict[tuple[str, str], None]()
        for group in self.groups:
            known, others = watch.timed(group)
            groups.append(known)
            left |= dict.fromkeys((c.format, c.weight) for c in others)
        return replace(self, groups=groups), [watch.told, *watch.unmeasured(left)]


def survey(
    model: nn.Module,
    chain: Chain,
    reference: Reference | None,
    *,
    bits: int,
    every: int,
    formats: Sequence[str] = EXACT,
    scouted: Scout | None = None,
    progress: Progress,
) -> Survey:
    """Candidates and sensitivities of the weights in a chain of blocks.

    Args:
        model: the dense model; each weight is changed for a moment and put back.
        chain: its blocks, the weights to look at, and what enters the first block.
        reference: its output on the batch that comes first among those held out, or first of all
            where there are none; None measures no sensitivities.
        bits: of a stored number.
        every: measure the sensitivities of every so many blocks, and of the first and the last;
            where blocks are convolutions, or one block is all, of all of them.
        formats: those in closed form, see `candidates`.
        scouted: which networks are worth a fit beside what has a closed form.
        progress: called with ("survey", done, total).
    """
    found = Survey([], {})
    last = len(chain.blocks) - 1
    curves = _bends(model, chain)
    replays = curves and reference is not None and reference.replay is not None
    for stop in chain.walk(model, range(last + 1)):
        at = stop.at
        probed = reference if curves or at % every == 0 or at == last else None
        runs_all = probed is None or replays
        with nullcontext() if runs_all else resumed(model, chain.blocks, at, stop.entering):
            groups = grouped(stop.layers, stop.seen, stop.unseen)
            more = survey_groups(model, groups, probed, bits, formats, scouted, curves)
            found = found.with_rest(more)
        progress("survey", at + 1, last + 1)
    return replace(found, sensitivity=_spread(found.sensitivity, chain))


def _bends(model: nn.Module, chain: Chain) -> bool:
    """Whether losses may be out of proportion: among convolutions, but not in blocks of tokens."""
    if not convolves(model):
        return False
    kernels = (geometry_of(model.get_submodule(name)) is not None for name in chain.weights)
    return len(chain.blocks) == 1 or any(kernels)


def survey_groups(
    model: nn.Module,
    groups: Iterable[Group],
    reference: Reference | None,
    bits: int,
    formats: Sequence[str] = EXACT,
    scouted: Scout | None = None,
    curves: bool = False,
) -> Survey:
    """Candidates of some groups and, where there is a reference, sensitivities of their weights.

    ``curves`` asks for a loss at several errors, where it is not in proportion.
    """
    found = Survey([], {})
    for group in groups:
        options = candidates(group, bits=bits, formats=formats)
        if scouted is not None:
            options += list(scouted.more(group, options))
        found.groups.append(options)
        for name in group.weights:
            layer = model.get_submodule(name)
            found.places[name] = Place.of(layer, group.moves.get(name), group.rows)
        if reference is not None:
            found.sensitivity.update(_sensitivities(model, group, options, reference, curves))
    return found


def outside_groups(
    model: nn.Module,
    layers: Mapping[str, nn.Module],
    batches: Sequence[Batch],
    held_out: Sequence[int],
    progress: Progress,
) -> list[Group]:
    """Layers outside the blocks by the input that they share; an embedding has no metric."""
    linear = {n: layer for n, layer in layers.items() if not isinstance(layer, nn.Embedding)}
    by_sample = convolves(model)
    seen, unseen = Inputs(linear, by_sample), Inputs(linear, by_sample)
    if linear:
        seen.watch(model, [batches[k] for k in fitted_on(len(batches), held_out)], progress)
        if held_out:
            unseen.watch(model, [batches[k] for k in held_out])
    tables = [Group({n: matrix_of(layers[n])}) for n in layers if n not in linear]
    return [*grouped(linear, seen, unseen), *tables]


def _sensitivities(
    model: nn.Module,
    group: Group,
    options: Sequence[Candidate],
    reference: Reference,
    curves: bool,
) -> dict[str, float | Felt]:
    """By how much the output changes, for each relative squared error that a weight is given."""
    found: dict[str, float | Felt] = {}
    for name in group.weights:
        trials = [c for c in options if _is_trial(c, name)]
        trials = _levels(trials) if curves else _most(trials, CUT * group.weights[name].numel())
        if not trials:
            found[name] = LEAST
            continue
        points = dict[float, float]()
        for trial, weight in zip(trials, _cut_to(group, name, trials), strict=True):
            far = _distance(model, name, weight, reference, curves)
            if isfinite(far):
                points[trial.error] = far
        if points and curves:
            found[name] = Felt.of(points.items())
        for error, far in points.items():
            found.setdefault(name, max(far / error, LEAST))
    return found


def _is_trial(candidate: Candidate, name: str) -> bool:
    """Whether a candidate of a weight can be made at once."""
    made = candidate.format in MADE and candidate.network is not None
    return made and candidate.weight == name and candidate.error > 0


def _most(trials: Sequence[Candidate], room: float) -> list[Candidate]:
    """The one of most numbers in some room, unless its error is lost in what is rounded."""
    best = max((c for c in trials if c.numbers <= room), key=lambda c: c.numbers, default=None)
    if best is None:
        return []
    if best.error >= HEARD:
        return [best]
    heard = [c for c in trials if c.error >= HEARD]
    return [max(heard, key=lambda c: c.numbers) if heard else max(trials, key=lambda c: c.error)]


def _levels(trials: Sequence[Candidate]) -> list[Candidate]:
    """Those next to each of `LEVELS`, once."""
    heard = [c for c in trials if c.error >= HEARD]
    heard = heard or sorted(trials, key=lambda c: c.error)[-1:]
    near = {
        chosen.error: chosen
        for level in LEVELS
        for chosen in [min(heard, key=lambda c: abs(log(c.error / level)), default=None)]
        if chosen is not None
    }
    return list(near.values())


def _cut_to(group: Group, name: str, trials: Sequence[Candidate]) -> Iterator[Tensor]:
    """A weight as each of some candidates has it, one after another."""
    weight, nets = group.weights[name], [c.network for c in trials if c.network is not None]
    if group.moves:
        yield from cuts(weight, nets, group.moves[name], group.metric)
        return
    wide, moment = weight.double(), group.moments()[0]
    for net in nets:
        (rank,) = net.bonds.values()
        split = whitened_split(wide, moment, rank)
        yield split.left @ split.right


def _distance(
    model: nn.Module, name: str, weight: Tensor, reference: Reference, replays: bool
) -> float:
    """How far the output is when a layer has another weight."""
    replay = reference.replay if replays else None
    again = nullcontext() if replay is None else replay.before(model, name)
    with _replaced(model.get_submodule(name), weight), again:
        return reference.distance()


@contextmanager
def _replaced(layer: nn.Module, weight: Tensor) -> Generator[None]:
    """A layer with another weight, for a moment."""
    parameter = cast(Tensor, layer.weight)
    old = parameter.data
    parameter.data = host_of(layer).lay(layer, weight).to(old).contiguous()
    try:
        yield
    finally:
        parameter.data = old


def _spread(measured: Mapping[str, float | Felt], chain: Chain) -> dict[str, float | Felt]:
    """Sensitivities of all weights: that of the same weight in the nearest block measured."""
    if not measured:
        return {}
    where = {w: k for w in chain.weights for k, b in enumerate(chain.blocks) if holds(b, w)}

    found: dict[str, float | Felt] = {}
    for name in chain.weights:
        kind = inside(chain.blocks, name)
        alike = [m for m in measured if inside(chain.blocks, m) == kind] or list(measured)
        nearest = min(alike, key=lambda m: abs(where[m] - where[name]))
        found[name] = measured[nearest]
    return found
