"""A wav file as the frames that a pitch network hears: read, resampled, framed."""

import wave
from math import ceil
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from bondwise.demo.pitch import HOP
from bondwise.demo.tones import FRAME, RATE, normal
from bondwise.errors import DataError

LOBES = 32  # of the sinc on either side of a sample
PIECE = 4096  # samples made at once


def read_wav(path: Path) -> tuple[Float[Tensor, " samples"], int]:
    """The samples of a PCM file, its channels averaged, in -1 to 1; and how many a second.

    Raises:
        DataError: there is no such file, it is no PCM wav, or nothing is in it.
    """
    try:
        with wave.open(str(path), "rb") as file:
            channels, width, rate = file.getnchannels(), file.getsampwidth(), file.getframerate()
            held = file.readframes(file.getnframes())
    except FileNotFoundError as error:
        raise DataError(f"There is no file {path}; give the path of a wav.") from error
    except (OSError, EOFError, wave.Error) as error:
        raise DataError(
            f"{path} is no wav with plain samples ({error or 'it ends too early'}); write it as "
            "one: ffmpeg -i FILE -c:a pcm_s16le sound.wav."
        ) from error
    whole = len(held) // (channels * width) * channels * width
    if not whole or not rate:
        raise DataError(f"{path} holds no samples; give a wav with sound in it.")
    return _samples(held[:whole], width).reshape(-1, channels).mean(1), rate


def _samples(held: bytes, width: int) -> Tensor:
    """Numbers in -1 to 1; 8 bits are unsigned in a wav, 16, 24 and 32 signed, the lowest first."""
    raw = np.frombuffer(held, np.uint8).reshape(-1, width)
    if width == 1:
        return torch.from_numpy((raw[:, 0].astype(np.float32) - 128) / 128)
    wide = np.zeros((len(raw), 4), np.uint8)
    wide[:, 4 - width :] = raw
    return torch.from_numpy((wide.view("<i4")[:, 0] / 2.0**31).astype(np.float32))


def resampled(
    sound: Float[Tensor, " samples"], rate: int, to: int = RATE
) -> Float[Tensor, " resampled"]:
    """The same sound at another rate: a sinc in a Hann window, below half of the lower rate.

    >>> tuple(resampled(torch.randn(441), 44_100).shape)
    (160,)
    """
    if rate == to:
        return sound
    pass_ = min(1.0, to / rate)  # of half of the rate that came
    reach = ceil(LOBES / pass_)
    near = torch.arange(-reach, reach + 1, dtype=torch.float64)
    padded = torch.nn.functional.pad(sound.double(), (reach, reach + 1))
    parts: list[Tensor] = []
    count = max(1, round(len(sound) * to / rate))
    for start in range(0, count, PIECE):
        place = torch.arange(start, min(start + PIECE, count), dtype=torch.float64) * rate / to
        whole = place.floor()
        away = near + (whole - place)[:, None]
        window = torch.cos(torch.pi / 2 * (away / (reach + 1)).clamp(-1, 1)) ** 2
        taps = pass_ * torch.sinc(pass_ * away) * window
        at = whole.long()[:, None] + torch.arange(2 * reach + 1)
        parts.append((taps * padded[at.clamp_max(len(padded) - 1)]).sum(1))
    return torch.cat(parts).float()


def framed(sound: Float[Tensor, " samples"]) -> Float[Tensor, "count 1024"]:
    """A frame each 10 ms, centred there, at mean 0 and deviation 1; before and after is silence.

    >>> tuple(framed(torch.randn(16_000)).shape)
    (101, 1024)
    """
    padded = torch.nn.functional.pad(sound, (FRAME // 2, FRAME // 2))
    return normal(padded.unfold(0, FRAME, HOP))
