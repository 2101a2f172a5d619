"""Bars on a terminal, lines elsewhere, nothing when quiet."""

import io
import sys

import pytest

from bondwise.progress import Bars


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def shown(stream, monkeypatch, quiet=False):
    monkeypatch.setattr(sys, "stderr", stream)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.delenv("NO_COLOR", raising=False)
    with Bars(quiet) as bars:
        bars("load", 0, 1)
        monkeypatch.setattr(sys, "stderr", io.StringIO())  # as while libraries are kept quiet
        bars("load", 1, 1)
        for k in range(1, 11):
            bars("calibrate", k, 10)
            if k == 5:
                bars._bars.refresh()
                half = stream.getvalue()
        assert sys.stderr.getvalue() == ""
    return half, stream.getvalue()


def test_a_terminal_sees_stages_counts_and_times(monkeypatch):
    half, whole = shown(Terminal(), monkeypatch)
    assert "5/10" in half
    assert "10/10" in whole
    assert "load" in whole
    assert "0:00 taken" in whole
    assert "1/1" not in whole


def test_elsewhere_each_stage_is_a_line_once_it_is_done(monkeypatch):
    half, whole = shown(io.StringIO(), monkeypatch)
    assert half.splitlines() == ["load: 0.0 s"]
    assert whole.splitlines() == ["load: 0.0 s", "calibrate: 10 steps, 0.0 s"]


@pytest.mark.parametrize("stream", [Terminal(), io.StringIO()])
def test_quiet_says_nothing(monkeypatch, stream):
    assert shown(stream, monkeypatch, quiet=True) == ("", "")


def test_time_left_is_told_once_the_pace_is_known(monkeypatch):
    stream = Terminal()
    monkeypatch.setattr(sys, "stderr", stream)
    monkeypatch.setenv("TERM", "xterm")
    clock = iter(range(0, 10_000, 7))
    with Bars() as bars:
        bars._bars.get_time = lambda: float(next(clock))
        for task in range(1, 6):
            bars("fit", task, 10)
        bars._bars.refresh()
    assert " left" in stream.getvalue()


def test_a_stage_that_comes_again_is_timed_anew(monkeypatch):
    stream, now = io.StringIO(), [0.0]
    monkeypatch.setattr(sys, "stderr", stream)
    with Bars() as bars:
        bars._bars.get_time = lambda: now[0]
        for done, now[0] in ((0, 0.0), (1, 2.0), (0, 100.0), (1, 103.0)):
            bars("load", done, 1)
    assert stream.getvalue().splitlines() == ["load: 2.0 s", "load: 3.0 s"]


def test_a_bar_that_comes_again_starts_empty(monkeypatch):
    monkeypatch.setattr(sys, "stderr", Terminal())
    monkeypatch.setenv("TERM", "xterm")
    with Bars() as bars:
        for done in (1, 4, 1):
            bars("calibrate", done, 4)
        (bar,) = bars._bars.tasks
        assert (bar.completed, bar.finished) == (1, False)
