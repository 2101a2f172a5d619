"""Speed against batch, one line per network, as one SVG: both axes are logarithmic."""

from collections.abc import Mapping, Sequence
from html import escape
from math import ceil, floor, log2

from comparison.plot import COLOURS, GAP, HEIGHT, LEFT, LEGEND, STYLE, TOP, WIDTH

Line = Sequence[tuple[int, float]]  # (batch, ratio of speeds)
DASHES = ("", "5 4", "2 3")  # when colours begin anew


def svg(panels: Mapping[str, Mapping[str, Line]], title: str) -> str:
    """Panels side by side, each with its own vertical axis, and one legend."""
    names = list(dict.fromkeys(name for panel in panels.values() for name in panel))
    strokes = {name: _stroke(k) for k, name in enumerate(names)}
    across = LEFT + len(panels) * (WIDTH + GAP + LEFT) + LEGEND
    down = max(TOP + HEIGHT + 44, TOP + 18 * len(names) + 10)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {across} {down}" role="img">',
        f"<title>{escape(title)}</title><style>{STYLE}</style>",
        f'<rect width="{across}" height="{down}" rx="8" style="fill:var(--panel,#fff)"/>',
    ]
    for number, (name, lines) in enumerate(panels.items()):
        left = LEFT + number * (WIDTH + GAP + LEFT)
        parts += _panel(name, lines, left, strokes)
    parts += _legend(strokes, LEFT + len(panels) * (WIDTH + GAP + LEFT))
    return "\n".join([*parts, "</svg>\n"])


def _stroke(number: int) -> str:
    colour, dashes = COLOURS[number % len(COLOURS)], DASHES[number // len(COLOURS) % len(DASHES)]
    return f'stroke="{colour}" stroke-width="1.8" stroke-dasharray="{dashes}"'


def _panel(
    name: str, lines: Mapping[str, Line], left: float, strokes: Mapping[str, str]
) -> list[str]:
    points = [point for line in lines.values() for point in line]
    parts = [f'<text x="{left}" y="{TOP - 12}" font-weight="600">{escape(name)}</text>']
    if not points:
        return [*parts, f'<text x="{left}" y="{TOP + 20}">no cells</text>']
    across = sorted({log2(batch) for batch, _ in points})
    heights = [0.0, *(log2(ratio) for _, ratio in points)]
    low, high = floor(min(heights)), max(ceil(max(heights)), floor(min(heights)) + 1)

    def x(batch: float) -> float:
        span = across[-1] - across[0] or 1.0
        return left + 14 + (WIDTH - 28) * (log2(batch) - across[0]) / span

    def y(ratio: float) -> float:
        return TOP + HEIGHT * (high - log2(ratio)) / (high - low)

    for power in range(low, high + 1):
        at, bold = y(2.0**power), ".6" if power == 0 else ".15"
        parts += [
            f'<path d="M{left} {at:.1f}h{WIDTH}" stroke="currentColor" stroke-opacity="{bold}"/>',
            f'<text x="{left - 6}" y="{at + 4:.1f}" text-anchor="end">{2.0**power:g}</text>',
        ]
    parts += [
        f'<text x="{x(2**at):.1f}" y="{TOP + HEIGHT + 18}" text-anchor="middle">{2**at:g}</text>'
        for at in across
    ]
    parts.append(f'<text x="{left + WIDTH / 2}" y="{TOP + HEIGHT + 36}">batch</text>')
    for label, line in lines.items():
        if line:
            places = [(x(batch), y(ratio)) for batch, ratio in line]
            parts.append(_line(label, places, strokes[label]))
    return parts


def _line(label: str, places: Sequence[tuple[float, float]], stroke: str) -> str:
    path = "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in places)
    colour = stroke.split('"')[1]
    dots = "".join(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3"/>' for x, y in places)
    return (
        f'<g fill="{colour}"><title>{escape(label)}</title>'
        f'<path d="{path}" fill="none" {stroke}/>{dots}</g>'
    )


def _legend(strokes: Mapping[str, str], left: float) -> list[str]:
    return [
        f'<path d="M{left} {TOP + 18 * k}h22" {stroke}/>'
        f'<text x="{left + 28}" y="{TOP + 18 * k + 4}">{escape(name)}</text>'
        for k, (name, stroke) in enumerate(strokes.items())
    ]
