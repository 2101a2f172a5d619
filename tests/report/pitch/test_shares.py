"""The table and the picture of what is heard."""

import re

import pytest

from bondwise.report.pitch.shares import figures, heard, picture, pitch
from bondwise.report.table import render
from report.parts import Parts


def test_the_table_fits_a_terminal_and_says_what_its_columns_are(report):
    lines = render(heard(report)).splitlines()
    assert max(map(len, lines)) <= 80
    assert lines[:2] == ["CREPE", "1 of 2 parameters as tensor networks"]
    rows = [re.split(r" {2,}", line.strip()) for line in lines if " % " in line and "MB" in line]
    assert rows == [
        ["CREPE", "22.2 M", "89.0 MB", "99.2 %", "93.2 %", "100.0 %", "2.5", "2.990"],
        ["ours", "2.2 M", "8.9 MB", "98.5 %", "94.8 %", "99.8 %", "2.5", "0.400"],
        ["CREPE tiny", "486.6 k", "1.9 MB", "95.8 %", "88.0 %", "95.0 %", "2.5", "0.120"],
    ]
    text = "\n".join(lines)
    for part in (
        "of 400 sounds each",
        "others  sounds of others",
        "32 frames at once, 2 threads;",
        "last takes 1.610",
    ):
        assert part in text
    assert "clean -0.8 (-1.3 to -0.3); 0 dB 1.5 (1.0 to 2.0); others -0.2 (-0.7 to 0.3)" in text


def test_the_picture_places_each_share_between_its_ends(report):
    drawn = picture(report["pitch"])
    places = {tip: float(re.match(r"M([\d.]+)", d)[1]) for d, tip in tips(drawn)}
    assert len(places) == 9
    dense, tiny = (
        places["CREPE, sounds of others: 100.0 %"],
        places["CREPE tiny, sounds of 0 dB: 88.0 %"],
    )
    ours = places["ours, sounds of 0 dB: 94.8 %"]
    assert dense == pytest.approx(746)  # the right end is all of them
    assert (ours - tiny) / (dense - tiny) == pytest.approx((0.9475 - 0.88) / 0.12, abs=1e-3)
    (line,) = [d for d in Parts(drawn).values("d") if re.fullmatch(r"M[\d.]+ 51H[\d.]+", d)]
    left, right = (float(x) for x in re.findall(r"[MH]([\d.]+)", line))
    assert left < ours < right


def tips(drawn):
    return re.findall(r'd="([^"]+)" data-tip="([^"]+)"', drawn)


def test_the_page_has_both_and_is_empty_without(report):
    texts = " ".join(Parts(pitch(report)).texts)
    assert "22.2 M" in texts
    assert "1.5 (1.0 to 2.0)" in texts
    assert pitch({}) == ""
    said = " ".join(" ".join(Parts(each).texts) for each in figures(report))
    assert "98.5 %" in said
    assert "7.5 x" in said
    assert "dense 99.2 %, CREPE tiny 95.8 %" in said
