"""What pictures are drawn with: SVG elements and the box around them."""

from collections.abc import Sequence
from math import hypot, log2
from xml.sax.saxutils import escape, quoteattr

from bondwise.draw.placement import RADIUS, Point, width

CORNER, DOT = 9.0, 4.0
CORE = "fill:var(--bondwise-core,#8db4dd);stroke:none"
BOND = "fill:none;stroke:var(--bondwise-bond,#c77b2c)"
MODE = "fill:none;stroke:currentColor"


def stroke(size: int) -> float:
    """Width of the line of an index: it grows with the logarithm of its size.

    >>> stroke(1), stroke(16)
    (1.0, 3.4)
    """
    return round(1 + 0.6 * log2(size), 2)


class Picture:
    """Elements drawn so far and the box around them."""

    def __init__(self) -> None:
        self.elements: list[str] = []
        self.xs: list[float] = []
        self.ys: list[float] = []

    def reach(self, x: float, y: float, margin: float = 0.0) -> None:
        """Have the box hold a point, and so much around it."""
        self.xs += [x - margin, x + margin]
        self.ys += [y - margin, y + margin]

    def path(self, points: Sequence[Point], style: str, size: int) -> str:
        """Straight lines through the points, as wide as the size makes them."""
        for x, y in points:
            self.reach(x, y, 2 + stroke(size) / 2)
        return f'<path d="{_rounded(points)}" style="{style}" stroke-width="{stroke(size)}"/>'

    def circle(self, at: Point, radius: float, style: str) -> str:
        """A circle around a point."""
        self.reach(*at, radius + 1)
        return f'<circle cx="{at[0]:.1f}" cy="{at[1]:.1f}" r="{radius:g}" style="{style}"/>'

    def text(self, words: str, at: Point, anchor: str, style: str = "fill:currentColor") -> str:
        """Words at a point."""
        left = {"start": 0.0, "middle": 0.5, "end": 1.0}[anchor] * width(words)
        self.reach(at[0] - left, at[1] - 11)
        self.reach(at[0] - left + width(words), at[1] + 4)
        place = f'x="{at[0]:.1f}" y="{at[1]:.1f}" text-anchor="{anchor}"'
        return f'<text {place} style="{style}">{escape(words)}</text>'

    def core(self, number: int, at: Point, names: Sequence[str]) -> None:
        """A circle with the core's position in it."""
        number_in_it = self.text(str(number), (at[0], at[1] + 4.5), "middle", "fill:#12243a")
        inside = self.circle(at, RADIUS, CORE) + number_in_it
        self.group("core", inside, name=str(number), indices=" ".join(names))

    def group(self, kind: str, inside: str, **data: str) -> None:
        """Draw elements as one, with its kind as class and data attributes."""
        extra = "".join(f" data-{key}={quoteattr(value)}" for key, value in data.items())
        self.elements.append(f'<g class="{kind}"{extra}>{inside}</g>')

    def render(self, title: str) -> str:
        """All that was drawn, as an SVG element."""
        x, y = min(self.xs) - 6, min(self.ys) - 6
        w, h = max(self.xs) + 6 - x, max(self.ys) + 6 - y
        return (
            f'<svg xmlns="http://www.w3.org/2000/svg" role="img" width="{w:.0f}" height="{h:.0f}" '
            f'viewBox="{x:.1f} {y:.1f} {w:.1f} {h:.1f}" font-family="system-ui,sans-serif" '
            f'font-size="13" stroke-linecap="round" style="max-width:100%;height:auto">'
            f"<title>{escape(title)}</title>{''.join(self.elements)}</svg>"
        )


def _rounded(points: Sequence[Point]) -> str:
    """Straight lines through the points, with rounded corners."""
    parts = [f"M{points[0][0]:.1f} {points[0][1]:.1f}"]
    for before, corner, after in zip(points, points[1:], points[2:], strict=False):
        (x1, y1), (x2, y2) = (_towards(corner, end, CORNER) for end in (before, after))
        parts.append(f"L{x1:.1f} {y1:.1f}Q{corner[0]:.1f} {corner[1]:.1f} {x2:.1f} {y2:.1f}")
    return "".join([*parts, f"L{points[-1][0]:.1f} {points[-1][1]:.1f}"])


def _towards(start: Point, end: Point, length: float) -> Point:
    dx, dy = end[0] - start[0], end[1] - start[1]
    part = min(0.5, length / (hypot(dx, dy) or 1))
    return start[0] + part * dx, start[1] + part * dy
