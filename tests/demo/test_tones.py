"""Tones have the pitch that they are said to have, by their spectrum alone, and the noise too."""

from math import log

import numpy as np
import pytest
import torch

from bondwise.demo.tones import FRAME, OTHERS, RATE, TIMBRES, lessons, tones


def strength(frames, hertz):
    """How much of each frame's energy harmonics of a pitch explain, by least squares in numpy."""
    found = []
    for frame, pitch in zip(np.asarray(frames, float), np.asarray(hertz, float), strict=True):
        orders = np.arange(1, int(RATE / 2 / pitch) + 1)
        angle = 2 * np.pi * pitch / RATE * np.outer(np.arange(FRAME), orders)
        basis = np.concatenate([np.sin(angle), np.cos(angle), np.ones((FRAME, 1))], 1)
        rest = frame - basis @ np.linalg.lstsq(basis, frame, rcond=None)[0]
        found.append(1 - (rest**2).sum() / (frame**2).sum())
    return np.array(found)


@pytest.mark.parametrize("timbre", TIMBRES)
def test_a_tone_is_made_of_harmonics_of_its_pitch_and_of_no_other(timbre):
    made = tones(14, seed=3, timbre=timbre)
    there = strength(made.frames, made.hertz)
    if timbre == "plucked":  # a string's harmonics die away within the frame, each in its own time
        assert np.median(there) > 0.97
    else:
        assert there.min() > 0.99999
    for cents in (-5, 5):
        off = strength(made.frames, made.hertz * 2 ** (cents / 1200))
        assert off.mean() < there.mean() - 0.02
    third = strength(made.frames, made.hertz * 2 ** (1 / 3))  # of an octave: no harmonics in common
    high = made.hertz.numpy() > 200  # below, a frame of 64 ms tells the harmonics less well apart
    assert third[high].max() < 0.8


def test_pitches_are_log_uniform_and_frames_are_what_the_network_wants():
    made = tones(2000, seed=0)
    place = (made.hertz / 60).log() / log(1000 / 60)
    counts = torch.histc(place, 10, 0, 1)
    assert counts.sum() == 2000
    assert (counts - 200).abs().max() < 60  # four deviations
    assert made.frames.mean(1).abs().max() < 1e-5
    assert (made.frames.std(1) - 1).abs().max() < 1e-4
    assert tuple(made.frames.shape) == (2000, FRAME)
    assert torch.equal(tones(5, 1).frames, tones(5, 1).frames)
    assert not torch.equal(tones(5, 1).frames, tones(5, 2).frames)


@pytest.mark.parametrize("level", [0.0, 12.0])
def test_noise_is_at_its_level_and_white(level):
    clean = tones(300, seed=5)
    noisy = tones(300, seed=5, noise=level)
    assert torch.equal(clean.hertz, noisy.hertz)
    along = (clean.frames * noisy.frames).mean(1)  # of deviation 1 each: the tone's part
    assert 20 * float((along / (1 - along**2).sqrt()).mean().log10()) == pytest.approx(
        level, abs=0.3
    )
    rest = noisy.frames - along[:, None] * clean.frames
    power = torch.fft.rfft(rest).abs().square().mean(0)[1:-1].reshape(-1, 73).mean(1)
    assert power.max() / power.min() < 1.2


def test_lessons_are_of_harmonics_alone_at_every_level_and_some_are_noise():
    shown = lessons(400, seed=2, alone=0.1)
    assert tuple(shown.shape) == (400, FRAME)
    whole = torch.fft.rfft(shown).abs().square()
    peaks = whole.max(1).values / whole.sum(1)
    noise = (peaks < 0.03).double().mean()
    assert 0.02 < noise < 0.2
    assert (peaks > 0.2).double().mean() > 0.5
    tonal = lessons(400, seed=2)
    assert (tonal != shown).any(1).double().mean() == pytest.approx(0.1, abs=0.06)
    assert "harmonics" not in OTHERS
    assert set(OTHERS) < set(TIMBRES)
