"""Forms of layers timed against each other in onnxruntime, each in a session of its own."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor, nn

from bondwise.checkpoint.onnx.capture import captured
from bondwise.checkpoint.onnx.inputs import Inputs, Values
from bondwise.checkpoint.onnx.session import Session
from bondwise.errors import optional

ROUNDS = 9
LEAST, MOST = 2e-3, 50  # seconds of a round, in so many calls at most
GAIN = 0.95  # of the first form's seconds: what another has to reach to be worth its memory


@dataclass(frozen=True, eq=False)
class Contest:
    """A layer in some forms, and what it is called with.

    Attributes:
        forms: they give equal outputs; the first is taken unless another is faster.
        sizes: of its input: any number of rows or samples, and then what all of them have alike.
    """

    forms: Sequence[nn.Module]
    sizes: Sequence[tuple[int, ...]]


def fastest(contests: Sequence[Contest], source: str) -> list[int]:
    """Which form of each layer takes the fewest seconds, over all sizes in the geometric mean.

    They are followed by torch all at once, which takes most of the time.

    Args:
        contests: the layers.
        source: what an error calls their model.

    Raises:
        CheckpointError: a form cannot be exported.
    """
    if not contests:
        return []
    with torch.random.fork_rng(devices=[]), TemporaryDirectory() as folder:
        graph = captured(_All(contests), _inputs(contests), source)
        parts, outputs, found = _parts(graph.program.model_proto), iter(graph.outputs), list[int]()
        for k, contest in enumerate(contests):
            names = [next(outputs).name for _ in contest.forms]
            files = [parts(f"x{k}", name, Path(folder) / f"{name}.onnx") for name in names]
            found.append(_best(contest, f"x{k}", [Session(file) for file in files]))
            for file in files:
                file.unlink()
    return found


class _All(nn.Module):
    """All forms, each of its layer's input."""

    def __init__(self, contests: Sequence[Contest]) -> None:
        super().__init__()
        self.forms = nn.ModuleList(form for contest in contests for form in contest.forms)
        self.takes = [k for k, contest in enumerate(contests) for _ in contest.forms]

    def forward(self, *values: Tensor) -> tuple[Tensor, ...]:
        """One output for each form."""
        pairs = zip(self.forms, self.takes, strict=True)
        return tuple(form(values[k]) for form, k in pairs)


def _inputs(contests: Sequence[Contest]) -> Inputs:
    def draw(batch: int, _: Mapping[str, int]) -> Values:
        return {f"x{k}": _drawn(own, (batch, *own.sizes[0][1:])) for k, own in enumerate(contests)}

    # the axis of each is called otherwise: onnxruntime takes axes of one name for equal
    free = {f"x{k}": {0: f"rows_{k}"} for k in range(len(contests))}
    return Inputs(free, draw, named=False)


def _drawn(contest: Contest, size: tuple[int, ...]) -> Tensor:
    kind = next(own.dtype for own in contest.forms[0].parameters())
    return torch.randn(size).to(kind)


def _parts(model: Any) -> Any:
    """What writes the part of a model between an input and an output to a file."""
    onnx = optional("onnx", "onnx")
    extractor = optional("onnx.utils", "onnx").Extractor(model)

    def write(given: str, wanted: str, file: Path) -> Path:
        onnx.save(extractor.extract_model([given], [wanted]), str(file))
        return file

    return write


def _best(contest: Contest, name: str, sessions: Sequence[Session]) -> int:
    scores = [1.0] * len(sessions)
    for size in contest.sizes:
        values = {name: _drawn(contest, size)}
        for k, took in enumerate(_seconds(sessions, values)):
            scores[k] *= took
    best = min(range(len(scores)), key=scores.__getitem__)
    return best if scores[best] <= scores[0] * GAIN ** len(contest.sizes) else 0


def _seconds(sessions: Sequence[Session], values: Values) -> list[float]:
    """The fewest of some rounds in turns: what else runs here can only add to it."""
    given = sessions[0].given(values)
    took, calls = [float("inf")] * len(sessions), [1] * len(sessions)
    for turn in range(ROUNDS + 1):
        for k, session in enumerate(sessions):
            start = time.perf_counter()
            for _ in range(calls[k]):
                session.run(given)
            own = (time.perf_counter() - start) / calls[k]
            if turn:
                took[k] = min(took[k], own)
            else:  # the first sets memory aside
                calls[k] = max(1, min(MOST, int(LEAST / max(own, 1e-9))))
    return took
