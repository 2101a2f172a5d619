"""What the parts of the page are made of: a titled section, a table of numbers, a large figure."""

import re
from collections.abc import Sequence

from bondwise.report.markup import Markup, el


def section(name: str, title: str, *children: str | None) -> Markup:
    """A titled part of the page; nothing at all where it would be empty."""
    filled = [child for child in children if child]
    if not filled:
        return Markup("")
    head = el("h2", title, id=f"{name}-title")
    return el("section", head, *filled, id=name, aria_labelledby=f"{name}-title")


def grid(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> Markup:
    """A plain table whose first column names the rows and whose other columns are numbers."""
    top = el("tr", *(el("th", head, scope="col") for head in heads))
    body = [
        el("tr", el("th", row[0], scope="row"), *(el("td", cell) for cell in row[1:]))
        for row in rows
    ]
    table = el("table", el("thead", top), el("tbody", *body), class_="numbers")
    return el("div", table, class_="scroll")


def figure(value: str, label: str, more: str) -> Markup:
    """A number to see from afar, what it is of, and a line below."""
    whole = re.sub(r"(?<=\d) (?=[kMGT])", "\u00a0", more)  # a number stays beside its unit
    return el("p", el("b", value), el("span", label), el("small", whole), class_="figure")
