"""Pitch from what CREPE gives, how often it is right, and how sure that is."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import sqrt
from statistics import median
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from bondwise.demo.tones import FRAME, RATE, Tones
from bondwise.train.allocator import kept

WIDTH = 20.0  # cents between two bins
FIRST = 1997.3794084376191  # cents of the first bin, above 10 Hz
AROUND = 4  # bins on either side of the strongest one that its pitch is the mean of
RIGHT = 50.0  # cents: half a semitone
HOP = RATE // 100  # samples between two frames of a track: 10 ms
BATCH = 32  # frames at once
NORMAL = 1.959963984540054  # deviations of the normal distribution that hold 95 %
Tell = Callable[[int, int], None]


def cents(hertz: Tensor) -> Tensor:
    """Hundredths of a semitone above 10 Hz.

    >>> cents(torch.tensor([10.0, 20.0, 440.0]))
    tensor([   0.0000, 1200.0000, 6551.3179])
    """
    return 1200 * torch.log2(hertz / 10)


def hertz(cents: Tensor) -> Tensor:
    """The other way.

    >>> hertz(torch.tensor([0.0, 1200.0]))
    tensor([10., 20.])
    """
    return 10 * 2 ** (cents / 1200)


def pitch(activations: Float[Tensor, "*count 360"]) -> Float[Tensor, "*count"]:
    """Cents: the mean over the strongest bin and four on either side, weighted by activation.

    >>> bins = torch.zeros(360)
    >>> bins[100], bins[101] = 0.75, 0.25
    >>> round(float(pitch(bins)) - FIRST, 6)  # 100.25 bins of 20 cents
    2005.0
    """
    bins = torch.arange(activations.shape[-1], device=activations.device).double()
    away = (bins - activations.argmax(-1, keepdim=True)).abs()
    weight = activations.double() * (away <= AROUND)
    return (weight * (WIDTH * bins + FIRST)).sum(-1) / weight.sum(-1)


@torch.no_grad()
def activations(
    model: nn.Module, frames: Float[Tensor, "count 1024"], tell: Tell | None = None
) -> Float[Tensor, "count 360"]:
    """What a model gives for frames, some at a time; `tell` is told how many are done."""
    parts, device = list[Tensor](), place(model)
    for start in range(0, len(frames), BATCH):
        parts.append(model(frames[start : start + BATCH].to(device)).float().cpu())
        if tell is not None:
            tell(min(start + BATCH, len(frames)), len(frames))
    return torch.cat(parts) if parts else torch.zeros(0, 360)


def place(model: nn.Module) -> torch.device:
    """Where a model computes."""
    return next((p.device for p in model.parameters()), torch.device("cpu"))


def errors(model: nn.Module, given: Tones, tell: Tell | None = None) -> Float[Tensor, " count"]:
    """How far a model is from the pitch of each tone, in cents, above 0."""
    return (pitch(activations(model, given.frames, tell)) - cents(given.hertz.double())).abs()


def share(error: Float[Tensor, " count"]) -> float:
    """The share of tones heard within half a semitone.

    >>> share(torch.tensor([3.0, 51.0]))
    0.5
    """
    return float((error <= RIGHT).double().mean())


class Interval(NamedTuple):
    """A difference of two shares, and the 95 % interval around it."""

    difference: float
    low: float
    high: float


def paired(ours: Float[Tensor, " count"], theirs: Float[Tensor, " count"]) -> Interval:
    """How much larger our share is than theirs, on the same tones.

    The interval is Wald's for paired shares with half a tone added to each of the four cells
    (Agresti and Min 2005), so that it has a width where both are right about the same tones.

    >>> [round(x, 3) for x in paired(torch.zeros(400), torch.zeros(400))]
    [0.0, -0.005, 0.005]
    """
    right, other = ours <= RIGHT, theirs <= RIGHT
    won, lost = int((right & ~other).sum()), int((other & ~right).sum())
    count = len(ours) + 2
    middle = (won - lost) / count
    wide = NORMAL * sqrt(won + lost + 1 - (won - lost) ** 2 / count) / count
    return Interval((won - lost) / max(len(ours), 1), middle - wide, middle + wide)


@dataclass(frozen=True)
class Pace:
    """Seconds that each model takes for a second of sound.

    Attributes:
        seconds: by model, in the order given.
        batch: frames at once.
        threads: of the processor.
    """

    seconds: Sequence[float]
    batch: int
    threads: int


@torch.no_grad()
def pace(models: Sequence[nn.Module], rounds: int = 5, batch: int = BATCH) -> Pace:
    """The median of calls that take turns, so that what else the machine does meets all alike.

    What is freed stays with the process: a model just healed finds it so, one that was loaded would
    wait for the system to clear the pages of each large output, a third of a second for a second of
    sound.
    """
    frames = torch.randn(batch, FRAME, generator=torch.Generator().manual_seed(0))
    taken: list[list[float]] = [[] for _ in models]
    with kept():
        for turn in range(rounds + 1):
            for model, times in zip(models, taken, strict=True):
                shown, start = frames.to(place(model)), time.perf_counter()
                model(shown).cpu()  # waits for what another device does
                if turn:  # the first call finds its memory
                    times.append(time.perf_counter() - start)
    each = RATE / HOP / batch
    return Pace([median(times) * each for times in taken], batch, torch.get_num_threads())


@torch.no_grad()
def judged(
    models: Mapping[str, nn.Module], tests: Mapping[str, Tones], tell: Tell | None = None
) -> dict[str, dict[str, Tensor]]:
    """Errors in cents, by model and test."""
    whole = len(models) * sum(len(test.hertz) for test in tests.values())
    found: dict[str, dict[str, Tensor]] = {name: {} for name in models}
    done = 0
    for test, given in tests.items():
        for name, model in models.items():
            found[name][test] = errors(model, given, _after(tell, done, whole))
            done += len(given.hertz)
    return found


def _after(tell: Tell | None, done: int, whole: int) -> Tell | None:
    return None if tell is None else lambda part, _: tell(done + part, whole)
