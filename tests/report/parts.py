"""An HTML text taken apart, for the tests of both pages."""

import json
import re
from html.parser import HTMLParser

VOID = {"meta", "link", "input"}


class Parts(HTMLParser):
    """Checks that elements close in order, ids are unique and nothing is fetched; gathers parts."""

    def __init__(self, html):
        super().__init__()
        self.open, self.attributes, self.texts, self.tags = [], [], [], []
        self.feed(html)
        self.close()
        assert self.open == []
        assert len(self.ids) == len(set(self.ids))
        for tag, key, value in self.attributes:
            if key in ("src", "href", "xlink:href", "action", "poster", "srcset", "data"):
                assert value.startswith("#") or value == "data:,", (tag, key, value)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [(tag, key, value or "") for key, value in attrs]
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open[-1:] not in (["script"], ["style"]):
            self.texts.append(data)

    def values(self, key, of=None):
        return [v for tag, k, v in self.attributes if k == key and of in (None, tag)]

    @property
    def ids(self):
        return self.values("id")


def scripts(html):
    """The data of a page by the id of its script."""
    found = re.findall(r'<script type="application/json" id="([\w-]+)">(.*?)</script>', html)
    return {name: json.loads(text) for name, text in found}
