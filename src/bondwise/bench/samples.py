"""Speed, multiplications and memory of models that read no text: on samples of the user's."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from bondwise.bench.count import networks, resident_bytes
from bondwise.bench.prepared import Serving, in_turns, made, measurements
from bondwise.bench.run import BATCH, Parts
from bondwise.bench.speed import clock, ratios, spreads
from bondwise.bench.subject import owned
from bondwise.bench.verb import AS_SERVED, Report, check_numbers
from bondwise.checkpoint.loading import load_model
from bondwise.checkpoint.others import named_code
from bondwise.checkpoint.sources.program import Program
from bondwise.errors import DataError
from bondwise.flow.data import Batch, checked, feed, part, samples
from bondwise.flow.forms.door import opened
from bondwise.flow.forms.samples import read_samples
from bondwise.progress import Progress


@dataclass(frozen=True)
class Asked:
    """What is measured, and on what.

    Attributes:
        source: the model.
        vs: the model beside it, or None.
        data: a file of samples; None for random ones where the model says what it takes.
        code: what makes the model of a folder, or None.
        seed: of random samples.
    """

    source: str
    vs: str | None
    data: str | None
    code: str | None
    seed: int


def bench_samples(
    asked: Asked,
    repeats: int,
    device: str,
    dtype: torch.dtype | None,
    progress: Progress,
    serving: Serving = AS_SERVED,
) -> Report:
    """The report of one measurement, as `bondwise.bench.verb.bench` gives it for text.

    Multiplications are those of all products and convolutions, as torch counts them. The model is
    prepared for one sample, and for as many as are shown at once.

    Raises:
        DataError: no samples came and the model does not say what it takes, or it cannot run them,
            or the file of measurements cannot be written.
        CheckpointError: a model cannot be loaded.
    """
    check_numbers(repeats=repeats)
    serving.check(device)
    paths = [path for path in (asked.source, asked.vs) if path is not None]
    progress("load", 0, len(paths))
    models = list[nn.Module]()
    for done, path in enumerate(paths, start=1):
        code = asked.code or named_code(asked.vs)
        models.append(owned(load_model(path, dtype, device, code=code).model))
        progress("load", done, len(paths))
    one, many = _shown(models[0], asked)
    macs = [_counted(model, one) for model in models]
    now = clock(next(models[0].parameters()).device)
    for model in models:
        _run(model, one, many, now)
    ready = made(models[0], serving, (1,), progress, (one, many))
    found, prepared = in_turns(
        models, ready, lambda model: _run(model, one, many, now),
        partial(_rates, count=samples(many)), repeats, progress,
    )  # fmt: skip
    entries = [
        {
            "networks": networks(model),
            "dtype": str(next(model.parameters()).dtype).removeprefix("torch."),
            **spreads(rounds),
            "macs": {"forward": count},
            "resident_bytes": resident_bytes(model),
            "peak_bytes": None,
        }
        for model, rounds, count in zip(models, found, macs, strict=True)
    ]
    ours, *other = entries
    given = {name: value for name, value in asdict(asked).items() if name not in ("code", "data")}
    return given | {
        "device": device,
        "threads": torch.get_num_threads(),
        "kind": "samples",
        "prompt": None,
        "tokens": None,
        "batch": samples(many),
        "repeats": repeats,
        "ratio": ratios(*found) | _over(ours, other[0]) if other else {},
        "notes": [] if ours["networks"] else [f"{paths[0]} has no layer that is a tensor network"],
        "prepared": {} if ready is None else ready.entry(prepared, found, entries),
        "measurements": measurements(serving),
        "before": other[0] if other else {},
        "after": ours,
    }


def _shown(model: nn.Module, asked: Asked) -> tuple[Batch, Batch]:
    """One sample, and as many as are shown at once."""
    if asked.data is not None:
        found = opened(read_samples(asked.data))
        assert isinstance(found, list)
        batch = _joined(found)
    elif isinstance(model, Program):
        batch = model.example(BATCH, asked.seed)
    else:
        raise DataError(
            f"{asked.source} reads no text, and what it takes is not known; add samples of it, as "
            "--data samples.pt."
        )
    checked(model, [batch])
    return part(batch, 0, 1), part(batch, 0, min(BATCH, samples(batch)))


def _joined(batches: Sequence[Batch]) -> Batch:
    """Batches of one shape as one, up to `BATCH` samples."""
    first = batches[0]
    if not isinstance(first, Tensor):
        return first
    same = [b for b in batches if isinstance(b, Tensor) and b.shape[1:] == first.shape[1:]]
    return torch.cat(same[:BATCH])[:BATCH]


@torch.no_grad()
def _run(model: nn.Module, one: Batch, many: Batch, now: Callable[[], float]) -> Parts:
    start = now()
    feed(model, one)
    alone = now()
    feed(model, many)
    return {"forward": alone - start, "batched": now() - alone}


def _rates(seconds: Parts, count: int) -> dict[str, float]:
    return {"forward": 1 / seconds["forward"], "batched": count / seconds["batched"]}


@torch.no_grad()
def _counted(model: nn.Module, one: Batch) -> float:
    """Multiplications for one sample."""
    with FlopCounterMode(display=False) as counter:
        feed(model, one)
    return counter.get_total_flops() / 2


def _over(ours: Report, other: Report) -> Report:
    one, two = (each["macs"]["forward"] for each in (ours, other))
    bytes_ = ours["resident_bytes"] / other["resident_bytes"] if other["resident_bytes"] else None
    return {
        "resident_bytes": bytes_,
        "peak_bytes": None,
        "macs": {"forward": one / two if two else None},
    }
