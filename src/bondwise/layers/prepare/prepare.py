"""Make a model fast on this machine: measure how its layers can run, and keep what is fastest."""

import time
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import Tensor, nn
from torch.nn.utils.parametrize import is_parametrized

from bondwise.compute.fast.ready import Ready, bytes_beside
from bondwise.errors import BudgetError, as_whole
from bondwise.layers.embedding import TensorEmbedding
from bondwise.layers.linear import TensorLinear
from bondwise.layers.module import TensorLayer, check_module
from bondwise.layers.prepare.contest import DENSE, Contest, decide, made_again, windows
from bondwise.layers.prepare.formats import met_last, met_so, settle
from bondwise.layers.prepare.joins import join
from bondwise.layers.prepare.measurement import Measurement, measured
from bondwise.layers.prepare.measurements import Measurements
from bondwise.layers.prepare.met import meet
from bondwise.layers.prepare.result import Choice, Prepared
from bondwise.layers.prepare.room import Bundle, Call, bundles, fitting
from bondwise.layers.serve.served import Served
from bondwise.layers.serve.terms import BUILT

Progress = Callable[[str, int, int], None]


@dataclass(eq=False)
class Subject:
    """Layers of one kind: equal terms, dtype and calls.

    Attributes:
        layers: by path.
        contests: of the first of them, by call.
    """

    layers: dict[str, TensorLayer]
    contests: dict[Call, Contest]

    @property
    def first(self) -> TensorLayer:
        """The one that is measured."""
        return next(iter(self.layers.values()))


def prepare(
    model: Any,
    example: Any = None,
    rows: Any = (1, 256),
    room: Any = None,
    *,
    file: Any = None,
    progress: Progress | None = None,
) -> Prepared:
    """Make the layers of a model fast on this machine, for serving.

    For each distinct layer, number of rows and dtype it measures how the layer can run: orders of
    contraction, layouts, so many rows at a time, the weight made whole, the layer as built. It
    keeps the fastest that fits in ``room``, its weights laid out beforehand. Linear layers that
    meet one input (q, k, v) run as one product where that is faster. The parameters stay the truth:
    what is kept is in no state dict, copy or pickle, and goes with ``train()``, loading, ``to()``
    and assignment of a parameter; gradients go through the layer as built. **After writing into
    parameters in place by ways that torch does not count (``.data``), prepare again.**

    Args:
        model: any, with layers of bondwise; it is changed in place.
        example: an input of the model (a tensor, a tuple of arguments or a dict of named ones):
            convolutions take their sizes from it. None: what a Hugging Face model says it takes.
        rows: for how many rows at a time linear layers and embeddings are prepared, whole numbers:
            tokens that are written one by one, and read at once.
        room: bytes beside the parameters, for all layers together; None: each may take what its
            dense weight takes. 0: nothing is kept, and only what needs no memory is chosen.
        file: where the measurements are written, for ``unit="seconds"``; they join what is there.
        progress: called with a stage, how much of it is done, and how much there is.

    Returns:
        What was chosen for each layer, with seconds as built, dense and prepared; printed, a table.

    Raises:
        SelectionError: it is no model.
        BudgetError: rows that are not whole numbers from 1 on, or a room below 0.
        DataError: the model does not run on the example, or the file cannot be written.

    >>> import bondwise as bw
    >>> model = nn.Sequential(bw.TensorLinear(bw.lowrank(64, 64, 8)))
    >>> made = bw.prepare(model, rows=(1, 16))
    >>> [choice.rows for choice in made], bw.unprepare(model)
    ([1, 16], 1)
    """
    start = time.perf_counter()
    counts, room = _checked(model, rows, room)
    if file is not None:
        _here(model, ()).room(file)  # before what takes time
    layers = {path: own for path, own in model.named_modules() if isinstance(own, TensorLayer)}
    met = meet(model, layers, example)
    unprepare(model)
    subjects, skipped = _subjects(layers, met.inputs, counts)
    _measure(subjects, progress or (lambda *_: None))
    skipped |= _without_kernels(subjects)
    subjects = [own for own in subjects if own.contests]
    offers = [partial(_serve, own, room) for own in _formats(subjects, met.inputs)]
    choices = settle(model, example, layers, offers)
    if file is not None:
        _here(model, measured(layers, choices)).write(file)
    left = None if room is None else room - _beside(layers.values())
    linear = {path: own for path, own in layers.items() if isinstance(own, TensorLinear)}
    choices = join(linear, met.groups, choices, left)
    order = {path: at for at, path in enumerate(layers)}
    choices.sort(key=lambda c: (order[c.name], c.rows))
    return Prepared(tuple(choices), skipped, time.perf_counter() - start, _beside(layers.values()))


