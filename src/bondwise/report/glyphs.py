"""Each weight as a small picture of its network, bonds by rank, coloured by error."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from math import ceil

from bondwise.network.network import Network, parse
from bondwise.report.groups import Weight, becomes, kept, leaf, shape
from bondwise.report.markup import Markup, el, join
from bondwise.report.units import Number, count, decimal

WIDE, HIGH = 52, 16
SHADES = 7


@dataclass(frozen=True)
class Scale:
    """What colours and widths mean on a page: the error per shade, the largest rank."""

    step: Number
    rank: int

    @classmethod
    def of(cls, weights: Sequence[Weight]) -> "Scale":
        """Round steps of error that cover all weights in seven shades."""
        errors = [weight["error"] for weight in weights if weight["error"] is not None]
        ranks = [rank for weight in weights for rank in (weight["ranks"] or {}).values()]
        need = max(errors, default=0) / SHADES
        steps = [m * 10.0**e for e in range(-9, 3) for m in (1, 1.5, 2, 2.5, 3, 4, 5, 6, 7, 8)]
        return cls(next((step for step in steps if step >= need), need), max(ranks, default=1))

    def shade(self, weight: Weight) -> str:
        """The class that colours a weight: ``e0`` (small error) to ``e6``, ``en`` for none."""
        if weight["action"] != "tensorize" or weight["error"] is None:
            return "en"
        return f"e{max(0, min(SHADES - 1, ceil(weight['error'] / self.step) - 1))}"

    def width(self, rank: int) -> float:
        """Pixels of a bond of that rank."""
        return 1.2 + 8.8 * rank / self.rank


@cache
def network(text: str, sizes: tuple[tuple[str, int], ...]) -> Network:
    """The network of a weight, read once for all weights that share it."""
    return parse(text, **dict(sizes))


def network_of(weight: Weight) -> Network | None:
    """The network that a weight becomes, None where it is left alone."""
    if not weight.get("network"):
        return None
    return network(str(weight["network"]), tuple(weight["sizes"].items()))


def describe(weight: Weight) -> str:
    """The exact numbers of a weight in one line, for people who point at it or cannot see it."""
    if weight["action"] != "tensorize":
        return f"{leaf(weight)}: {shape(weight)}, left alone: {weight['reason']}"
    error = "" if weight["error"] is None else f", error {decimal(weight['error'])}"
    numbers = f"{count(weight['before'])} to {count(weight['after'])} ({decimal(kept(weight))})"
    return f"{leaf(weight)}: {shape(weight)}, {becomes(weight)}, {numbers}{error}"


def glyph(weight: Weight, scale: Scale, y: Number = 0, x: Number = 0) -> Markup:
    """One weight: its cores side by side, a line per bond; a dashed box where it is left alone."""
    net = network_of(weight)
    where = f"translate({x:g} {y:g})"
    if net is None:
        inner = el("rect", x=WIDE / 2 - 7, y=2, width=14, height=HIGH - 4, class_="dense")
    else:
        inner = _cores(net, scale)
    return el(
        "g", inner, class_=f"w {scale.shade(weight)}", transform=where, data_tip=describe(weight)
    )


def _cores(net: Network, scale: Scale) -> Markup:
    n = len(net.cores)
    size = max(3.0, min(8.0, WIDE / (2 * n)))
    left = [0.0] if n == 1 else [k * (WIDE - size) / (n - 1) for k in range(n)]
    if n == 1:
        left = [(WIDE - size) / 2]
    bonds = [
        _bond(left[a] + size / 2, left[b] + size / 2, scale.width(rank), flat=b - a == 1)
        for name, rank in net.bonds.items()
        for a, b in pairwise(net.places[name])
    ]
    cores = [el("rect", x=x, y=1, width=size, height=HIGH - 2, rx=1.5) for x in left]
    return join([*bonds, *cores])


def _bond(a: Number, b: Number, width: Number, flat: bool) -> Markup:
    middle = HIGH / 2
    bend = f"L{b:.4g} {middle}" if flat else f"Q{(a + b) / 2:.4g} {-middle + 2} {b:.4g} {middle}"
    return el(
        "path", d=f"M{a:.4g} {middle}{bend}", stroke_width=min(width, 3) if not flat else width
    )


def legend(scale: Scale) -> Markup:
    """What the colours and the widths stand for."""
    digits = 3 if scale.step < 0.05 else 2
    swatches = [
        el(
            "span",
            el("i", class_=f"swatch s{k}"),
            f"to {decimal((k + 1) * scale.step, digits)}",
            class_="key",
        )
        for k in range(SHADES)
    ]
    thin, thick = max(1, scale.rank // 8), scale.rank
    widths = [
        el("span", _sample(scale.width(rank)), f"rank {rank}", class_="key")
        for rank in dict.fromkeys((thin, thick))
    ]
    left = el("span", el("i", class_="swatch dashed"), "left alone", class_="key")
    return el(
        "p", el("b", "relative error"), *swatches, el("b", "bonds"), *widths, left, class_="legend"
    )


def _sample(width: Number) -> Markup:
    line = el("path", d="M0 8L24 8", stroke_width=width)
    return el("svg", el("g", line, class_="w en"), viewBox="0 0 24 16", width=24, height=16)
