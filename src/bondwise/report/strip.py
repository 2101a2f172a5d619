"""All blocks at a glance, each weight as a small picture of its network; and the details of one."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from math import ceil

from bondwise.draw.diagram import svg
from bondwise.network.network import Network, parse
from bondwise.report.charts import Axis, Point, chart
from bondwise.report.groups import (
    Report,
    Weight,
    becomes,
    blocks,
    changed,
    kept,
    labels,
    leaf,
    shape,
)
from bondwise.report.markup import Markup, el, join
from bondwise.report.units import Number, count, decimal

WIDE, HIGH = 52, 16
SHADES = 7
ROW = HIGH + 4
CURVES = 8


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


def strip(report: Report) -> Markup:
    """A card per block, its weights drawn as small networks; each card opens its details."""
    groups = blocks(report["weights"])
    if not groups:
        return Markup("")
    scale = Scale.of(changed(report["weights"]))
    short = labels([weight for group in groups.values() for weight in group])
    cards = [_card(k, name, group, short, scale) for k, (name, group) in enumerate(groups.items())]
    hint = el(
        "p", "Point at a weight for its numbers; open a block for its networks.", class_="hint"
    )
    rows = [
        el("ol", *cards, class_="strip", style=f"--card:{_margin(short) + WIDE + 14:.0f}px"),
        hint,
    ]
    details = [_details(k, list(groups), group) for k, group in enumerate(groups.values())]
    return join([legend(scale), *rows, *details])


def _margin(short: dict[str, str]) -> float:
    return 6.5 * max(map(len, short.values())) + 8


def _card(
    k: int, name: str, group: Sequence[Weight], short: dict[str, str], scale: Scale
) -> Markup:
    texts = [short[leaf(weight)] for weight in group]
    margin = _margin(short)
    rows = [
        part
        for row, (weight, text) in enumerate(zip(group, texts, strict=True))
        for part in (
            el("text", text, x=margin - 6, y=row * ROW + 12, text_anchor="end"),
            glyph(weight, scale, y=row * ROW, x=margin),
        )
    ]
    box = f"0 0 {margin + WIDE + 2:.5g} {len(group) * ROW}"
    picture = el(
        "svg", *rows, viewBox=box, width=round(margin + WIDE + 2), height=len(group) * ROW,
        aria_hidden="true",
    )  # fmt: skip
    tip = "\n".join([name, *(describe(weight) for weight in group)])
    link = el(
        "a", el("b", _number(name, k)), picture, href=f"#block-{k}", data_tip=tip,
        aria_label=_spoken(name, group),
    )  # fmt: skip
    return el("li", link)


def _number(name: str, k: int) -> str:
    last = name.rpartition(".")[2]
    return last if len(last) <= 12 else str(k)


def _spoken(name: str, group: Sequence[Weight]) -> str:
    networks = changed(group)
    errors = [weight["error"] for weight in networks if weight["error"] is not None]
    worst = f", largest relative error {decimal(max(errors))}" if errors else ""
    return f"{name}: {len(networks)} of {len(group)} weights are networks{worst}"


def _details(k: int, names: Sequence[str], group: Sequence[Weight]) -> Markup:
    around = [
        el("a", text, href=f"#block-{other}")
        for text, other in (("previous", k - 1), ("next", k + 1))
        if 0 <= other < len(names)
    ]
    close = el("a", "close", href="#blocks")
    return el(
        "section",
        el("header", el("h3", names[k]), el("nav", *around, close, aria_label="blocks")),
        el("div", *(_weight(weight) for weight in group), class_="weights"),
        id=f"block-{k}", class_="details", tabindex=-1, aria_label=names[k],
    )  # fmt: skip


def _weight(weight: Weight) -> Markup:
    net = network_of(weight)
    if net is None:
        picture = el("p", "left alone: " + str(weight["reason"]), class_="note")
    else:
        picture = Markup(svg(net).replace(' xmlns="http://www.w3.org/2000/svg"', ""))
    facts = [
        ("shape", shape(weight)),
        ("becomes", becomes(weight)),
        ("numbers", f"{count(weight['before'])} to {count(weight['after'])}"),
        ("kept", decimal(kept(weight))),
        ("relative error", decimal(weight["error"], 4)),
    ]
    rows = [el("div", el("dt", term), el("dd", value)) for term, value in facts]
    formula = el("code", str(net)) if net is not None else None
    return el(
        "figure", el("figcaption", leaf(weight)), el("div", picture, class_="net"), el("dl", *rows),
        formula,
    )  # fmt: skip


def curves(report: Report) -> Markup:
    """Relative error and kept fraction along the depth, a curve per kind of weight."""
    groups = blocks(report["weights"])
    if not groups:
        return Markup("")
    short = labels([weight for group in groups.values() for weight in group])
    placed = [
        (short[leaf(weight)], depth, weight)
        for depth, group in enumerate(groups.values())
        for weight in group
    ]
    axis = Axis("block", len(groups))
    if len(short) > CURVES:  # too many to tell apart: one curve through all weights
        placed = [("all", order, weight) for order, (_, _, weight) in enumerate(placed)]
        axis = Axis("weight", len(placed))
    charts = [
        chart("Relative error of each weight", _series(placed, lambda w: w["error"]), axis),
        chart("Kept fraction of each weight", _series(placed, kept), axis, top=1),
    ]
    return el("div", *charts, class_="charts")


def _series(
    placed: Sequence[tuple[str, int, Weight]], value: Callable[[Weight], float | None]
) -> dict[str, list[Point]]:
    series: dict[str, list[Point]] = {}
    for kind, depth, weight in placed:
        tip = f"{weight['name']}\n{describe(weight)}"
        points = series.setdefault(kind, [])
        if (number := value(weight)) is not None:
            points.append(Point(depth, number, tip))
    return series
