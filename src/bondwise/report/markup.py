"""HTML and SVG by small functions: text is escaped unless it is already markup."""

import re
from collections.abc import Sequence
from html import escape

from bondwise.report.units import Number


class Markup(str):
    """Text that is safe as it stands."""

    __slots__ = ()


Child = str | None

_VOID = {"meta", "input", "link"}


def el(tag: str, *children: Child, **attributes: str | Number | None) -> Markup:
    """One element. ``class_`` is class and ``data_tip`` is data-tip; None and False leave one out.

    >>> el("p", "1 < 2 ", el("b", "so it is"), class_="note")
    '<p class="note">1 &lt; 2 <b>so it is</b></p>'
    """
    pairs = [
        f" {name.strip('_').replace('_', '-')}" + ("" if value is True else f'="{_quote(value)}"')
        for name, value in attributes.items()
        if value is not None and value is not False
    ]
    head = f"<{tag}{''.join(pairs)}>"
    return Markup(head if tag in _VOID else f"{head}{join(children)}</{tag}>")


def join(children: Sequence[Child]) -> Markup:
    """Children one after the other."""
    return Markup("".join(_safe(child) for child in children if child is not None))


def _safe(child: str) -> str:
    return child if isinstance(child, Markup) else escape(child)


def _quote(value: str | Number) -> str:
    return escape(f"{value:.6g}" if isinstance(value, float) else str(value))


def lines(*path: tuple[Number, Number]) -> str:
    """The points of an SVG polyline.

    >>> lines((0, 0), (1.5, 2))
    '0,0 1.5,2'
    """
    return " ".join(f"{x:.5g},{y:.5g}" for x, y in path)


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
