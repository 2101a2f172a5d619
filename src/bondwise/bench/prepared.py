"""The model that is measured beside itself, prepared; and what is measured of layers for a file."""

from collections.abc import Callable, Iterable, Sequence
from copy import deepcopy
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from torch import nn

from bondwise.bench.count import networks
from bondwise.bench.run import Parts
from bondwise.bench.speed import interleaved, ratios, spreads
from bondwise.choose.seconds.ladder import ladder
from bondwise.errors import BudgetError
from bondwise.flow.data import Batch, feed
from bondwise.layers.prepare.measurements import Measurements
from bondwise.layers.prepare.prepare import prepare
from bondwise.layers.prepare.result import Choice, Prepared
from bondwise.progress import Progress

Report = dict[str, Any]
Rates = Sequence[dict[str, float]]


@dataclass(frozen=True)
class Serving:
    """How the first model is made ready.

    Attributes:
        prepare: whether it is.
        file: where measurements go; None for nowhere.

    Raises:
        BudgetError: measurements of layers that are not prepared.
    """

    prepare: bool = True
    file: Path | None = None

    def __post_init__(self) -> None:
        if self.file is not None and not self.prepare:
            raise BudgetError(
                "--measurements came with --no-prepare, and they are of prepared layers; leave one "
                "of the two out."
            )

    def check(self, device: str) -> None:
        """See that the file can be written, before anything is measured.

        Raises:
            DataError: it is of another machine or is none of ours, or cannot be written.
        """
        if self.file is not None:
            Measurements.here((), device).room(self.file)


def in_turns(
    models: Sequence[nn.Module],
    ready: "Made | None",
    job: Callable[[nn.Module], Parts],
    rates: Callable[[Parts], dict[str, float]],
    repeats: int,
    progress: Progress,
) -> tuple[list[Rates], Rates]:
    """The rates of some models, and of the first one prepared, each run once in every round.

    Args:
        models: each has run once.
        ready: the first, prepared; it runs once more than is timed.
        job: one run, timed.
        rates: of its seconds.
        repeats: how many rounds.
        progress: is told how far it is.
    """
    first, *others = models
    beside = [] if ready is None else [ready.model]
    for model in beside:
        job(model)
    jobs = [partial(job, model) for model in (first, *beside, *others)]
    took = interleaved(jobs, repeats, partial(progress, "measure"))
    found: list[Rates] = [[rates(seconds) for seconds in rounds] for rounds in took]
    prepared = found.pop(1) if ready is not None else []
    return found, prepared


@dataclass(frozen=True, eq=False)
class Made:
    """The first model, prepared.

    Attributes:
        model: a copy of it.
        found: what was chosen.
    """

    model: nn.Module
    found: Prepared

    def entry(self, rounds: Rates, found: Sequence[Rates], entries: Sequence[Report]) -> Report:
        """What was found of it.

        Args:
            rounds: its rates.
            found: those of the model as built, and of the one beside it, in the same rounds.
            entries: the reports of these.
        """
        held = entries[0]["resident_bytes"] + self.found.bytes
        over: Report = {}
        for dense, other in zip(found[1:], entries[1:], strict=True):
            whole = other["resident_bytes"]
            over = ratios(rounds, dense) | {"resident_bytes": held / whole if whole else None}
        own = {"networks": networks(self.model), **spreads(rounds), "resident_bytes": held}
        return {**own, "ratio": over, "chosen": _chosen(self.found)}


def made(
    model: nn.Module,
    serving: Serving,
    rows: Sequence[int],
    progress: Progress,
    shown: tuple[Batch, ...] = (),
) -> Made | None:
    """A copy of a model, prepared for what it is measured with; None where nothing is.

    Measurements of its layers are written where that is asked for: of a dense model those of a
    ladder of networks (`bondwise.choose.seconds.ladder`).

    Args:
        model: dense, or with layers of bondwise.
        serving: what is asked for.
        rows: for how many rows at a time.
        progress: is told how far it is.
        shown: samples that it is given, one after the other.
    """
    if not serving.prepare:
        return None
    example = shown or None
    if not networks(model):
        if serving.file is not None:
            found = ladder(_Shown(model) if shown else model, rows, example, progress=progress)
            device = next(model.parameters()).device
            Measurements.here(found, device).write(serving.file)
        return None
    copy = deepcopy(model)
    run = _Shown(copy) if shown else copy
    tell = partial(_told, progress)
    return Made(copy, prepare(run, example, rows, file=serving.file, progress=tell))


def measurements(serving: Serving) -> Report | None:
    """What a report says of the file."""
    if serving.file is None:
        return None
    found = Measurements.read(serving.file)
    return {"file": str(serving.file), "entries": len(found.entries), "machine": found.machine}


def _told(progress: Progress, _stage: str, done: int, total: int) -> None:
    progress("prepare", done, total)


class _Shown(nn.Module):
    """A model that is given some samples, one after the other."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, *shown: Batch) -> None:
        for batch in shown:
            feed(self.model, batch)


def _chosen(found: Prepared) -> Report:
    """How many layers run in which way, for each number of rows."""
    rows = sorted({choice.rows for choice in found})
    return {
        "seconds": found.seconds,
        "bytes": found.bytes,
        "layers": len({choice.name for choice in found}),
        "skipped": len(found.skipped),
        "groups": [asdict(group) for group in found.groups()],
        "ways": [
            {"rows": n, **_counts(choice for choice in found if choice.rows == n)} for n in rows
        ],
    }


def _counts(choices: Iterable[Choice]) -> dict[str, int]:
    found = {"path": 0, "joined": 0, "dense": 0, "built": 0}
    begins = {"joined": "joined", "dense": "dense", "as built": "built"}
    for choice in choices:
        kinds = (kind for start, kind in begins.items() if choice.way.startswith(start))
        found[next(kinds, "path")] += 1
    return found