def unprepare(model: Any) -> int:
    """Let all layers of a model run as built again, and give back what `prepare` kept.

    Returns:
        How many layers were prepared.

    Raises:
        SelectionError: it is no model.
    """
    check_module(model)
    served = [m for m in model.modules() if isinstance(m, TensorLayer) and m.served is not None]
    for layer in served:
        layer.served = None
    return len(served)


def _here(model: nn.Module, entries: Iterable[Measurement]) -> Measurements:
    device = next((p.device for p in model.parameters()), "cpu")
    return Measurements.here(entries, device)


def _beside(layers: Iterable[TensorLayer]) -> int:
    """Bytes that prepared layers keep beside their parameters."""
    own = [layer for layer in layers if layer.served is not None]
    kept = [t for layer in own if layer.served is not None for t in layer.served.kept()]
    return bytes_beside(kept, (p for layer in own for p in layer.parameters()))


def _checked(model: object, rows: Any, room: Any) -> tuple[list[int], int | None]:
    check_module(model)
    several = isinstance(rows, list | tuple | range | set | frozenset)
    given = [as_whole(n) for n in (rows if several else (rows,))]
    counts = sorted({n for n in given if n is not None and n > 0})
    if not counts or len(counts) < len(set(given)):
        raise BudgetError(
            f"rows={rows!r} came; write whole numbers from 1 on, such as rows=(1, 256)."
        )
    most = None if room is None else as_whole(room)
    if room is not None and (most is None or most < 0):
        raise BudgetError(f"room={room!r} came; write a whole number of bytes from 0 on, or None.")
    return counts, most


def _subjects(
    layers: Mapping[str, TensorLayer], met: Mapping[str, list[Tensor]], rows: Sequence[int]
) -> tuple[list[Subject], dict[str, str]]:
    """Layers that are equal together, each with its contests; and why others have none."""
    found: dict[Hashable, Subject] = {}
    skipped: dict[str, str] = {}
    shared: dict[Hashable, Tensor] = {}
    for path, layer in layers.items():
        if reason := _unready(layer):
            skipped[path] = reason
            continue
        inputs = _samples(layer, rows, met.get(path, []))
        if not inputs:
            skipped[path] = "the example is empty" if path in met else "give an example"
            continue
        inputs = [shared.setdefault((x.shape, x.stride(), x.dtype, x.device), x) for x in inputs]
        key = (
            type(layer),
            str(layer.spec()),
            layer.like.dtype,
            layer.like.device,
            tuple((tuple(x.shape), x.stride()) for x in inputs),
        )
        if key in found:
            found[key].layers[path] = layer
            continue
        own = list(layer.parameters())
        contests = {layer.call(x): _contest(layer, x, own) for x in inputs}
        found[key] = Subject({path: layer}, contests)
    return list(found.values()), skipped


def _unready(layer: TensorLayer) -> str:
    """Why a layer cannot be prepared; nothing where it can."""
    if layer.like.is_meta or not layer.placed:
        return "no numbers here"
    own = {name for name, _ in layer.named_parameters(recurse=False)}
    if not {name for part in layer.parts for name in part.held} <= own or is_parametrized(layer):
        return "its numbers are made of others"  # by a parametrization, or by pruning
    return ""


def _samples(layer: TensorLayer, rows: Sequence[int], met: Sequence[Tensor]) -> list[Tensor]:
    try:
        return layer.samples(rows, met)
    except RuntimeError as error:
        raise BudgetError(
            f"rows={rows} came, and inputs of so many do not fit in memory; write fewer."
        ) from error


