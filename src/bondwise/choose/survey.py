"""A look at every weight before any is changed: what each format costs it, and how much it matters.

One pass of the dense model, block by block. A weight's *sensitivity* is measured, not guessed: the
weight alone is cut, and the change of the model's output is divided by the weight's own relative
squared error, so that errors of different weights can be added up.
"""

from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from math import isfinite, log
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bondwise.choose.candidates import EXACT, Candidate, Group, candidates, grouped
from bondwise.choose.kernels import cut
from bondwise.choose.scout import Scout
from bondwise.fit.whitened import whitened_split
from bondwise.flow.blocks import Products, Stream, holds
from bondwise.flow.calibrate import Inputs
from bondwise.flow.chain import Chain, inside
from bondwise.flow.data import Batch, evaluating, feed, fitted_on
from bondwise.flow.padding import tokens
from bondwise.layers.hosts.convolution import convolves
from bondwise.layers.hosts.registry import host_of, matrix_of
from bondwise.progress import Progress

CUT = 0.6  # of its numbers a weight keeps when its sensitivity is measured
FELT = 0.02  # squared error at which a convolution is cut then: kernels lose little at first
LEAST = 1e-9  # sensitivity of a weight whose cut changes nothing that can be measured
CHUNK = 256  # tokens whose distributions over a vocabulary are in memory at once


@dataclass(frozen=True)
class Survey:
    """The candidates of every group, and each weight's sensitivity by its name."""

    groups: list[list[Candidate]]
    sensitivity: dict[str, float]

    def with_rest(self, other: "Survey") -> "Survey":
        """Both surveys as one."""
        return Survey(self.groups + other.groups, self.sensitivity | other.sensitivity)


@dataclass(frozen=True, eq=False)
class Reference:
    """How far a model's output on one batch is from what it was.

    For a model with logits it is the Kullback-Leibler divergence in nats a token, for another the
    relative squared error of its first output.
    """

    model: nn.Module
    batch: Batch
    output: Tensor
    logits: bool
    products: Products

    @classmethod
    def of(cls, model: nn.Module, batch: Batch) -> "Reference | None":
        """That of a model as it is now; None where it gives nothing that can be compared."""
        parameter = next(model.parameters())
        products = Products.of(parameter.device, parameter.dtype)
        output, logits = _answer(model, batch, products)
        if output is None or not torch.isfinite(output).all():
            return None
        return cls(model, batch, output, logits, products)

    def distance(self, model: nn.Module | None = None) -> float:
        """How far the output is now, of the model or of another."""
        given, _ = _answer(model or self.model, self.batch, self.products)
        assert given is not None
        one, two = (x.reshape(-1, x.shape[-1]) for x in (given, self.output))
        if not self.logits:
            return float((one - two).float().norm() / two.float().norm().clamp(min=1e-15)) ** 2
        parts = zip(one.split(CHUNK), two.split(CHUNK), strict=True)
        return float(sum(_divergence(a.float(), b.float()) for a, b in parts)) / len(one)


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
        every: measure the sensitivities of every so many blocks, and of the first and the last.
        formats: those in closed form, see `candidates`.
        scouted: which networks are worth a fit beside what has a closed form.
        progress: called with ("survey", done, total).
    """
    found = Survey([], {})
    last = len(chain.blocks) - 1
    for stop in chain.walk(model, range(last + 1)):
        at = stop.at
        probed = reference if at % every == 0 or at == last else None
        with nullcontext() if probed is None else resumed(model, chain.blocks, at, stop.entering):
            groups = grouped(stop.layers, stop.seen, stop.unseen)
            found = found.with_rest(survey_groups(model, groups, probed, bits, formats, scouted))
        progress("survey", at + 1, last + 1)
    return Survey(found.groups, _spread(found.sensitivity, chain))


def survey_groups(
    model: nn.Module,
    groups: Iterable[Group],
    reference: Reference | None,
    bits: int,
    formats: Sequence[str] = EXACT,
    scouted: Scout | None = None,
) -> Survey:
    """Candidates of some groups and, where there is a reference, sensitivities of their weights."""
    found = Survey([], {})
    for group in groups:
        options = candidates(group, bits=bits, formats=formats)
        if scouted is not None:
            options += list(scouted.more(group, options))
        found.groups.append(options)
        if reference is not None:
            found.sensitivity.update(_sensitivities(model, group, options, reference))
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
    model: nn.Module, group: Group, options: Sequence[Candidate], reference: Reference
) -> dict[str, float]:
    """By how much the output changes, for each relative squared error that a weight is given."""
    found: dict[str, float] = {}
    for name in group.weights:
        trial = (_cut_kernel if group.moves else _cut)(name, group, options)
        if trial is None:
            found[name] = LEAST
            continue
        weight, error = trial
        with _replaced(model.get_submodule(name), weight):
            changed = reference.distance() / error
        if isfinite(changed):
            found[name] = max(changed, LEAST)
    return found


def _cut(name: str, group: Group, options: Sequence[Candidate]) -> tuple[Tensor, float] | None:
    """A weight at low rank with `CUT` of its numbers, and its error."""
    weight = group.weights[name]
    room = CUT * weight.numel()
    ranks = [c for c in options if c.weight == name and c.format == "lowrank"]
    best = max((c for c in ranks if c.numbers <= room), key=lambda c: c.numbers, default=None)
    if best is None or best.network is None or not best.error > 0:
        return None
    (rank,) = best.network.bonds.values()
    split = whitened_split(weight.double(), group.moments()[0], rank)
    return split.left @ split.right, best.error


def _cut_kernel(
    name: str, group: Group, options: Sequence[Candidate]
) -> tuple[Tensor, float] | None:
    """A convolution's weight at about `FELT`, and its error."""
    cuts = [c for c in options if c.weight == name and c.network is not None and c.error > 0]
    if not cuts:
        return None
    near = min(cuts, key=lambda c: abs(log(c.error / FELT)))
    assert near.network is not None
    weight = cut(group.weights[name], near.network, group.moves[name], group.metric)
    return weight, near.error


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


