"""Wikitext to prose, one habit of the markup a line."""

import bz2

import pytest

from bondwise.demo.wikitext import articles, prose

REST = " is what this sentence, which is long enough to count as a sentence of prose, is about."


@pytest.mark.parametrize(
    ("markup", "said"),
    [
        ("'''A''' ''b'' '''''c'''''", "A b c"),
        ("[[a]] [[a b|c]]s [[#Part|d]]", "a cs d"),
        ("[http://x.org/y the page] and [https://x.org]", "the page and"),
        ('a<ref>{{cite|x}}</ref> b<ref name="n" /> c<!-- [[d]] -->', "a b c"),
        ("a (pronounced {{IPA|x{{y|z}}}}) b", "a b"),
        ("a ({{lang-fr|x}}; 1900) b", "a (1900) b"),
        ("{{convert|12|km|mi|0}} and {{lang|fr|mot}} and {{nowrap|1 2}}", "12 km and mot and 1 2"),
        ("a&nbsp;b &amp; c&mdash;d", "a b & c\N{EM DASH}d"),
        ("CO<sub>2</sub> <small>x</small>", "CO2 x"),
        ("[[File:a.jpg|thumb|a [[link|in]] a caption]]A", "A"),
        ("[[Category:X]][[de:Y]]A", "A"),
    ],
)
def test_markup_goes_and_words_stay(markup, said) -> None:
    assert prose(markup + REST) == said + REST


def test_only_paragraphs_are_left() -> None:
    page = "\n".join(
        [
            "{{Infobox|name=A\n|text=" + REST + "}}",
            "A" + REST,
            "==Heading==",
            "* item" + REST,
            ": set off" + REST,
            '{| class="wikitable"\n! head\n|-\n| cell' + REST + "\n{|\n| inner\n|}\n|}",
            "where <math>x</math>" + REST,
            "too short",
            "__NOTOC__",
            "B" + REST,
            "== See also ==",
            "C" + REST,
        ]
    )
    assert prose(page) == f"A{REST}\n\nB{REST}"


def test_redirects_lists_short_pages_and_other_spaces_are_left_out(tmp_path) -> None:
    def page(title: str, text: str, space: int = 0, extra: str = "") -> str:
        body = f"<title>{title}</title><ns>{space}</ns>{extra}"
        return f"<page>{body}<revision><text>{text}</text></revision></page>"

    pages = [
        page("A", REST * 3),
        page("B", REST * 3, extra='<redirect title="A" />'),
        page("List of A", REST * 3),
        page("Wikipedia:A", REST * 3, space=4),
        page("C", "short"),
        page("D", REST * 3),
    ]
    xml = f'<mediawiki xmlns="http://x.org/">{"".join(pages)}</mediawiki>'
    (tmp_path / "dump.bz2").write_bytes(bz2.compress(xml.encode()))
    found = list(articles(tmp_path / "dump.bz2", shortest=200))
    assert [(a.title, a.text) for a in found] == [(t, (REST * 3).strip()) for t in "AD"]
