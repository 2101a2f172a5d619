"""All blocks at a glance, and the details of one: pictures first, exact numbers on request."""

from collections.abc import Callable, Sequence

from bondwise.draw.diagram import svg
from bondwise.report.charts import Axis, Point, chart
from bondwise.report.glyphs import HIGH, WIDE, Scale, describe, glyph, legend, network_of
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
from bondwise.report.units import count, decimal

ROW = HIGH + 4
CURVES = 8


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
