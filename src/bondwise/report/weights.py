"""The table of all weights: sortable and filterable where scripts run, plain where they do not."""

from bondwise.report.groups import Report, Weight, becomes, kept, shape
from bondwise.report.markup import Markup, el
from bondwise.report.units import count, decimal

HEADS = ("weight", "kind", "shape", "becomes", "before", "after", "kept", "error")


def weights(report: Report) -> Markup:
    """Every weight on a line of its own."""
    box = el(
        "p",
        el(
            "label",
            "Filter ",
            el("input", type="search", id="filter", placeholder="q_proj, mpo, 3 .. "),
        ),
        el("output", f"{len(report['weights'])} weights", id="shown", for_="filter"),
        class_="scripted",
    )
    head = el("tr", *(el("th", head, scope="col") for head in HEADS))
    rows = [_row(weight) for weight in report["weights"]]
    table = el("table", el("thead", head), el("tbody", *rows), id="table", class_="all")
    region = el(
        "div", table, class_="scroll tall", tabindex=0, role="region", aria_label="all weights"
    )
    return Markup(box + region)


def _row(weight: Weight) -> Markup:
    numbers = (weight["before"], weight["after"], kept(weight), weight["error"])
    texts = (count(numbers[0]), count(numbers[1]), decimal(numbers[2]), decimal(numbers[3]))
    size = 1
    for n in weight["shape"]:
        size *= n
    what = becomes(weight)
    return el(
        "tr",
        el("th", str(weight["name"]), scope="row"),
        el("td", str(weight["kind"])),
        el("td", shape(weight), data_v=size),
        el("td", what, title=str(weight["reason"]) or None),
        *(
            el("td", text, data_v=-1.0 if value is None else value)
            for text, value in zip(texts, numbers, strict=True)
        ),
    )
