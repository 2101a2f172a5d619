"""Speed on the page of a folder: what was measured, and how the layers run once prepared."""

from typing import Any

from bondwise.report.groups import Report, shape
from bondwise.report.markup import Markup, el, grid, join
from bondwise.report.speeds.benchmark import conditions, counts, heads, speeds
from bondwise.report.units import instant, percent

ABOUT = (
    "Layers once prepared, one line for each shape and number of rows: seconds of all of them "
    "together, and the share of the ideal, which is dense's time cut as the multiplications are."
)


def speed(report: Report) -> Markup:
    """What `bondwise bench --page` put into the report; nothing where it did not."""
    found: Report | None = report.get("speed")
    if not found:
        return Markup("")
    rows = [[str(cell) for cell in row] for row in (*speeds(found), *counts(found))]
    parts = [grid(("", *heads(found)), rows), el("p", conditions(found), class_="note")]
    groups = found["prepared"]["chosen"]["groups"] if found["prepared"] else []
    if groups:
        columns = ("weight", "layers", "rows", "dense", "as built", "prepared", "ideal", "way")
        parts += [grid(columns, [*map(_way, groups)]), el("p", ABOUT, class_="note")]
    return join(parts)


def _way(group: dict[str, Any]) -> list[str]:
    others = f" and {group['others']} other" + "s" * (group["others"] > 1)
    return [
        shape(group),
        str(group["layers"]),
        str(group["rows"]),
        *(instant(group[name]) if group[name] else "-" for name in ("dense", "built", "seconds")),
        percent(group["share"]) if group["dense"] else "-",
        group["way"] + others * (group["others"] > 0),
    ]
