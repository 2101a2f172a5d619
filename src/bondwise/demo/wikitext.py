"""From a MediaWiki dump to prose: paragraphs only, without markup, tables, lists or references."""

import bz2
import html
import re
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

_TAGS = "ref|math|chem|gallery|source|syntaxhighlight|timeline|code|pre|score|table|imagemap|hiero"
_DROPPED = re.compile(
    rf"<!--.*?-->|<(?:{_TAGS})\b[^<>]*/>|<({_TAGS})\b[^<>]*>.*?</\1\s*>", re.DOTALL | re.IGNORECASE
)
_TEMPLATE = re.compile(r"\{\{([^{}]*)\}\}")
_TABLE = re.compile(r"\{\|(?:(?!\{\|).)*?\n\s*\|\}", re.DOTALL)
_EXTERNAL = re.compile(r"\[(?:https?:|ftp:)?//[^\s\]]+\s*([^\[\]]*)\]")
_LINK = re.compile(r"\[\[([^\[\]]*)\]\]")
_TAIL = re.compile(
    r"^==\s*(?:see also|references|notes|footnotes|citations|sources|external links|further reading"
    r"|bibliography|works cited|notes and references|references and notes)\b.*",
    re.MULTILINE | re.DOTALL | re.IGNORECASE,
)
_FORMULA = re.compile(r"^.*<math\b.*?</math>.*$", re.MULTILINE | re.IGNORECASE)
_MARKED = re.compile(r"^\s*[*#:;|!={}].*$", re.MULTILINE)
# What dropped templates leave behind: "( ; )", "(, 12 May)", " ,".
_LEFTOVERS = (
    (re.compile(r"\(\s*[,;:]*\s*"), "("),
    (re.compile(r"\s*[,;:]*\s*\)"), ")"),
    (re.compile(r"\s*\(\s*(?:or|and|pronounced|listen)?\s*\)"), ""),
    (re.compile(r"[ \t\u00a0]+"), " "),
    (re.compile(r" +([,.;:)])(?=\s|$)"), r"\1"),
    (re.compile(r"([,;])(?:\s*[,;])+"), r"\1"),
)
_BROKEN = re.compile(r"\[\[|\]\]|\{\{|\}\}|\|\s*thumb")
_SENTENCE = 80  # characters: a shorter line is a caption or what is left of a list


class Article(NamedTuple):
    """One encyclopedia article as prose, paragraphs parted by blank lines."""

    title: str
    text: str


def _template(match: re.Match[str]) -> str:
    """The words of the few templates that stand inside sentences; nothing for all others."""
    name, *fields = (part.strip() for part in match[1].split("|"))
    words = [field for field in fields if not re.match(r"\w+\s*=", field)]
    match name.lower():
        case "convert" | "cvt" if len(words) > 1:
            return " ".join(words[:2] if words[1] not in ("-", "to", "and") else words[:4])
        case "lang" | "transl" | "abbr" if words:
            return words[0] if name.lower() == "abbr" else words[-1]
        case "nowrap" | "nobr" | "smallcaps" | "em" | "strong" | "sic" if words:
            return words[0]
        case "spaced ndash" | "snd" | "spnd" | "ndash" | "mdash":
            return " \u2013 "
        case "'":
            return "'"
        case _:
            return ""


def _link(match: re.Match[str]) -> str:
    """`[[a|b]]` reads b; files, categories and other languages read nothing."""
    target = match[1].split("|")[0].strip()
    if re.match(r"(?:file|image|category|[a-z]{2,3}(?:-[a-z]+)?)\s*:", target, re.IGNORECASE):
        return ""
    return match[1].split("|")[-1].lstrip(":")


def _innermost(pattern: re.Pattern[str], replace: object, text: str) -> str:
    """Replaces from the inside out, until nothing nested is left."""
    while True:
        text, count = pattern.subn(replace, text)  # pyright: ignore[reportArgumentType, reportCallIssue]
        if not count:
            return text


def prose(wikitext: str) -> str:
    """The paragraphs of a page as plain text, parted by blank lines.

    Lines with a formula are dropped as a whole: a sentence with a hole reads worse than none.

    >>> prose("'''Albedo''' ({{IPA|x}}) is a [[ratio|share]] of light &#45; see"
    ...       "<ref>Smith</ref> how [[snow]] sends back nearly all of the light it gets.")
    'Albedo is a share of light - see how snow sends back nearly all of the light it gets.'
    """
    text = _DROPPED.sub("", _FORMULA.sub("", _TAIL.sub("", wikitext)))
    text = _innermost(_TEMPLATE, _template, text)
    text = _innermost(_TABLE, "", text)
    text = _innermost(_LINK, _link, _EXTERNAL.sub(r"\1", text))
    text = re.sub(r"'{2,}", "", re.sub(r"</?\w+[^<>]*>|__[A-Z]+__", "", text))
    text = html.unescape(html.unescape(_MARKED.sub("", text)))
    for pattern, with_what in _LEFTOVERS:
        text = pattern.sub(with_what, text)
    lines = (line.strip() for line in text.splitlines())
    return "\n\n".join(
        line for line in lines if len(line) >= _SENTENCE and not _BROKEN.search(line)
    )


def articles(dump: Path, shortest: int = 400) -> Iterator[Article]:
    """The articles of a bz2 dump in order, without redirects, lists and pages about pages.

    Pages whose prose is under `shortest` characters (disambiguations, stubs) are left out.
    """
    with bz2.open(dump) as file:
        page = ET.parse(file).getroot()
    space = page.tag.removesuffix("mediawiki")
    for entry in page.iter(f"{space}page"):
        title = entry.findtext(f"{space}title", "")
        article = entry.findtext(f"{space}ns") == "0" and not title.startswith("List of ")
        if article and entry.find(f"{space}redirect") is None:
            text = prose(entry.findtext(f"{space}revision/{space}text", ""))
            if len(text) >= shortest:
                yield Article(title, text)
