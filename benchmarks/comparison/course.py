"""Perplexity over dense against minutes, one line per healing, as one SVG."""

from collections.abc import Mapping
from functools import partial
from math import ceil, floor

from comparison import sheet
from comparison.sheet import HEIGHT, TOP, WIDTH, Line

STEP = 0.1  # of the vertical axis


def svg(panels: Mapping[str, Mapping[str, Line]], title: str) -> str:
    """Panels side by side, with one axis of minutes and each with its own vertical one."""
    minutes = ceil(max(x for lines in panels.values() for ln in lines.values() for x, _ in ln))
    return sheet.side_by_side(panels, title, partial(_panel, minutes=minutes))


def _panel(
    name: str, lines: Mapping[str, Line], left: float, strokes: Mapping[str, str], minutes: int
) -> list[str]:
    heights = [ratio for ln in lines.values() for _, ratio in ln]
    low, high = floor(min(heights) / STEP), ceil(max(heights) / STEP)

    def place(minute: float, ratio: float) -> tuple[float, float]:
        across = left + 14 + (WIDTH - 28) * minute / minutes
        return across, TOP + HEIGHT * (high - ratio / STEP) / max(high - low, 1)

    parts = [sheet.heading(name, left), sheet.axis("minutes of steps", left)]
    for k in range(low, high + 1):
        parts += sheet.level(left, place(0, k * STEP)[1], f"{k * STEP:.1f}", bold=k * STEP == 1)
    every = max(1, round(minutes / 7))
    parts += [sheet.below(place(k, 1)[0], str(k)) for k in range(0, minutes + 1, every)]
    return parts + [
        sheet.line(label, [place(*point) for point in ln], strokes[label])
        for label, ln in lines.items()
    ]
