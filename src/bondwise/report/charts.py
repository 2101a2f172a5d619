"""Curves along the depth of a model, one per kind of weight, as inline SVG."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import ceil, floor, isfinite, log10

from bondwise.report.markup import Markup, el, join, lines
from bondwise.report.units import Number

WIDE, HIGH = 460, 270
LEFT, TOP, BOTTOM = 40, 12, 34
SERIES = 8


@dataclass(frozen=True)
class Point:
    """A value at a depth, and what to say when someone points at it."""

    depth: int
    value: Number
    tip: str


@dataclass(frozen=True)
class Axis:
    """What the depth counts, and how many there are."""

    name: str
    length: int


def chart(
    title: str, series: dict[str, list[Point]], axis: Axis, top: Number | None = None
) -> Markup | None:
    """Values against depth, a labelled curve per series; ``top`` fixes the end of the axis.

    None where there is no finite value to draw.
    """
    shown = {
        name: [point for point in points if isfinite(point.value)]
        for name, points in series.items()
    }
    values = [point.value for points in shown.values() for point in points]
    if not values:
        return None
    high = top or max(values) or 1
    step = _step(high)
    margin = max(len(name) for name in shown) * 6.5 + 12
    frame = _Frame(max(axis.length - 1, 1), step * ceil(high / step - 1e-9), WIDE - margin)
    curves = [
        _curve(points, k % SERIES, frame) for k, points in enumerate(shown.values()) if points
    ]
    body = join([*_grid(frame, step, axis), *curves, *_ends(shown, frame)])
    kinds = ", ".join(name for name, points in shown.items() if points)
    return el(
        "figure",
        el("figcaption", title),
        el(
            "svg",
            el("title", f"{title}, for {kinds}"),
            body,
            viewBox=f"0 0 {WIDE} {HIGH}",
            role="img",
        ),
        class_="chart",
    )


@dataclass(frozen=True)
class _Frame:
    last: int
    high: Number
    right: Number

    def x(self, depth: Number) -> float:
        return LEFT + 6 + (self.right - LEFT - 12) * depth / self.last

    def y(self, value: Number) -> float:
        return HIGH - BOTTOM - (HIGH - TOP - BOTTOM) * value / self.high


def _step(high: Number) -> float:
    """A round step that cuts the axis into four to eight."""
    power = 10.0 ** floor(log10(high))
    return next(m * power for m in (0.1, 0.2, 0.25, 0.5, 1, 2) if high / (m * power) <= 6.001)


def _grid(frame: _Frame, step: Number, axis: Axis) -> list[Markup]:
    ticks = [k * step for k in range(round(frame.high / step) + 1)]
    parts = [
        part
        for tick in ticks
        for part in (
            el("path", d=f"M{LEFT} {frame.y(tick):.4g}H{frame.right:.4g}", class_="grid"),
            el("text", f"{tick:g}", x=LEFT - 6, y=frame.y(tick) + 4, text_anchor="end"),
        )
    ]
    depth = axis.length
    every = max(1, ceil(depth / 7 / 5) * 5) if depth > 8 else 1
    parts += [
        el("text", str(k), x=frame.x(k), y=HIGH - BOTTOM + 16, text_anchor="middle")
        for k in range(0, depth, every)
    ]
    middle = (LEFT + frame.right) / 2
    return [*parts, el("text", axis.name, x=middle, y=HIGH - 3, text_anchor="middle")]


def _curve(points: Sequence[Point], k: int, frame: _Frame) -> Markup:
    path = [(frame.x(point.depth), frame.y(point.value)) for point in points]
    marks = [
        el("path", d=mark(k, x, y), data_tip=point.tip)
        for (x, y), point in zip(path, points, strict=True)
    ]
    line = el("polyline", points=lines(*path)) if len(path) > 1 else None
    return el("g", line, *marks, class_=f"series k{k}")


def mark(k: int, x: Number, y: Number) -> str:
    """A mark there, as a path. Shapes differ, so that curves are told apart without colour."""
    place = f"M{x:.5g} {y:.5g}"
    shapes = (
        "m-3 0a3 3 0 1 0 6 0a3 3 0 1 0 -6 0z",
        "m-2.6 -2.6h5.2v5.2h-5.2z",
        "m0 -3.6l3.4 6h-6.8z",
        "m0 -3.8l3.8 3.8l-3.8 3.8l-3.8 -3.8z",
        "m0 3.6l3.4 -6h-6.8z",
        "m-3.4 -1.2h2.2v-2.2h2.4v2.2h2.2v2.4h-2.2v2.2h-2.4v-2.2h-2.2z",
        "m-1.5 -3.6h3v7.2h-3z",
        "m-3.6 -1.5h7.2v3h-7.2z",
    )
    return place + shapes[k]


def _ends(series: dict[str, list[Point]], frame: _Frame) -> list[Markup]:
    """The name of each curve at its right end, pushed apart where two would touch."""
    ends = sorted(
        (frame.y(points[-1].value), k, name)
        for k, (name, points) in enumerate(series.items())
        if points
    )
    heights = _apart([y for y, _, _ in ends])
    return [
        el("text", name, x=frame.right + 4, y=y + 4, class_=f"end k{k % SERIES}")
        for y, (_, k, name) in zip(heights, ends, strict=True)
    ]


def _apart(heights: Sequence[Number], gap: Number = 13) -> list[Number]:
    """The heights, moved as little as it takes to be a gap apart and inside the frame.

    >>> _apart([100, 101, 150], gap=10)
    [95.5, 105.5, 150.0]
    """
    placed = list(heights)
    for _ in range(200):
        crowded = [k for k, (a, b) in enumerate(pairwise(placed)) if b - a < gap - 1e-6]
        if not crowded:
            break
        for k in crowded:
            push = (gap - (placed[k + 1] - placed[k])) / 2
            placed[k], placed[k + 1] = placed[k] - push, placed[k + 1] + push
    over = max(0.0, placed[-1] - (HIGH - BOTTOM)) if placed else 0.0
    return [y - over for y in placed]
