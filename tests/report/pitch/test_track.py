"""The track of a sound: lines where a model is sure, at the height of their pitch."""

import re

import pytest

from bondwise.report.pitch.track import HIGH, WIDE, note, track
from report.parts import Parts


def runs(html, k):
    (group,) = re.findall(rf'<g class="pitch k{k}">(.*?)</g>', html)
    lines = re.findall(r'points="([^"]+)"', group)
    return [[tuple(map(float, point.split(","))) for point in line.split()] for line in lines]


def test_lines_are_drawn_where_a_model_is_sure(report):
    html = track(report)
    Parts(html)
    (dense,), (ours,) = runs(html, 6), runs(html, 0)
    assert (len(dense), len(ours)) == (100, 80)
    assert (dense[0][0], dense[-1][0]) == (40, WIDE)
    assert ours[0][0] == pytest.approx(40 + (WIDE - 40) * 20 / 99, abs=0.1)
    assert ours[:40] == dense[20:60]
    per_cent = (dense[0][1] - dense[-1][1]) / 99
    assert dense[70][1] - ours[50][1] == pytest.approx(70 * per_cent, abs=0.05)
    assert all(0 <= y <= HIGH for _, y in ours + dense)
    assert "in 50.0 % of the frames" in html
    assert "a&lt;b&gt;.wav, 1.0 s, a frame each 10 ms" in html


def test_a_jump_or_a_pause_ends_a_line(report):
    ours = report["pitch"]["track"]["models"][1]
    ours["cents"][50:] = [6800.0] * 50
    ours["sure"][70:72] = [0.1] * 2
    assert [len(run) for run in runs(track(report), 0)] == [30, 20, 28]


def test_silence_is_said(report):
    for model in report["pitch"]["track"]["models"]:
        model["sure"] = [0.0] * 100
    assert "No model heard a pitch in a&lt;b&gt;.wav" in track(report)
    assert track({}) == track({"pitch": {"track": None}}) == ""


def test_notes_have_their_names():
    a4 = 6551.317942364757
    assert [note(a4 + 100 * k) for k in (-10, -9, 0, 2, 3)] == ["B3", "C4", "A4", "B4", "C5"]
