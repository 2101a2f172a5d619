"""All blocks at a glance, and the details of one: pictures first, exact numbers on request."""

from collections.abc import Sequence

from bondwise.network.diagram import svg
from bondwise.report.charts import Point, chart
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
    rows = [el("ol", *cards, class_="strip"), hint]
    details = [_details(k, list(groups), group) for k, group in enumerate(groups.values())]
    return join([legend(scale), *rows, *details])


def _card(
    k: int, name: str, group: Sequence[Weight], short: dict[str, str], scale: Scale
) -> Markup:
    texts = [short[leaf(weight)] for weight in group]
    margin = 7 * min(max(map(len, texts)), 16) + 8
    rows = [
        part
        for row, (weight, text) in enumerate(zip(group, texts, strict=True))
        for part in (
            el("text", text[-16:], x=margin - 6, y=row * ROW + 12, text_anchor="end"),
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
    errors: dict[str, list[Point]] = {}
    fractions: dict[str, list[Point]] = {}
    flat = len({leaf(weight) for group in groups.values() for weight in group}) > CURVES
    short = labels([weight for group in groups.values() for weight in group])
    deep = 0
    for depth, group in enumerate(groups.values()):
        for weight in group:
            name, place = ("weights", deep) if flat else (short[leaf(weight)], depth)
            deep += 1
            tip = f"{weight['name']}\n{describe(weight)}"
            if weight["error"] is not None:
                errors.setdefault(name, []).append(Point(place, weight["error"], tip))
            fractions.setdefault(name, []).append(Point(place, kept(weight) or 0.0, tip))
    depth = deep if flat else len(groups)
    axis = "weight" if flat else "block"
    charts = [chart("Kept fraction of each weight", fractions, depth, 1.0, axis)]
    if errors:
        charts.insert(0, chart("Relative error of each weight", errors, depth, axis=axis))
    return el("div", *charts, class_="charts") if groups else Markup("")
