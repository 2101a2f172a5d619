"""What `bondwise bench` does: speed, memory and multiplications of a model, beside another."""

import os
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import nn

from bondwise.bench.count import multiplications, networks, resident_bytes
from bondwise.bench.peak import peak_bytes
from bondwise.bench.prepared import Serving, in_turns, made, measurements
from bondwise.bench.run import BATCH, Load, Parts, prompts, run, writes
from bondwise.bench.speed import clock, rates, ratios, spreads
from bondwise.bench.subject import Subject, subject
from bondwise.errors import BudgetError, DataError
from bondwise.progress import Progress

Report = dict[str, Any]
AS_SERVED = Serving()


def bench(
    model: str,
    vs: str | None,
    load: Load,
    repeats: int,
    device: str,
    dtype: torch.dtype | None,
    progress: Progress,
    serving: Serving = AS_SERVED,
) -> Report:
    """The report of one measurement, with as many threads as torch has at the time.

    A first run of each model is not timed: it counts the multiplications and warms up. The first
    model runs as built and prepared, if it has layers of bondwise. Peak memory is measured last,
    as built, when this process has let go of the models.

    Raises:
        BudgetError: a number of tokens or runs below one.
        DataError: a model that takes no tokens, or not so many; two models of unlike kinds; a file
            of measurements that cannot be written.
        CheckpointError: a model cannot be loaded.
    """
    check_numbers(prompt=load.prompt, tokens=load.tokens, repeats=repeats)
    serving.check(device)
    paths = [path for path in (model, vs) if path is not None]
    report, entries = _measured(paths, load, repeats, device, dtype, progress, serving)
    for done, (path, entry) in enumerate(zip(paths, entries, strict=True)):
        progress("peak memory", done, len(paths))
        entry["peak_bytes"] = _peak(path, load, device, dtype, report["notes"])
    progress("peak memory", len(paths), len(paths))
    ours, *other = entries
    if other:
        report["ratio"] |= _counts_over(ours, other[0])
    asked: Report = {"source": model, "vs": vs, "seed": load.seed, "device": device}
    return asked | report | {"before": other[0] if other else {}, "after": ours}


def check_numbers(**numbers: int) -> None:
    """Refuse numbers below one, and more threads than the machine has processors.

    Raises:
        BudgetError: with the name of the number.
    """
    for name, value in numbers.items():
        if value < 1:
            raise BudgetError(f"{name}={value} came; write a whole number of 1 or more.")
    there = os.cpu_count() or 1
    if numbers.get("threads", 1) > there:
        raise BudgetError(
            f"threads={numbers['threads']} came; this machine has {there} processors: write no "
            "more than these."
        )


def _measured(
    paths: Sequence[str],
    load: Load,
    repeats: int,
    device: str,
    dtype: torch.dtype | None,
    progress: Progress,
    serving: Serving,
) -> tuple[Report, list[Report]]:
    """All but the peak memory; the models are gone when it returns."""
    subjects = _loaded(paths, load, device, dtype, progress)
    ids = prompts(load, min(each.entries for each in subjects), device)
    progress("warm up", 0, len(paths))
    macs: list[Parts] = []
    for done, each in enumerate(subjects, start=1):
        macs.append(_counted(each, ids, load))
        progress("warm up", done, len(paths))
    now, models = clock(ids.device), [each.model for each in subjects]
    kind = "language" if writes(models[0]) else "encoder"
    rows = (1, load.prompt) if kind == "language" else (load.prompt, BATCH * load.prompt)
    ready = made(models[0], serving, rows, progress)
    found, prepared = in_turns(
        models, ready, lambda model: run(model, ids, load, now), partial(rates, load=load),
        repeats, progress,
    )  # fmt: skip
    each_found = zip(subjects, found, macs, strict=True)
    entries = [_entry(each, rounds, counted) for each, rounds, counted in each_found]
    report: Report = {
        "threads": torch.get_num_threads(),
        "kind": kind,
        "prompt": load.prompt,
        "tokens": load.tokens,
        "batch": BATCH,
        "repeats": repeats,
        "ratio": ratios(*found) if len(found) > 1 else {},
        "notes": _notes(subjects),
        "prepared": {} if ready is None else ready.entry(prepared, found, entries),
        "measurements": measurements(serving),
    }
    return report, entries


def _loaded(
    paths: Sequence[str],
    load: Load,
    device: str,
    dtype: torch.dtype | None,
    progress: Progress,
) -> list[Subject]:
    progress("load", 0, len(paths))
    subjects: list[Subject] = []
    for done, path in enumerate(paths, start=1):
        subjects.append(subject(path, load, device, dtype))
        progress("load", done, len(paths))
    _check_kinds(subjects)
    return subjects


def _entry(each: Subject, rounds: Sequence[dict[str, float]], macs: Parts) -> Report:
    """What was found of one model."""
    return {
        "networks": networks(each.model),
        "dtype": _dtype(each.model),
        **spreads(rounds),
        "macs": macs,
        "resident_bytes": resident_bytes(each.model),
    }


def _check_kinds(subjects: Sequence[Subject]) -> None:
    if len({writes(each.model) for each in subjects}) > 1:
        writer, reader = sorted(subjects, key=lambda each: not writes(each.model))
        raise DataError(
            f"{writer.path} continues a text and {reader.path} only reads one; "
            "give two models of one kind"
        )


def _counted(each: Subject, ids: torch.Tensor, load: Load) -> Parts:
    """The first run, with multiplications per token in place of seconds."""
    try:
        with multiplications(each.model) as made:
            parts = run(each.model, ids, load, made)
    except DataError:
        raise
    except Exception as error:  # whatever a model raises that wants more than token ids
        said = (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
        raise DataError(
            f"{each.path} does not run on token ids alone ({said[:200]}); give a causal "
            "language model or a text encoder, or a smaller prompt"
        ) from error
    tokens = {"decode": load.tokens, "batched": BATCH * load.prompt}
    return {name: count / tokens.get(name, load.prompt) for name, count in parts.items()}


def _peak(
    path: str, load: Load, device: str, dtype: torch.dtype | None, notes: list[str]
) -> int | None:
    try:
        return peak_bytes(path, load, device, dtype)
    except DataError as error:
        notes.append(str(error))
        return None


def _notes(subjects: Sequence[Subject]) -> list[str]:
    notes: list[str] = []
    if not networks(subjects[0].model):
        notes.append(f"{subjects[0].path} has no layer that is a tensor network")
    if len({each.entries for each in subjects}) > 1:
        sizes = " and ".join(f"{each.entries:,}" for each in subjects)
        notes.append(f"the models know {sizes} tokens: their heads and embeddings differ too")
    if len({_dtype(each.model) for each in subjects}) > 1:
        kinds = " and ".join(_dtype(each.model) for each in subjects)
        notes.append(f"the models run in {kinds}; --dtype gives both the same")
    return notes


def _counts_over(ours: Report, other: Report) -> Report:
    """Ours over the other's, of what is counted and not timed; None where there is no number."""
    over: Report = {
        name: ours[name] / other[name] if ours[name] and other[name] else None
        for name in ("resident_bytes", "peak_bytes")
    }
    both = ((name, ours["macs"][name], other["macs"][name]) for name in ours["macs"])
    return over | {"macs": {name: one / two if two else None for name, one, two in both}}


def _dtype(model: nn.Module) -> str:
    return str(next(model.parameters()).dtype).removeprefix("torch.")
