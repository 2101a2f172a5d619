"""What every plot shares: the sheet that panels stand on, its colours, and its legend."""

from collections.abc import Callable, Mapping, Sequence
from html import escape

Line = Sequence[tuple[float, float]]  # (where along the axis, ratio)
Panel = Callable[[str, Mapping[str, Line], float, Mapping[str, str]], list[str]]
"""What draws a panel: its name, its lines, where it begins, and the stroke of each line."""

WIDTH, HEIGHT, LEFT, TOP = 360, 300, 52, 34  # of one panel
LEGEND, LETTER = 250, 7  # at least, and of a name in it
GAP = 26
COLOURS = ("#4269d0", "#efb118", "#ff725c", "#6cc5b0", "#3ca951", "#ff8ab7", "#a463f2", "#97bbf5",
           "#9c6b4e", "#9498a0", "#17a2b8", "#b5651d")  # fmt: skip
DASHES = ("", "5 4", "2 3")  # when colours begin anew
STYLE = (
    "svg{color:#1f2328;--panel:#fff;font:12px system-ui,sans-serif}"
    "@media(prefers-color-scheme:dark){svg{color:#e6edf3;--panel:#161b22}}"
    "text{fill:currentColor}"
)


def side_by_side(panels: Mapping[str, Mapping[str, Line]], title: str, panel: Panel) -> str:
    """Panels side by side, each with its own vertical axis, and one legend."""
    names = list(dict.fromkeys(name for lines in panels.values() for name in lines))
    strokes = {name: stroke(k) for k, name in enumerate(names)}
    wide = WIDTH + GAP + LEFT
    drawn = list[str]()
    for number, (name, lines) in enumerate(panels.items()):
        drawn += panel(name, lines, LEFT + number * wide, strokes)
    return svg(title, drawn, strokes, LEFT + len(panels) * wide)


def svg(title: str, drawn: Sequence[str], strokes: Mapping[str, str], wide: float) -> str:
    """One SVG: what was drawn in ``wide`` points, and a legend to the right of it."""
    across = wide + max([LEGEND, *(36 + LETTER * len(name) for name in strokes)])
    down = max(TOP + HEIGHT + 44, TOP + 18 * len(strokes) + 10)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {across} {down}" role="img">',
        f"<title>{escape(title)}</title><style>{STYLE}</style>",
        f'<rect width="{across}" height="{down}" rx="8" style="fill:var(--panel,#fff)"/>',
        *drawn,
        *_legend(strokes, wide),
        "</svg>\n",
    ]
    return "\n".join(parts)


def stroke(number: int) -> str:
    """Colours in turn, and other dashes when they begin anew."""
    colour, dashes = COLOURS[number % len(COLOURS)], DASHES[number // len(COLOURS) % len(DASHES)]
    return f'stroke="{colour}" stroke-width="1.8" stroke-dasharray="{dashes}"'


def line(label: str, places: Sequence[tuple[float, float]], drawn: str) -> str:
    """A line through some places, with dots on them."""
    path = "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in places)
    colour = drawn.split('"')[1]
    dots = "".join(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3"/>' for x, y in places)
    return (
        f'<g fill="{colour}"><title>{escape(label)}</title>'
        f'<path d="{path}" fill="none" {drawn}/>{dots}</g>'
    )


def level(left: float, y: float, tick: str = "", bold: bool = False) -> list[str]:
    """A line across a panel, and the number that it stands for."""
    opacity = ".6" if bold else ".15"
    parts = [
        f'<path d="M{left} {y:.1f}h{WIDTH}" stroke="currentColor" stroke-opacity="{opacity}"/>'
    ]
    if tick:
        parts.append(f'<text x="{left - 6}" y="{y + 4:.1f}" text-anchor="end">{tick}</text>')
    return parts


def below(x: float, tick: str) -> str:
    """A number under a panel."""
    return f'<text x="{x:.1f}" y="{TOP + HEIGHT + 18}" text-anchor="middle">{tick}</text>'


def heading(name: str, left: float) -> str:
    """The name of a panel, above it."""
    return f'<text x="{left}" y="{TOP - 12}" font-weight="600">{escape(name)}</text>'


def axis(name: str, left: float) -> str:
    """What the numbers under a panel are."""
    middle = left + WIDTH / 2
    return f'<text x="{middle}" y="{TOP + HEIGHT + 36}" text-anchor="middle">{name}</text>'


def _legend(strokes: Mapping[str, str], left: float) -> list[str]:
    return [
        f'<path d="M{left} {TOP + 18 * k}h22" {drawn}/>'
        f'<text x="{left + 28}" y="{TOP + 18 * k + 4}">{escape(name)}</text>'
        for k, (name, drawn) in enumerate(strokes.items())
    ]