@contextmanager
def resumed(model: nn.Module, blocks: Sequence[str], at: int, stream: Stream) -> Generator[None]:
    """The model, run from the block ``at`` on: those before it hand on what is known to enter."""
    skipped = [model.get_submodule(name) for name in blocks[:at]]

    def skip(*_args: Any, **_named: Any) -> Any:
        known = stream.hidden[0].clone()  # a block may write into what it is given
        return known if stream.beside is None else (known, *stream.beside)

    with forwarding(skipped, skip):
        yield


@contextmanager
def forwarding(modules: Iterable[nn.Module], forward: Callable[..., Any]) -> Generator[None]:
    """Modules that run another function for a while; one that had its own gets it back."""
    own = {module: module.__dict__.get("forward") for module in modules}
    for module in own:
        module.forward = forward
    try:
        yield
    finally:
        for module, was in own.items():
            del module.forward
            if was is not None:
                module.forward = was


def _spread(measured: Mapping[str, float], chain: Chain) -> dict[str, float]:
    """Sensitivities of all weights: that of the same weight in the nearest block measured."""
    if not measured:
        return {}
    where = {w: k for w in chain.weights for k, b in enumerate(chain.blocks) if holds(b, w)}

    found: dict[str, float] = {}
    for name in chain.weights:
        kind = inside(chain.blocks, name)
        alike = [m for m in measured if inside(chain.blocks, m) == kind] or list(measured)
        nearest = min(alike, key=lambda m: abs(where[m] - where[name]))
        found[name] = measured[nearest]
    return found


def _answer(model: nn.Module, batch: Batch, products: Products) -> tuple[Tensor | None, bool]:
    """The model's output on a batch, without positions that hold no token; whether it is logits."""

    def run() -> tuple[Tensor | None, Any]:
        output = feed(model, batch)
        logits = getattr(output, "logits", None)
        return (_values(output) if logits is None else cast(Tensor, logits)), logits

    def usable(found: tuple[Tensor | None, Any]) -> bool:
        return found[0] is None or bool(found[0].isfinite().all())

    with torch.no_grad(), evaluating(model), _exact_head(model):
        values, logits = products(run, usable)
    mask = None if values is None else tokens(batch, values)
    if values is not None and mask is not None:
        values = values[mask]
    return values, logits is not None


def _values(output: Any) -> Tensor | None:
    """The first floating-point tensor of an output, with at least one dimension."""
    if isinstance(output, Tensor):
        return torch.atleast_1d(output) if output.is_floating_point() else None
    parts: Iterable[Any] = ()
    if isinstance(output, Mapping):
        parts = cast(Mapping[Any, Any], output).values()
    elif isinstance(output, tuple | list):
        parts = cast(Sequence[Any], output)
    return next((found for found in map(_values, parts) if found is not None), None)


@contextmanager
def _exact_head(model: nn.Module) -> Generator[None]:
    """Logits in the head's own precision: rounded to bfloat16 they differ by more than a cut."""
    find = getattr(model, "get_output_embeddings", None)
    head = None if find is None else find()
    if not isinstance(head, nn.Module):
        yield
        return
    forward = head.forward

    def exact(x: Tensor) -> Any:
        with torch.autocast(x.device.type, enabled=False):
            return forward(x.to(cast(Tensor, head.weight).dtype))

    with forwarding([head], exact):
        yield


def _divergence(ours: Tensor, theirs: Tensor) -> Tensor:
    dense = F.log_softmax(theirs, -1)
    return F.kl_div(F.log_softmax(ours, -1), dense, reduction="sum", log_target=True)
