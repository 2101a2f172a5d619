"""Perplexity over dense against keep, one line per method, as one SVG."""

import math
from collections.abc import Container, Mapping, Sequence
from html import escape

from comparison import sheet
from comparison.sheet import GAP, HEIGHT, LEFT, TOP, WIDTH, Line

MOST = 10.0  # what is above is drawn at the edge, hollow
TICKS = (1.0, 1.1, 1.2, 1.5, 2.0, 3.0, 5.0, 10.0)


def svg(
    panels: Mapping[str, Mapping[str, Line]],
    title: str,
    bold: Container[str] = (),
    dashed: Container[str] = (),
) -> str:
    """Panels side by side with common axes and one legend: panel -> method -> points."""
    methods = list(dict.fromkeys(name for panel in panels.values() for name in panel))
    strokes = {
        name: _stroke(sheet.COLOURS[k % len(sheet.COLOURS)], name in bold, name in dashed)
        for k, name in enumerate(methods)
    }
    points = [point for panel in panels.values() for line in panel.values() for point in line]
    keeps = sorted({keep for keep, _ in points})
    low = min(1.0, *(ratio for _, ratio in points))
    drawn = list[str]()
    for number, (name, lines) in enumerate(panels.items()):
        left = LEFT + number * (WIDTH + GAP)
        drawn += _axes(name, left, keeps, low, numbers=number == 0)
        drawn += [_line(ln, left, keeps, low, strokes[m], m) for m, ln in lines.items()]
    return sheet.svg(title, drawn, strokes, LEFT + len(panels) * (WIDTH + GAP))


def _stroke(colour: str, bold: bool, dashed: bool) -> str:
    dashes = ' stroke-dasharray="5 4"' if dashed else ""
    return f'stroke="{colour}" stroke-width="{3.5 if bold else 1.5}"{dashes}'


def _x(keep: float, left: float, keeps: Sequence[float]) -> float:
    span = keeps[-1] - keeps[0] or 1.0
    return left + 14 + (WIDTH - 28) * (keeps[-1] - keep) / span


def _y(ratio: float, low: float) -> float:
    share = math.log(min(ratio, MOST) / low) / math.log(MOST / low)
    return TOP + HEIGHT * (1 - share)


def _axes(name: str, left: float, keeps: Sequence[float], low: float, numbers: bool) -> list[str]:
    parts = [sheet.heading(name, left)]
    for tick in TICKS:
        parts += sheet.level(left, _y(tick, low), f"{tick:g}" if numbers else "")
    parts += [sheet.below(_x(keep, left, keeps), f"{keep:g}") for keep in keeps]
    return [*parts, sheet.axis("keep", left)]


def _line(
    line: Line, left: float, keeps: Sequence[float], low: float, stroke: str, name: str
) -> str:
    places = [(_x(k, left, keeps), _y(r, low), r > MOST) for k, r in sorted(line, reverse=True)]
    path = "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y, _ in places)
    colour = stroke.split('"')[1]
    dots = "".join(
        f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3.5" stroke="{colour}" '
        f'style="fill:{"var(--panel,#fff)" if above else colour}"/>'
        for x, y, above in places
    )
    return f'<g><title>{escape(name)}</title><path d="{path}" fill="none" {stroke}/>{dots}</g>'
