"""The pitch of a sound over time, as two models hear it."""

from collections.abc import Mapping, Sequence
from itertools import pairwise
from math import ceil, floor
from typing import Any

from bondwise.report.groups import Report
from bondwise.report.markup import Markup, el, join, lines
from bondwise.report.units import Number, percent

WIDE, HIGH, LEFT, BOTTOM = 960, 320, 40, 30
SURE = 0.5  # a model that is less sure than this hears no pitch
JUMP = 200  # cents between two frames that are no longer one line
A4 = 6551.317942364757  # cents of 440 Hz above 10 Hz
NAMES = ("C", "C#", "D", "D#", "E", "F", "F#", "G", "G#", "A", "A#", "B")
COLOURS = (6, 0)

Told = Mapping[str, Any]


def track(report: Report) -> Markup:
    """A line for each model where it is sure, over time and notes; how often the two agree."""
    told: Told | None = (report.get("pitch") or {}).get("track")
    if not told:
        return Markup("")
    voiced = [
        [c if s >= SURE else None for c, s in zip(model["cents"], model["sure"], strict=True)]
        for model in told["models"]
    ]
    heard = [cents for line in voiced for cents in line if cents is not None]
    if not heard:
        return el("p", f"No model heard a pitch in {told['file']}.", class_="note")
    return join([_picture(told, voiced, heard), el("p", _agreement(told, voiced), class_="note")])


def _agreement(told: Told, voiced: Sequence[Sequence[Number | None]]) -> str:
    names = [model["name"] for model in told["models"]]
    both = [abs(a - b) for a, b in zip(*voiced, strict=True) if a is not None and b is not None]
    seconds = len(voiced[0]) * told["hop"]
    said = f"{told['file']}, {seconds:.1f} s, a frame each {1000 * told['hop']:.0f} ms."
    if not both:
        return f"{said} At no time did both hear a pitch."
    close = percent(sum(away <= 50 for away in both) / len(both))
    return (
        f"{said} Where both are sure of a pitch, {names[1]} is within half a semitone of "
        f"{names[0]} in {close} of the frames."
    )


def _picture(
    told: Told, voiced: Sequence[Sequence[Number | None]], heard: Sequence[Number]
) -> Markup:
    low = floor((min(heard) - 50) / 100) * 100
    high = ceil((max(heard) + 50) / 100) * 100
    last = max(len(voiced[0]) - 1, 1)

    def place(frame: Number, cents: Number) -> tuple[Number, Number]:
        right, top = WIDE - LEFT, HIGH - BOTTOM
        return LEFT + right * frame / last, top - (top - 8) * (cents - low) / (high - low)

    parts = [*_notes(low, high, place(0, low)[1]), *_seconds(last * told["hop"])]
    for k, line, wide in zip(COLOURS, voiced, (5, 1.8), strict=True):
        runs = [
            el("polyline", points=lines(*(place(*point) for point in run)), stroke_width=wide)
            for run in _runs(line)
        ]
        parts.append(el("g", *runs, class_=f"pitch k{k}"))
    for at, (k, model) in enumerate(zip(COLOURS, told["models"], strict=True)):
        name = str(model["name"])
        parts.append(el("text", name, x=LEFT + 8 + 120 * at, y=14, class_=f"end k{k}"))
    head = el("title", f"The pitch of {told['file']} over time")
    svg = el("svg", head, *parts, viewBox=f"0 0 {WIDE} {HIGH}", role="img")
    return el("figure", svg, class_="chart wide")


def _runs(line: Sequence[Number | None]) -> list[list[tuple[int, Number]]]:
    """Stretches that are heard without a jump; one frame alone is a line of no length.

    >>> _runs([None, 1000, 1010, None, 1020, 2000, 2010])
    [[(1, 1000), (2, 1010)], [(4, 1020), (4, 1020)], [(5, 2000), (6, 2010)]]
    """
    runs: list[list[tuple[int, Number]]] = []
    for (_, before), (frame, cents) in pairwise([(-1, None), *enumerate(line)]):
        if cents is None:
            continue
        if before is None or abs(cents - before) > JUMP:
            runs.append([])
        runs[-1].append((frame, cents))
    return [run if len(run) > 1 else run * 2 for run in runs]


def note(cents: Number) -> str:
    """The name of the nearest note, A4 at 440 Hz.

    >>> note(A4), note(A4 - 900), note(A4 + 300)
    ('A4', 'C4', 'C5')
    """
    key = round((cents - A4) / 100) + 69
    return f"{NAMES[key % 12]}{key // 12 - 1}"


def _notes(low: Number, high: Number, floor_: Number) -> list[Markup]:
    """A line for each note where there are few, for each C and G where there are many."""
    keys = range(ceil((low - A4) / 100), floor((high - A4) / 100) + 1)
    step = {True: (0, 2, 4, 5, 7, 9, 11), False: (0, 7)}[len(keys) <= 18]
    shown = [A4 + 100 * key for key in keys if (key + 9) % 12 in step]
    parts: list[Markup] = []
    for cents in shown:
        y = floor_ - (floor_ - 8) * (cents - low) / (high - low)
        parts.append(el("path", d=f"M{LEFT} {y:.5g}H{WIDE}", class_="grid"))
        parts.append(el("text", note(cents), x=LEFT - 6, y=y + 4, text_anchor="end"))
    return parts


def _seconds(whole: float) -> list[Markup]:
    """A number below each whole second, or each of a few."""
    step = max(1, ceil(whole / 12)) if whole > 2 else 0.25
    return [
        el("text", f"{k * step:g} s", x=LEFT + (WIDE - LEFT) * k * step / (whole or 1),
           y=HIGH - 8, text_anchor="middle")
        for k in range(floor(whole / step + 1e-9) + 1)
    ]  # fmt: skip
