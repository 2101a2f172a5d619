"""Sounds that no network of ours was healed or tuned on: instruments, and speech.

Notes of a General MIDI sound font by fluidsynth, sentences by espeak-ng. Debian's packages
fluidsynth, timgm6mb-soundfont and espeak-ng have all three.
"""

import random
import shutil
import struct
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from bondwise.demo.tones import FRAME, RATE, Tones, normal
from bondwise.demo.wav import framed, read_wav, resampled

FONT = Path("/usr/share/sounds/sf2/TimGM6mb.sf2")
NEEDED = "apt-get install fluidsynth timgm6mb-soundfont espeak-ng"
# Piano, guitar, bass, solo strings, brass, reeds and pipes: played one note at a time and in tune.
PROGRAMS = (0, 1, 24, 25, 26, 32, 33, 40, 41, 42, 56, 57, 60, 64, 65, 66, 67, 68, 70, 71, 73, 74)
KEYS = (36, 83)  # C2 to B5: 65 to 988 Hz
EACH, HELD = 0.75, 0.5  # seconds from note to note, and that a key is down
TICKS = 1000  # of a quarter, which is a second here
VOICES = ("en-us", "en-us+f3", "en-gb", "en-gb+m4")
SENTENCES = (
    "The north wind and the sun were arguing which of the two was the stronger.",
    "A traveller came along the road, wrapped in a warm cloak.",
    "They agreed that the one who first made him take it off should win.",
    "Then the north wind blew as hard as he could, but the more he blew, the closer was the cloak.",
    "At last the north wind gave up, and the sun shone out warmly.",
    "So he had to confess, did he not, that the sun was the stronger of the two?",
)


def notes(count: int, seed: int, *, noise: float | None = None) -> Tones:
    """Frames of so many notes, each of a random instrument, key, strength and moment.

    A frame begins 0.1 to 0.4 seconds after its key was struck.

    Args:
        count: how many.
        seed: of every random choice.
        noise: the level above white noise in dB; None for none.
    """
    drawn = random.Random(seed)
    played = [
        (drawn.choice(PROGRAMS), drawn.randint(*KEYS), drawn.randint(50, 120)) for _ in range(count)
    ]
    with tempfile.TemporaryDirectory() as folder:
        sheet, sound = Path(folder) / "notes.mid", Path(folder) / "notes.wav"
        sheet.write_bytes(midi(played))
        dry = ["-R", "0", "-C", "0", "-g", "0.5"]  # no reverb, no chorus: one pitch at a time
        out = ["-q", "-n", "-i", "-r", str(RATE), "-F", str(sound)]
        _call("fluidsynth", *dry, *out, str(FONT), str(sheet))
        samples, rate = read_wav(sound)
    assert rate == RATE
    starts = [round(RATE * (EACH * k + drawn.uniform(0.1, 0.4))) for k in range(count)]
    frames = normal(torch.stack([samples[at : at + FRAME] for at in starts]))
    if noise is not None:
        random_ = torch.Generator().manual_seed(seed)
        hiss = normal(torch.randn(frames.shape, generator=random_))
        frames = normal(frames + 10 ** (-noise / 20) * hiss)
    keys = torch.tensor([float(key) for _, key, _ in played])
    return Tones(frames, 440 * 2 ** ((keys - 69) / 12))


def midi(played: Sequence[tuple[int, int, int]]) -> bytes:
    """A file of one track: (program, key, strength) of each note, one after the other."""
    quarter = struct.pack(">I", 1_000_000)[1:]  # microseconds
    events = [b"\x00\xff\x51\x03" + quarter]
    rest = 0
    for program, key, strength in played:
        events += [
            _delta(rest) + bytes([0xC0, program]),
            _delta(0) + bytes([0x90, key, strength]),
            _delta(round(HELD * TICKS)) + bytes([0x80, key, 0]),
        ]
        rest = round((EACH - HELD) * TICKS)
    events.append(_delta(rest + TICKS) + b"\xff\x2f\x00")
    track = b"".join(events)
    head = struct.pack(">4sIHHH", b"MThd", 6, 0, 1, TICKS)
    return head + struct.pack(">4sI", b"MTrk", len(track)) + track


def _delta(ticks: int) -> bytes:
    """A number in sevens of bits, the highest first."""
    found = [ticks & 0x7F]
    while ticks := ticks >> 7:
        found.append(ticks & 0x7F | 0x80)
    return bytes(reversed(found))


def speech() -> Tensor:
    """Frames of six sentences in four voices, one each 10 ms."""
    heard: list[Tensor] = []
    with tempfile.TemporaryDirectory() as folder:
        sound = Path(folder) / "said.wav"
        for voice in VOICES:
            for sentence in SENTENCES:
                _call("espeak-ng", "-v", voice, "-w", str(sound), sentence)
                samples, rate = read_wav(sound)
                heard.append(framed(resampled(samples, rate)))
    return torch.cat(heard)


def there() -> bool:
    """Whether this machine has what makes them."""
    return all(map(shutil.which, ("fluidsynth", "espeak-ng"))) and FONT.is_file()


def _call(*words: str) -> None:
    """Run a program.

    Raises:
        SystemExit: it is not there, or fails.
    """
    if shutil.which(words[0]) is None:
        raise SystemExit(f"There is no {words[0]}; write {NEEDED}.")
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{words[0]} failed: {done.stderr.strip()[-200:]}")
