"""Perplexity over dense against minutes, one line per healing, as one SVG."""

from collections.abc import Mapping, Sequence
from math import ceil, floor

from comparison.sheet import (
    GAP,
    HEIGHT,
    LEFT,
    TOP,
    WIDTH,
    axis,
    below,
    heading,
    level,
    line,
    sheet,
    stroke,
)

Line = Sequence[tuple[float, float]]  # (minutes, perplexity over dense)
STEP = 0.1  # of the vertical axis


def svg(panels: Mapping[str, Mapping[str, Line]], title: str) -> str:
    """Panels side by side, each with its own vertical axis, and one legend."""
    names = list(dict.fromkeys(name for panel in panels.values() for name in panel))
    strokes = {name: stroke(k) for k, name in enumerate(names)}
    minutes = ceil(max(x for panel in panels.values() for ln in panel.values() for x, _ in ln))
    drawn = list[str]()
    for number, (name, lines) in enumerate(panels.items()):
        drawn += _panel(name, lines, LEFT + number * (WIDTH + GAP + LEFT), minutes, strokes)
    return sheet(title, drawn, strokes, LEFT + len(panels) * (WIDTH + GAP + LEFT))


def _panel(
    name: str, lines: Mapping[str, Line], left: float, minutes: int, strokes: Mapping[str, str]
) -> list[str]:
    heights = [ratio for ln in lines.values() for _, ratio in ln]
    low, high = floor(min(heights) / STEP), ceil(max(heights) / STEP)

    def place(minute: float, ratio: float) -> tuple[float, float]:
        across = left + 14 + (WIDTH - 28) * minute / minutes
        return across, TOP + HEIGHT * (high - ratio / STEP) / max(high - low, 1)

    parts = [heading(name, left), axis("minutes of steps", left)]
    for k in range(low, high + 1):
        parts += level(left, place(0, k * STEP)[1], f"{k * STEP:.1f}", bold=k * STEP == 1)
    every = max(1, round(minutes / 7))
    parts += [below(place(k, 1)[0], str(k)) for k in range(0, minutes + 1, every)]
    return parts + [
        line(label, [place(*point) for point in ln], strokes[label]) for label, ln in lines.items()
    ]
