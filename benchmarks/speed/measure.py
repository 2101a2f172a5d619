"""A case of the grid becomes cells: seconds of every subject that agrees with dense."""

import contextlib
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn

import bondwise as bw
from speed import memory
from speed.clock import race
from speed.grid import Case, random_cores
from speed.subjects import DENSE, OURS, PEERS, Subject, makers

Entry = dict[str, Any]
# relative, of outputs and gradients; orders of contraction round differently
TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-4, torch.bfloat16: 5e-2}


@dataclass(frozen=True)
class Setting:
    """How long the clock looks, and at what."""

    dtype: torch.dtype = torch.float32
    repeats: int = 3
    least: float = 0.02  # seconds of one turn
    patience: float = 2.0
    peers: Sequence[str] = PEERS
    seed: int = 0


def measure(case: Case, setting: Setting) -> Iterator[Entry]:
    """One cell for every batch; layers are built anew for each."""
    cores = random_cores(case.network, setting.dtype, setting.seed)
    for batch in case.batches:
        yield _cell(case, cores, batch, setting)


def _cell(case: Case, cores: Sequence[Tensor], batch: int, setting: Setting) -> Entry:
    out, inp = case.weight
    entry: Entry = {
        "kind": case.kind,
        "weight": list(case.weight),
        "network": case.label,
        "einsum": str(case.network),
        "bonds": list(case.network.bonds.values()),
        "cores": len(case.network.cores),
        "stored": case.network.parameters,
        "batch": batch,
        "macs": bw.plan(case.network, batch=batch, goal="macs").macs,
        "dense_macs": batch * out * inp,
    }
    if case.kind == "memory":
        return entry | {"peak_bytes": _peaks(case, cores, batch, setting)}
    times, left_out = _times(case, cores, batch, setting)
    return entry | {
        "seconds": {name: _short(median(own)) for name, own in times.items()},
        "repeats": {name: [_short(one) for one in own] for name, own in times.items()},
        "left_out": left_out,
    }


def _times(
    case: Case, cores: Sequence[Tensor], batch: int, setting: Setting
) -> tuple[dict[str, list[float]], dict[str, str]]:
    """Seconds of every subject in every turn, and why others are left out."""
    out, inp = case.weight
    draw = torch.Generator().manual_seed(setting.seed + 1)
    x = torch.randn(batch, inp, generator=draw).to(setting.dtype)
    pull = torch.randn(batch, out, generator=draw).to(setting.dtype)
    train = case.kind == "training"
    subjects, left_out = _agreeing(case, cores, x, pull, setting)
    runs = {name: _run(subject, x, pull, train) for name, subject in subjects.items()}
    if case.kind == "overhead":
        weight = subjects[DENSE].parameters[0]
        runs["F.linear"] = lambda: nn.functional.linear(x, weight)
    with contextlib.nullcontext() if train else torch.no_grad():
        return race(runs, setting.repeats, setting.least, setting.patience), left_out


def _agreeing(
    case: Case, cores: Sequence[Tensor], x: Tensor, pull: Tensor, setting: Setting
) -> tuple[dict[str, Subject], dict[str, str]]:
    """Subjects whose results are dense's, and why the others are left out."""
    train = case.kind == "training"
    makes = makers(case, cores, len(x), setting.peers)
    subjects = {DENSE: makes.pop(DENSE)()}
    right = _results(subjects[DENSE], x, pull, train)
    left_out: dict[str, str] = {}
    for name, make in makes.items():
        try:
            with _quiet_unless_ours(name):
                subject = make()
                wrong = _difference(_results(subject, x, pull, train), right)
        except Exception as error:  # a peer may raise anything; ours may not
            if name.startswith(OURS):
                raise
            left_out[name] = f"{type(error).__name__}: {str(error).splitlines()[0][:120]}"
            continue
        if wrong <= TOLERANCE[setting.dtype]:
            subjects[name] = subject
        elif name.startswith(OURS):
            raise ValueError(f"{case.label} of {case.weight}: {name} is off by {wrong:.1e}.")
        else:
            left_out[name] = f"off by {wrong:.1e}"
    return subjects, left_out


@contextlib.contextmanager
def _quiet_unless_ours(name: str) -> Iterator[None]:
    """What a peer warns of is not for our readers, and no crash where warnings are errors."""
    with warnings.catch_warnings():
        if not name.startswith(OURS):
            warnings.simplefilter("ignore")
        yield


def _results(subject: Subject, x: Tensor, pull: Tensor, train: bool) -> list[Tensor]:
    """Outputs and, of training, the gradient of x: those of cores lie differently in each."""
    if not train:
        with torch.no_grad():
            return [subject.run(x)]
    x = x.clone().requires_grad_()
    y = subject.run(x)
    return [y.detach(), *torch.autograd.grad(y, [x], pull)]


def _difference(found: Sequence[Tensor], right: Sequence[Tensor]) -> float:
    if any(a.shape != b.shape for a, b in zip(found, right, strict=True)):
        return float("inf")
    pairs = [(a.double(), b.double()) for a, b in zip(found, right, strict=True)]
    return max(((a - b).norm() / b.norm()).item() for a, b in pairs)


def _run(subject: Subject, x: Tensor, pull: Tensor, train: bool) -> Callable[[], object]:
    if not train:
        return lambda: subject.run(x)
    own = x.clone().requires_grad_()
    wanted = [own, *subject.parameters]
    return lambda: torch.autograd.grad(subject.run(own), wanted, pull)


def _peaks(case: Case, cores: Sequence[Tensor], batch: int, setting: Setting) -> dict[str, int]:
    """Bytes at the peak of a step, ours and dense's."""
    makes = makers(case, cores, batch, peers=())

    def layer(name: str) -> Callable[[], nn.Module]:
        return lambda: makes[name]().run  # both are modules

    width = case.weight[1]
    return {name: memory.peak(layer(name), batch, width, setting.dtype) for name in (OURS, DENSE)}


def _short(seconds: float) -> float:
    return float(f"{seconds:.4g}")
