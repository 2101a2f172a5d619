"""Sounds of known pitch, made from numbers: what a pitch network is healed and judged on."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import log, pi

import torch
from jaxtyping import Float
from torch import Generator, Tensor

RATE = 16_000
FRAME = 1024
LOW, HIGH = 60.0, 1_000.0  # Hz
HARMONICS = 8
PLUCKED_BEFORE = 512  # samples from the pluck to the frame: its noise has become a tone by then
LOUD = 40.0  # dB that the clearest tone of a lesson is above its noise; the faintest is as loud
QUIET = 1e-8  # a deviation below this is silence


@dataclass(frozen=True)
class Tones:
    """Frames, each at mean 0 and deviation 1, and the pitch in Hz of each."""

    frames: Float[Tensor, "count 1024"]
    hertz: Float[Tensor, " count"]


def tones(count: int, seed: int, *, timbre: str = "harmonics", noise: float | None = None) -> Tones:
    """So many tones, their pitch log-uniform from 60 to 1,000 Hz.

    Args:
        count: how many.
        seed: of every random choice.
        timbre: one of `TIMBRES`.
        noise: the level of the tone above white noise in dB; None for none.

    >>> made = tones(4, seed=0, timbre="square", noise=0.0)
    >>> tuple(made.frames.shape), bool((made.hertz > 60).all())
    ((4, 1024), True)
    """
    random = Generator().manual_seed(seed)
    hertz = LOW * torch.exp(log(HIGH / LOW) * torch.rand(count, generator=random))
    sound = normal(TIMBRES[timbre](hertz, random))
    if noise is not None:
        hiss = normal(torch.randn(count, FRAME, generator=random))
        sound = normal(sound + 10 ** (-noise / 20) * hiss)
    return Tones(sound, hertz)


def lessons(count: int, seed: int, alone: float = 0.0) -> Float[Tensor, "count 1024"]:
    """Frames to fit and heal on: tones of random harmonics, in noise of every level.

    Args:
        count: how many.
        seed: of every random choice.
        alone: the share of frames that are noise and nothing else. A relative error weighs them
            most, since the network gives next to nothing for them: healed on a sixteenth of them,
            CREPE tiny at 0.44 heard 91.8 % of clean tones, without 93.0 %.
    """
    random = Generator().manual_seed(seed)
    clean = tones(count, seed + 1).frames
    hiss = normal(torch.randn(count, FRAME, generator=random))
    level = 10 ** (-LOUD * torch.rand(count, 1, generator=random) / 20)
    noise = torch.rand(count, 1, generator=random) < alone
    return normal(torch.where(noise, hiss, clean + level * hiss))


def others(count: int, seed: int) -> Tones:
    """Timbres that nothing is healed on, a third of each, every other tone at 0 dB of noise."""
    each = -(-count // len(OTHERS))
    clean, noisy = (
        [tones(each, seed + k, timbre=timbre, noise=noise) for k, timbre in enumerate(OTHERS)]
        for noise in (None, 0.0)
    )
    frames, hertz = (
        torch.stack([torch.cat([getattr(t, what) for t in part]) for part in (clean, noisy)], 1)
        for what in ("frames", "hertz")
    )
    odd = torch.arange(len(frames)) % 2
    rows = torch.arange(len(frames))
    kept = torch.arange(count) * len(frames) // count  # as many of each timbre
    return Tones(frames[rows, odd][kept], hertz[rows, odd][kept])


def melody(seed: int = 0) -> Float[Tensor, " samples"]:
    """Two seconds of a sawtooth that slides from note to note, with vibrato, in noise at 10 dB."""
    random = Generator().manual_seed(seed)
    steps = torch.tensor([0, 2, 4, 7, 12, 9, 7, 4, 5, 2, -5, 0.0])
    each = 2 * RATE // len(steps)
    key = steps.repeat_interleave(each)
    slide = torch.ones(1, 1, each // 3) / (each // 3)
    padded = torch.nn.functional.pad(key[None, None], (each // 3 - 1, 0), mode="replicate")
    key = torch.nn.functional.conv1d(padded, slide)[0, 0]
    key = key + 0.3 * torch.sin(2 * pi * 5.5 / RATE * torch.arange(len(key)))
    hertz = 220 * 2 ** (key.double() / 12)
    phase = 2 * pi * torch.cumsum(hertz, 0) / RATE
    sound = torch.zeros(len(key), dtype=torch.float64)
    for k in range(1, int(RATE / 2 / float(hertz.min())) + 1):
        sound += (hertz * k < RATE / 2) * torch.sin(phase * k) / k
    hiss = torch.randn(len(key), generator=random)
    return (sound / sound.std() + 10 ** (-10 / 20) * hiss).float()


def normal(sound: Float[Tensor, "*count samples"]) -> Float[Tensor, "*count samples"]:
    """Each frame at mean 0 and deviation 1, as the network wants it; silence stays silence."""
    centred = sound - sound.mean(-1, keepdim=True)
    return centred / centred.std(-1, keepdim=True).clamp_min(QUIET)


def _harmonics(hertz: Tensor, random: Generator) -> Tensor:
    """Eight harmonics, of random phase, and of amplitude a random number over the harmonic's."""
    order = torch.arange(1, HARMONICS + 1)
    loud = torch.rand(len(hertz), HARMONICS, generator=random) / order
    turn = 2 * pi * torch.rand(len(hertz), HARMONICS, generator=random)
    return sum((_sine(hertz * k, loud[:, k - 1], turn[:, k - 1]) for k in order), torch.tensor(0.0))


