"""Speed against batch, one line per network, as one SVG: both axes are logarithmic."""

from collections.abc import Mapping
from math import ceil, floor, log2

from comparison import sheet
from comparison.sheet import HEIGHT, TOP, WIDTH, Line


def svg(panels: Mapping[str, Mapping[str, Line]], title: str) -> str:
    """Panels side by side, each with its own vertical axis, and one legend."""
    return sheet.side_by_side(panels, title, _panel)


def _panel(
    name: str, lines: Mapping[str, Line], left: float, strokes: Mapping[str, str]
) -> list[str]:
    points = [point for ln in lines.values() for point in ln]
    parts = [sheet.heading(name, left)]
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
        parts += sheet.level(left, y(2.0**power), f"{2.0**power:g}", bold=power == 0)
    parts += [sheet.below(x(2**at), f"{2**at:g}") for at in across]
    parts.append(sheet.axis("batch", left))
    for label, ln in lines.items():
        if ln:
            parts.append(
                sheet.line(label, [(x(batch), y(ratio)) for batch, ratio in ln], strokes[label])
            )
    return parts
