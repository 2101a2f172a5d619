"""Notes and speech for judging: written as MIDI, played and spoken by others."""

import struct

import numpy as np
import pytest
import torch
from comparison import sounds

from bondwise.demo.tones import FRAME, RATE

spoken = pytest.mark.skipif(not sounds.there(), reason=sounds.NEEDED)


def test_a_sheet_has_each_note_once_in_its_time():
    """Read back byte by byte, as the standard of MIDI files (1988) says."""
    played = [(0, 60, 100), (73, 72, 51)]
    sheet = sounds.midi(played)
    kind, size, form, tracks, ticks = struct.unpack(">4sIHHH", sheet[:14])
    assert (kind, size, form, tracks, ticks) == (b"MThd", 6, 0, 1, 1000)
    assert struct.unpack(">4sI", sheet[14:22]) == (b"MTrk", len(sheet) - 22)
    at, now, events = 22, 0, []
    while at < len(sheet):
        wait = 0
        while True:
            wait, more, at = wait << 7 | sheet[at] & 0x7F, sheet[at] & 0x80, at + 1
            if not more:
                break
        now += wait
        size = {0xC0: 2, 0x90: 3, 0x80: 3}.get(sheet[at]) or 3 + sheet[at + 2]
        events.append((now, sheet[at : at + size]))
        at += size
    assert [e for e in events if e[1][0] != 0xFF] == [
        (0, b"\xc0\x00"), (0, b"\x90\x3c\x64"), (500, b"\x80\x3c\x00"),
        (750, b"\xc0\x49"), (750, b"\x90\x48\x33"), (1250, b"\x80\x48\x00"),
    ]  # fmt: skip
    assert events[-1][1] == b"\xff\x2f\x00"


@spoken
def test_notes_sound_at_the_pitch_of_their_keys():
    """By autocorrelation of the samples: a period later most notes look the same."""
    made = sounds.notes(60, seed=4)
    assert tuple(made.frames.shape) == (60, FRAME)
    assert 60 < float(made.hertz.min()) < float(made.hertz.max()) < 1000
    alike = [_alike(f, h) for f, h in zip(made.frames.numpy(), made.hertz.tolist(), strict=True)]
    off = [
        _alike(f, h * 2 ** (4 / 12))
        for f, h in zip(made.frames.numpy(), made.hertz.tolist(), strict=True)
    ]
    assert np.median(alike) > 0.9
    assert np.median(off) < 0.5
    assert torch.equal(sounds.notes(60, seed=4).frames, made.frames)


def _alike(frame, hertz):
    lag = RATE / hertz
    at = np.arange(FRAME - int(lag) - 2)
    later = np.interp(at + lag, np.arange(FRAME), frame)
    return np.corrcoef(frame[: len(at)], later)[0, 1]


@spoken
def test_speech_is_half_a_minute_and_more_of_frames():
    heard = sounds.speech()
    assert heard.shape[1] == FRAME
    assert 3000 < len(heard) < 20_000
    assert bool(torch.isfinite(heard).all())