def _sawtooth(hertz: Tensor, random: Generator) -> Tensor:
    """All harmonics below half of the rate, falling as 1/k, in phase."""
    return _periodic(hertz, random, step=1)


def _square(hertz: Tensor, random: Generator) -> Tensor:
    """The odd harmonics below half of the rate, falling as 1/k, in phase."""
    return _periodic(hertz, random, step=2)


def _periodic(hertz: Tensor, random: Generator, step: int) -> Tensor:
    start = 2 * pi * torch.rand(len(hertz), generator=random)
    sound = torch.zeros(len(hertz), FRAME)
    for k in range(1, int(RATE / 2 / LOW) + 1, step):
        heard = (hertz * k < RATE / 2) / k  # what lies above would fold back to other pitches
        sound += _sine(hertz * k, heard, start * k)
    return sound


def _sine(hertz: Tensor, loud: Tensor, turn: Tensor) -> Tensor:
    angle = (2 * pi / RATE * hertz)[:, None] * torch.arange(FRAME) + turn[:, None]
    return loud[:, None] * torch.sin(angle)


def _plucked(hertz: Tensor, random: Generator) -> Tensor:
    """A burst of noise going round a delay line (Karplus and Strong 1983).

    The loop is the line, the mean of two neighbours (half a sample) and an all-pass filter for the
    rest of the period (Jaffe and Smith 1983), whose delay is kept from 0.5 to 1.5 samples.
    """
    period = RATE / hertz
    line = (period - 1).floor().long()  # the filters delay by 0.5, and by 0.5 to 1.5
    rest = period - line - 0.5
    pole = (1 - rest) / (1 + rest)
    rows, longest = torch.arange(len(hertz)), int(line.max()) + 1
    sound = torch.zeros(len(hertz), longest + PLUCKED_BEFORE + FRAME)
    sound[:, :longest] = torch.randn(len(hertz), longest, generator=random)
    mean = last = torch.zeros(len(hertz))
    for now in range(longest, sound.shape[1]):
        back = now - line
        before, mean = mean, (sound[rows, back] + sound[rows, back - 1]) / 2
        last = pole * (mean - last) + before
        sound[:, now] = last
    return sound[:, -FRAME:]


Timbre = Callable[[Tensor, Generator], Tensor]
TIMBRES: Mapping[str, Timbre] = {
    "harmonics": _harmonics,
    "sawtooth": _sawtooth,
    "square": _square,
    "plucked": _plucked,
}
OTHERS = ("sawtooth", "square", "plucked")  # nothing is healed on these
