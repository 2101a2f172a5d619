"""A report as one HTML file: opens offline, loads nothing, and carries its own data."""

import json
import os
from importlib.resources import files
from math import isfinite
from pathlib import Path
from typing import Any

from bondwise.report import sections
from bondwise.report.groups import Report, title
from bondwise.report.healing import healing
from bondwise.report.markup import Markup, el, section
from bondwise.report.pitch.shares import pitch
from bondwise.report.pitch.track import track
from bondwise.report.speeds.section import speed
from bondwise.report.strip import curves, strip

# Nothing may be fetched, whatever a name in the report contains.
POLICY = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; img-src data:"


def page(report: Report) -> str:
    """The whole page, with the report itself in ``<script type="application/json" id="report">``.

    Numbers that are not finite become null in that copy, as JSON has no others.
    """
    body = [
        _masthead(report),
        el(
            "main",
            section("cost", "What it cost", sections.headline(report)),
            section("pitch", "What it hears", pitch(report)),
            section("track", "The same sound, heard by both", track(report)),
            section("quality", "Quality", sections.evaluation(report)),
            section("healing", "Healing", healing(report)),
            section("blocks", "Blocks", strip(report)),
            section("depth", "Along the depth", curves(report)),
            section("samples", "In its own words", sections.samples(report)),
            section("sizes", "Sizes", sections.sizes(report)),
            section("speed", "Speed", speed(report)),
            section("steps", "Steps", sections.steps(report)),
            section("weights", "All weights", sections.weights(report)),
            section("untouched", "Left alone", sections.untouched(report)),
            section("repeat", "Repeat it", sections.repeat(report)),
        ),
        el("footer", el("p", f"bondwise {report['bondwise']}, seed {report['seed']}")),
        el("div", id="tip", role="status", hidden=True),
        el("script", data(report), type="application/json", id="report"),
        el("script", asset("tip.js"), asset("page.js")),
    ]
    return document(head(f"{title(report)} in tensor networks", "page.css"), *body)


def write_whole(text: str, path: str | Path) -> Path:
    """Write a text, whole or not at all.

    Raises:
        OSError: the folder cannot be written to.
    """
    path = Path(path)
    half = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        half.write_text(text, encoding="utf-8")
        half.replace(path)
    finally:
        half.unlink(missing_ok=True)
    return path


def data(report: Report) -> Markup:
    r"""The report as JSON that cannot end the script element it stands in.

    >>> data({"name": "</script>"})
    '{"name": "\\u003c/script\\u003e"}'
    """
    return inert(json.dumps(finite(report), ensure_ascii=False, allow_nan=False))


def inert(text: str) -> Markup:
    r"""JSON that cannot end the script element it stands in.

    >>> inert('"a < b"')
    '"a \\u003c b"'
    """
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return Markup(text)


def finite(value: Any) -> Any:
    """The same plain data with None for numbers that are not finite, which JSON lacks.

    >>> finite({"perplexity": float("inf"), "windows": [1, 2]})
    {'perplexity': None, 'windows': [1, 2]}
    """
    if isinstance(value, float):
        return value if isfinite(value) else None
    if isinstance(value, dict):
        return {key: finite(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite(entry) for entry in value]
    return value


def asset(name: str) -> Markup:
    """A style sheet or a script of this room."""
    return Markup(files("bondwise.report").joinpath("assets", name).read_text(encoding="utf-8"))


def head(words: str, *styles: str) -> Markup:
    """A head under the offline policy, with its title and style sheets."""
    return el(
        "head",
        el("meta", charset="utf-8"),
        el("meta", http_equiv="Content-Security-Policy", content=POLICY),
        el("meta", name="viewport", content="width=device-width, initial-scale=1"),
        el("meta", name="color-scheme", content="light dark"),
        el("title", words),
        el("link", rel="icon", href="data:,"),
        el("style", *map(asset, styles)),
    )


def document(top: Markup, *body: Markup) -> str:
    """The whole text of a page."""
    return f"<!doctype html>\n{el('html', top, el('body', *body), lang='en')}\n"


def _masthead(report: Report) -> Markup:
    toggle = el("button", "dark or light", type="button", id="theme", class_="scripted")
    return el(
        "header",
        el("p", "bondwise", toggle, class_="mark"),
        el("h1", title(report)),
        el("p", sections.opening(report), class_="lead"),
        class_="masthead",
    )
