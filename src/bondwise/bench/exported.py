"""A model as an ONNX file: written, tried, and timed in onnxruntime, beside torch and dense."""

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import nn

from bondwise.bench.count import networks
from bondwise.bench.run import BATCH, Parts
from bondwise.bench.speed import clock, interleaved, ratios, spreads
from bondwise.bench.subject import owned
from bondwise.bench.verb import Report, check_numbers
from bondwise.checkpoint.loading import load_model
from bondwise.checkpoint.onnx.capture import Calls, need_packages
from bondwise.checkpoint.onnx.export import Exported, check_file, export
from bondwise.checkpoint.onnx.inputs import Inputs, Values, inputs_of
from bondwise.checkpoint.onnx.session import Session
from bondwise.checkpoint.others import named_code
from bondwise.errors import DataError
from bondwise.progress import Progress

PARTS = ("forward", "batched")  # of one sample, and of `BATCH`


@dataclass(frozen=True)
class Asked:
    """What is exported, and what it is timed with.

    Attributes:
        source: the model.
        vs: the model beside it, or None.
        data: a file of samples; None where the model says what it takes.
        code: what makes the model of a folder, or None.
        length: tokens of a text.
        repeats: timed runs of each.
        seed: of what is drawn.
        dtype: what both are in; None as they are stored, bfloat16 in float32.
    """

    source: str
    vs: str | None = None
    data: str | None = None
    code: str | None = None
    length: int = 128
    repeats: int = 5
    seed: int = 0
    dtype: torch.dtype | None = None


@dataclass(frozen=True, eq=False)
class Subject:
    """A model, what it takes, and its file."""

    model: nn.Module
    inputs: Inputs
    written: Exported
    notes: tuple[str, ...]


def export_beside(asked: Asked, file: Path, overwrite: bool, progress: Progress) -> Report:
    """Write a model as an ONNX file, and measure it, with as many threads as torch has.

    The one beside it is written to a place that is gone afterwards.

    Raises:
        MissingExtraError: a package of the extra onnx is not installed.
        CheckpointError: a model cannot be loaded or exported, or the file is in the way.
        DataError: it is not known what the model takes, or it takes fewer tokens.
        BudgetError: a number below one.
    """
    need_packages()
    check_numbers(length=asked.length, repeats=asked.repeats)
    check_file(file, overwrite)
    with ExitStack() as stack:
        subjects = [_exported(asked, asked.source, file, overwrite, progress)]
        if asked.vs is not None:
            beside = Path(stack.enter_context(TemporaryDirectory())) / "dense.onnx"
            subjects.append(_exported(asked, asked.vs, beside, False, progress))
        took = _timed(asked, subjects, progress)
        entries = [_entry(own, *rounds) for own, rounds in zip(subjects, took, strict=True)]
    return _report(asked, subjects, entries, took)


def _exported(
    asked: Asked, source: str, file: Path, overwrite: bool, progress: Progress
) -> Subject:
    progress("load", 0, 1)
    loaded = load_model(source, asked.dtype, code=asked.code or named_code(asked.vs))
    model, notes = owned(loaded.model), list[str]()
    if asked.dtype is None and any(p.dtype == torch.bfloat16 for p in model.parameters()):
        model = model.float()
        notes.append(f"{source} is in bfloat16, which onnxruntime does not compute; it is float32")
    progress("load", 1, 1)
    inputs = inputs_of(model, loaded.tokenizer, asked.data, source=source, seed=asked.seed)
    _check_length(source, inputs, asked.length)
    written = export(model, file, inputs, overwrite=overwrite, source=source, progress=progress)
    return Subject(model, inputs, written, tuple(notes))


def _check_length(source: str, inputs: Inputs, length: int) -> None:
    if inputs.longest is not None and length > inputs.longest:
        raise DataError(
            f"A text of {length} tokens came, and {source} has {inputs.longest} positions; write "
            "a smaller --length."
        )


def _timed(
    asked: Asked, subjects: Sequence[Subject], progress: Progress
) -> list[tuple[list[Parts], list[Parts]]]:
    """For each model the seconds of all rounds, in onnxruntime and in torch."""
    jobs = list[Callable[[], Parts]]()
    for own in subjects:
        counts = (1, BATCH) if own.inputs.has_batch else (1,)
        tokens = None if own.inputs.longest is None else asked.length
        given = [own.inputs.example(n, tokens) for n in counts]
        session, calls = (
            Session(own.written.file, torch.get_num_threads()),
            Calls(own.model, own.inputs),
        )
        arrays = [session.given(values) for values in given]
        jobs.append(partial(_run, session.run, arrays))
        jobs.append(partial(_run, partial(_called, calls), given))
    for job in jobs:
        job()
    took = interleaved(jobs, asked.repeats, partial(progress, "measure"))
    return list(zip(took[::2], took[1::2], strict=True))


@torch.no_grad()
def _run(call: Callable[[Any], object], given: Sequence[Any]) -> Parts:
    now, found = clock(torch.device("cpu")), Parts()
    for part, values in zip(PARTS, given, strict=False):
        start = now()
        call(values)
        found[part] = now() - start
    return found


def _called(calls: Calls, values: Values) -> object:
    return calls(*values.values())


def _entry(own: Subject, runtime: list[Parts], in_torch: list[Parts]) -> Report:
    forms = list(own.written.forms.values())
    return {
        "bytes": own.written.bytes,
        "networks": networks(own.model),
        "layers": {form: forms.count(form) for form in sorted(set(forms))},
        "difference": own.written.difference,
        "onnxruntime": spreads(runtime),
        "torch": spreads(in_torch),
    }


def _report(
    asked: Asked,
    subjects: Sequence[Subject],
    entries: Sequence[Report],
    took: Sequence[tuple[list[Parts], list[Parts]]],
) -> Report:
    own, written = subjects[0], subjects[0].written
    kind = {p.dtype for p in own.model.parameters() if p.is_floating_point()}
    notes = [note for each in subjects for note in each.notes]
    if not entries[0]["networks"]:
        notes.append(f"{asked.source} has no layer that is a tensor network")
    return {
        "source": asked.source,
        "vs": asked.vs,
        "seed": asked.seed,
        "file": str(written.file),
        "data_file": None if written.data is None else str(written.data),
        "opset": written.opset,
        "inputs": [asdict(port) for port in written.inputs],
        "outputs": [asdict(port) for port in written.outputs],
        "checks": [asdict(check) for check in written.checks],
        "difference": written.difference,
        "dtype": " and ".join(sorted(str(each).removeprefix("torch.") for each in kind)),
        "kind": "samples" if own.inputs.longest is None else "text",
        "length": None if own.inputs.longest is None else asked.length,
        "batch": BATCH if own.inputs.has_batch else 1,
        "repeats": asked.repeats,
        "threads": torch.get_num_threads(),
        "before": entries[1] if len(entries) > 1 else {},
        "after": entries[0],
        "ratio": _over(entries, took) if len(entries) > 1 else {},
        "notes": notes,
    }


def _over(entries: Sequence[Report], took: Sequence[tuple[list[Parts], list[Parts]]]) -> Report:
    """Ours over the other's."""
    ours, other = took
    return {
        "bytes": entries[0]["bytes"] / entries[1]["bytes"],
        "onnxruntime": ratios(ours[0], other[0]),
        "torch": ratios(ours[1], other[1]),
    }
