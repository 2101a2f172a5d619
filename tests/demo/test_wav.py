"""Wav files of every width, rate and number of channels; others are refused in one sentence."""

import struct
import wave

import numpy as np
import pytest
import torch

from bondwise.demo import pitch
from bondwise.demo.wav import framed, read_wav, resampled
from bondwise.errors import DataError


def write(path, samples, rate=16_000, width=2):
    """Samples (count, channels) in -1 to 1, by struct alone."""
    low, high = -(2 ** (8 * width - 1)), 2 ** (8 * width - 1) - 1
    whole = np.clip(np.round(np.asarray(samples) * -low), low, high).astype(int)
    held = b"".join(
        struct.pack("B", value + 128) if width == 1 else struct.pack("<i", value)[:width]
        for value in whole.ravel()
    )
    with wave.open(str(path), "wb") as file:
        file.setnchannels(whole.shape[1] if whole.ndim == 2 else 1)
        file.setsampwidth(width)
        file.setframerate(rate)
        file.writeframes(held)
    return path


@pytest.mark.parametrize("width", [1, 2, 3, 4])
def test_samples_come_back_with_channels_averaged(tmp_path, width):
    sound = np.random.default_rng(width).uniform(-1, 1, (50, 2))
    sound[0], sound[1] = -1, 0
    read, rate = read_wav(write(tmp_path / "a.wav", sound, 44_100, width))
    assert rate == 44_100
    step = 2.0 ** (1 - 8 * width)
    assert np.abs(read.numpy() - sound.mean(1)).max() <= step + 1e-6
    assert read[0] == -1


@pytest.mark.parametrize("rate", [8_000, 11_025, 22_050, 44_100, 48_000, 44_099])
def test_a_tone_stays_the_tone_at_another_rate(rate):
    """Against the sine itself at 16 kHz, away from the ends; what cannot be held is gone."""
    at = np.arange(rate // 2) / rate
    heard = resampled(torch.tensor(np.sin(2 * np.pi * 440 * at + 0.3), dtype=torch.float32), rate)
    assert len(heard) == 8000 if rate != 11_025 else abs(len(heard) - 8000) <= 1
    exact = np.sin(2 * np.pi * 440 * np.arange(len(heard)) / 16_000 + 0.3)
    assert np.abs(heard.numpy() - exact)[200:-200].max() < 1e-3
    if rate > 20_000:
        high = torch.tensor(np.sin(2 * np.pi * 9_000 * at), dtype=torch.float32)
        assert resampled(high, rate)[200:-200].abs().max() < 0.01


def test_frames_are_centred_on_each_10_ms():
    sound = torch.zeros(1600)
    sound[800] = 1.0
    frames = framed(sound)
    assert frames.shape == (11, 1024)
    assert [int(frame.argmax()) for frame in frames[3:8]] == [832, 672, 512, 352, 192]
    assert frames.std(1)[3:8].tolist() == pytest.approx([1] * 5, abs=1e-4)
    assert framed(torch.zeros(1600)).abs().max() == 0
    assert len(framed(torch.zeros(1))) == 1
    assert pitch.HOP == 160


def odd(path, kind):
    write(path, np.zeros(10))
    held = bytearray(path.read_bytes())
    if kind == "float":
        held[20:22] = struct.pack("<H", 3)
    if kind == "no wav":
        held = bytearray(b"ID3" + bytes(100))
    if kind == "cut":
        held = held[:30]
    if kind == "no samples":
        write(path, np.zeros(0))
        return
    path.write_bytes(bytes(held))


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ("float", "no wav with plain samples .unknown format: 3.; write it as one: ffmpeg"),
        ("no wav", "no wav with plain samples .file does not start with RIFF id.; write"),
        ("cut", "no wav with plain samples .*; write it as one: ffmpeg"),
        ("no samples", "holds no samples; give a wav with sound"),
        ("folder", "no wav with plain samples .*; write it"),
        ("nothing", "There is no file .*; give the path of a wav"),
    ],
)
def test_another_file_is_refused(tmp_path, kind, said):
    path = tmp_path / "a.wav"
    if kind == "folder":
        path.mkdir()
    elif kind != "nothing":
        odd(path, kind)
    with pytest.raises(DataError, match=said) as raised:
        read_wav(path)
    assert "\n" not in str(raised.value)
