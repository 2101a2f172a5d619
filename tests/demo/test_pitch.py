"""From activations to pitch, and from errors to shares with an interval that holds what it says."""

import numpy as np
import pytest
import torch
from torch import nn

from bondwise.demo import pitch
from bondwise.demo.tones import FRAME, Tones, tones


def test_the_pitch_is_the_mean_over_nine_bins_around_the_strongest():
    drawn = torch.rand(50, 360, generator=torch.Generator().manual_seed(0))
    drawn[0, 0] = drawn[1, 359] = 2.0  # at the ends fewer
    found = pitch.pitch(drawn)
    for row, got in zip(drawn.double().numpy(), found, strict=True):
        top = int(row.argmax())
        near = range(max(top - 4, 0), min(top + 5, 360))
        wanted = sum(row[k] * (20 * k + 1997.3794084376191) for k in near) / row[[*near]].sum()
        assert float(got) == pytest.approx(wanted, abs=1e-6)
    assert float(pitch.hertz(pitch.cents(torch.tensor(440.0)))) == pytest.approx(440, abs=1e-3)


class Ear(nn.Module):
    """Hears pitch by counting sign changes: right for pure tones."""

    def __init__(self, off: float = 0.0):
        super().__init__()
        self.off, self.rows = off, []

    def forward(self, frames):
        self.rows.append(len(frames))
        turns = (frames[:, 1:].sign() != frames[:, :-1].sign()).sum(1)
        cents = pitch.cents(turns * 16_000 / 2 / FRAME) + self.off
        bins = torch.arange(360) * 20 + pitch.FIRST
        return torch.exp(-((bins - cents[:, None]) ** 2) / 1250)


def test_models_are_judged_on_the_same_tones_some_at_a_time():
    hertz = torch.linspace(300, 1000, 70)
    sines = torch.sin(2 * torch.pi / 16_000 * hertz[:, None] * torch.arange(FRAME))
    told = []
    ears = {"right": Ear(), "off": Ear(70.0)}
    found = pitch.judged(ears, {"sines": Tones(sines, hertz)}, lambda *done: told.append(done))
    assert ears["off"].rows == [32, 32, 6]
    assert told[-1] == (140, 140)
    assert sorted(told) == told
    assert pitch.share(found["right"]["sines"]) == 1.0
    assert pitch.share(found["off"]["sines"]) < 0.2
    assert float(found["off"]["sines"].median()) == pytest.approx(70, abs=10)
    assert len(pitch.activations(ears["off"], torch.zeros(0, FRAME))) == 0


def test_the_interval_of_paired_shares_holds_the_truth_19_times_in_20():
    """Counted over drawn pairs: of 400 tones one model hears 98.5 %, the other 99.2 %."""
    random = np.random.default_rng(0)
    ours, theirs, held = 0.005, 0.012, 0  # the shares that only one of the two hears
    drawn = random.multinomial(400, [ours, theirs, 1 - ours - theirs], 2000)
    for won, lost, _ in drawn:
        first, other = torch.zeros(400), torch.zeros(400)
        other[:won], first[won : won + lost] = 99.0, 99.0
        got = pitch.paired(first, other)
        assert got.difference == pytest.approx((won - lost) / 400)
        held += got.low <= ours - theirs <= got.high
    assert 0.94 < held / len(drawn) < 0.985


def test_the_pace_is_seconds_of_one_second_of_sound():
    class Slow(nn.Module):
        def forward(self, frames):
            spent = frames.sum()
            for _ in range(400):
                spent = spent + torch.ones(200, 200).sum()
            return spent

    slow, fast = pitch.pace([Slow(), nn.Identity()], rounds=3).seconds
    assert slow > 10 * fast > 0
    whole = pitch.pace([Slow()], rounds=3, batch=100)
    assert whole.batch == 100
    assert whole.threads == torch.get_num_threads()
    assert whole.seconds[0] < slow  # a call is of 100 frames, so of a whole second
    assert tones(1, 0).frames.shape == (1, FRAME)
