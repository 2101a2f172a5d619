"""Perplexity over dense against keep, one line per method, as one SVG."""

import math
from collections.abc import Container, Mapping, Sequence
from html import escape

Line = Sequence[tuple[float, float]]  # (keep, perplexity over dense)

WIDTH, HEIGHT, LEFT, TOP = 360, 300, 52, 34  # of one panel
LEGEND = 250
GAP = 26
MOST = 10.0  # what is above is drawn at the edge, hollow
TICKS = (1.0, 1.1, 1.2, 1.5, 2.0, 3.0, 5.0, 10.0)
COLOURS = ("#4269d0", "#efb118", "#ff725c", "#6cc5b0", "#3ca951", "#ff8ab7", "#a463f2", "#97bbf5",
           "#9c6b4e", "#9498a0", "#17a2b8", "#b5651d")  # fmt: skip
STYLE = (
    "svg{color:#1f2328;--panel:#fff;font:12px system-ui,sans-serif}"
    "@media(prefers-color-scheme:dark){svg{color:#e6edf3;--panel:#161b22}}"
    "text{fill:currentColor}"
)


def svg(
    panels: Mapping[str, Mapping[str, Line]],
    title: str,
    bold: Container[str] = (),
    dashed: Container[str] = (),
) -> str:
    """Panels side by side with common axes and one legend: panel -> method -> points."""
    methods = list(dict.fromkeys(name for panel in panels.values() for name in panel))
    strokes = {
        name: _stroke(COLOURS[k % len(COLOURS)], name in bold, name in dashed)
        for k, name in enumerate(methods)
    }
    points = [point for panel in panels.values() for line in panel.values() for point in line]
    keeps = sorted({keep for keep, _ in points})
    low = min(1.0, *(ratio for _, ratio in points))
    across = LEFT + len(panels) * (WIDTH + GAP) + LEGEND
    down = max(TOP + HEIGHT + 44, TOP + 18 * len(methods) + 10)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {across} {down}" role="img">',
        f"<title>{escape(title)}</title><style>{STYLE}</style>",
        f'<rect width="{across}" height="{down}" rx="8" style="fill:var(--panel,#fff)"/>',
    ]
    for number, (name, lines) in enumerate(panels.items()):
        left = LEFT + number * (WIDTH + GAP)
        parts += _axes(name, left, keeps, low, numbers=number == 0)
        parts += [_line(line, left, keeps, low, strokes[m], m) for m, line in lines.items()]
    parts += _legend(strokes, LEFT + len(panels) * (WIDTH + GAP))
    return "\n".join([*parts, "</svg>\n"])


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
    parts = [f'<text x="{left}" y="{TOP - 12}" font-weight="600">{escape(name)}</text>']
    for tick in TICKS:
        y = _y(tick, low)
        parts.append(
            f'<path d="M{left} {y:.1f}h{WIDTH}" stroke="currentColor" stroke-opacity=".15"/>'
        )
        if numbers:
            parts.append(f'<text x="{left - 6}" y="{y + 4:.1f}" text-anchor="end">{tick:g}</text>')
    for keep in keeps:
        x = _x(keep, left, keeps)
        parts.append(
            f'<text x="{x:.1f}" y="{TOP + HEIGHT + 18}" text-anchor="middle">{keep:g}</text>'
        )
    middle = left + WIDTH / 2
    parts.append(f'<text x="{middle}" y="{TOP + HEIGHT + 36}" text-anchor="middle">keep</text>')
    return parts


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


def _legend(strokes: Mapping[str, str], left: float) -> list[str]:
    return [
        f'<path d="M{left} {TOP + 18 * k}h22" {stroke}/>'
        f'<text x="{left + 28}" y="{TOP + 18 * k + 4}">{escape(name)}</text>'
        for k, (name, stroke) in enumerate(strokes.items())
    ]