def _formats(subjects: Sequence[Subject], met: Mapping[str, list[Tensor]]) -> list[list[Subject]]:
    """The contests of inputs that lie as they came, and of those whose channels are last."""
    inputs = [[x for path in s.layers for x in met.get(path, [])] for s in subjects]
    pairs = [*zip(subjects, inputs, strict=True)]
    came = [Subject(s.layers, met_so(s.first, s.contests, own)) for s, own in pairs]
    last = [Subject(s.layers, met_last(s.first, s.contests)) for s in subjects]
    same = all(a.contests.keys() == b.contests.keys() for a, b in zip(came, last, strict=True))
    return [came] if same else [came, last]


def _serve(subjects: Sequence[Subject], room: int | None) -> list[Choice]:
    """Choose for all layers, and lay out what was chosen."""
    kept = _choose(subjects, room)
    return [c for s, bundle in zip(subjects, kept, strict=True) for c in _install(s, bundle)]


def _contest(layer: Any, x: Tensor, parameters: Sequence[Tensor]) -> Contest:
    bias = None if layer.__dict__["_parameters"].get("bias") is None else layer.bias.detach()
    return Contest(lambda: layer.ways(x), x, bias, parameters)


def _measure(subjects: Sequence[Subject], progress: Progress) -> None:
    """So many layers at a time as keep a cache busy."""
    done = 0
    progress("measure", done, len(subjects))
    for window in windows(subjects, lambda own: own.first.dense_bytes):
        for rows in sorted({rows for s in window for _, rows in s.contests}):
            decide([c for s in window for (_, n), c in s.contests.items() if n == rows])
        done += len(window)
        progress("measure", done, len(subjects))


def _without_kernels(subjects: Sequence[Subject]) -> dict[str, str]:
    """Layers that did not run here for a call, which is left out; those without any, by path."""
    for own in subjects:
        for call in [call for call, contest in own.contests.items() if not contest.entrants]:
            del own.contests[call]
    return {
        path: f"no kernel for {str(layer.like.dtype).removeprefix('torch.')}"
        for own in subjects
        if not own.contests
        for path, layer in own.layers.items()
    }


def _choose(subjects: Sequence[Subject], room: int | None) -> list[Bundle]:
    whole: dict[int, float] = {}
    for own in subjects:
        for (_, rows), contest in own.contests.items():
            whole[rows] = whole.get(rows, 0.0) + len(own.layers) * contest.best
    options = [bundles(own.contests, whole) for own in subjects]
    dense = [own.first.dense_bytes for own in subjects]
    return fitting(options, dense, [len(own.layers) for own in subjects], room)


def _install(subject: Subject, bundle: Bundle) -> list[Choice]:
    """Lay out what was chosen for each of the layers."""
    choices = list[Choice]()
    for path, layer in subject.layers.items():
        chosen: dict[Hashable, dict[int, Ready]] = {}
        made: dict[Hashable, Ready] = {}
        for (kind, rows), entrant in bundle.ways.items():
            contest = subject.contests[kind, rows]
            name = kind, entrant.name
            if name not in made:
                made[name] = made_again(layer.ways(contest.x), entrant.name)
            chosen.setdefault(kind, {})[rows] = made[name]
            choices.append(_choice(path, layer, contest, rows, entrant))
        kind = None if isinstance(layer, TensorEmbedding) else layer.like.dtype
        layer.served = Served(layer, chosen, kind)
    return choices


def _choice(path: str, layer: TensorLayer, contest: Contest, rows: int, entrant: Any) -> Choice:
    dense = contest.entrants.get(DENSE)
    plain = dense.took if dense is not None and dense.seconds else 0.0
    whole = layer.dense_macs(rows)
    needed = layer.macs(rows) / whole if whole else 1.0
    return Choice(
        path,
        layer.host,
        layer.shape,
        rows,
        tuple(contest.x.shape),
        str(layer.like.dtype).removeprefix("torch."),
        entrant.name,
        contest.entrants[BUILT].took,
        plain,
        entrant.took,
        plain * needed / entrant.took,
        entrant.bytes,
    )
