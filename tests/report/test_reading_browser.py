"""The page of a reading in a browser: every view opens, by pointer, by keyboard and by address."""

import re
import time
from urllib.parse import quote
from xml.etree import ElementTree

import pytest

import readings
from bondwise.report.reading import write_reading

SPACE = "{http://www.w3.org/2000/svg}"
QUERY = "model.layers.1.self_attn.q_proj"
LAYER, BOND = f"#layer/{QUERY}", f"#bond/{QUERY}/a"
FEATURE = f"#feature/{QUERY}/a/2"
VIEWS = ["#model", LAYER, BOND, FEATURE]
TITLE = "document.querySelector('#view div:not([hidden]) h2').textContent"


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pages")
    made = {"plain": readings.reading(), "odd": readings.odd()}
    return {name: write_reading(r, folder / f"{name}.html").as_uri() for name, r in made.items()}


@pytest.fixture
def tab(browser, pages):
    """The plain page, opened anew; at the end nothing was asked for and nothing went wrong."""
    browser.events.clear()
    browser.size(1180)
    browser.dark(on=False)
    browser.open(pages["plain"])
    yield browser
    assert browser.faults() == []


def go(tab, address):
    tab.run(f"location.hash = {address!r}")
    tab.until(f"location.hash === {address!r}")
    tab.run("new Promise((done) => setTimeout(done, 0))")


def click(tab, selector):
    tab.run(f"document.querySelector({selector!r}).dispatchEvent(new MouseEvent('click', "
            "{bubbles: true, cancelable: true, view: window}))")  # fmt: skip
    tab.run("new Promise((done) => setTimeout(done, 0))")


def choose(tab, name, value):
    tab.run(f"{{ const s = document.getElementById({name!r}); s.value = {value!r}; "
            "s.dispatchEvent(new Event('change')); }")  # fmt: skip


def title(tab):
    return tab.run(TITLE)


def where(tab):
    return tab.run("location.hash")


@pytest.mark.parametrize("wide", [400, 1180])
@pytest.mark.parametrize("name", ["plain", "odd"])
def test_every_link_opens_a_view_that_fits_a_telephone_too(tab, pages, name, wide):
    tab.size(wide)
    tab.open(pages[name])
    over = "document.documentElement.scrollWidth - document.documentElement.clientWidth"
    seen, todo = set(), ["#model"]
    while todo:
        address = todo.pop()
        seen.add(address)
        go(tab, address)
        assert title(tab) != "Nothing here", address
        assert tab.run(over) <= 0, address
        links = tab.run(
            "[...document.querySelectorAll('nav a, #view > div:not([hidden]) a')]"
            ".map((link) => link.getAttribute('href'))"
        )
        todo += [link for link in dict.fromkeys(links) if link not in {*seen, *todo}]
    kinds = {address[1:].split("/")[0] for address in seen}
    assert kinds == {"model", "layer", "bond", "feature"}
    if name == "plain":
        assert len(seen) == 1 + 14 + 14 + 14 * 6
    assert tab.faults() == []


def test_an_address_that_leads_nowhere_says_so(tab):
    nowhere = ["#layer/none", f"#bond/{QUERY}/zz", f"#feature/{QUERY}/a/999", "#what", "#bond/x"]
    for address in (*nowhere, "#%E0%A4%A"):
        go(tab, address)
        assert title(tab) == "Nothing here", address
        click(tab, "#stage a")
        assert title(tab) == "The model"


def test_a_view_opens_by_its_address_at_once(tab, pages):
    tab.open(pages["plain"] + FEATURE)
    tab.until(f"{TITLE} === 'Index 2 of bond a of {QUERY}'")
    odd = quote(readings.odd()["layers"][0]["name"], safe="")
    tab.open(f"{pages['odd']}#feature/{odd}/a/1")
    tab.until(f"{TITLE} === 'Index 1 of bond a of h.0/attn <i>%41#q</i>'")
    assert tab.run("document.querySelectorAll('i').length") == tab.run(
        "document.querySelectorAll('i.swatch, i.bar, .tokens i').length"
    )


def test_clicks_lead_down_and_back_leads_up(tab):
    click(tab, f".cell[href='{LAYER}']")
    assert title(tab) == f"Layer {QUERY}"
    click(tab, "#stage .cards .card")
    assert title(tab) == f"Bond a of {QUERY}"
    click(tab, "#stage .features .card")
    assert title(tab).startswith("Index ")
    assert tab.run("document.activeElement.tagName") == "H2"
    for address, words in ((BOND, "Bond a"), (LAYER, "Layer"), ("", "The model")):
        tab.run("history.back()")
        tab.until(f"location.hash === {address!r} && {TITLE}.startsWith({words!r})")


def test_the_keyboard_alone_leads_everywhere(tab):
    tab.key("Tab")
    assert tab.run("document.activeElement.className") == "skip"
    tab.key("Enter")
    assert tab.run("document.activeElement.id") == "view"
    assert where(tab) == ""
    for _ in range(8):
        tab.key("Tab")
        if tab.run("document.activeElement.matches('.cell')"):
            break
    first = tab.run("document.activeElement.getAttribute('href')")
    assert first == "#layer/model.layers.0.self_attn.q_proj"
    tab.key("ArrowDown", 2)
    tab.key("ArrowRight")
    tab.key("ArrowRight")  # there is no third block
    tab.key("ArrowUp", 2)
    assert tab.run("document.activeElement.getAttribute('href')") == LAYER
    ring = "getComputedStyle(document.activeElement.querySelector('.hit')).stroke"
    assert tab.run(ring) not in ("none", "rgba(0, 0, 0, 0)")
    tab.key("Enter")
    assert where(tab) == LAYER
    for address in (BOND, None):
        for _ in range(12):
            tab.key("Tab")
            if tab.run("document.activeElement.matches('.card')"):
                break
        if address is None:
            for key in ("ArrowRight", "ArrowRight", "ArrowLeft"):
                tab.key(key)
            cards = "[...document.querySelectorAll('.features .card')]"
            assert tab.run(f"{cards}.indexOf(document.activeElement)") == 1
        tab.key("Enter")
        assert address is None or where(tab) == address
    order = [tab.run("document.querySelector('#stage h2').textContent")]
    tab.key("ArrowRight", 2)
    order.append(title(tab))
    tab.key("ArrowLeft", 2)
    assert title(tab) == order[0] != order[1]
    last = where(tab)
    tab.key("Escape")
    assert where(tab) == BOND
    assert tab.run("document.activeElement.getAttribute('href')") == last
    tab.key("Escape")
    assert where(tab) == LAYER
    tab.key("Escape")
    assert where(tab) == "#model"
    assert tab.run("document.activeElement.getAttribute('href')") == LAYER


def test_the_search_box_finds_layers(tab):
    tab.run("document.getElementById('search').focus()")
    tab.send("Input.insertText", text="1 q_proj")
    links = tab.run("[...document.querySelectorAll('#hits a')].map((link) => link.textContent)")
    assert links == [QUERY]
    tab.key("ArrowDown")
    assert tab.run("document.activeElement.textContent") == QUERY
    tab.key("ArrowUp")
    tab.key("Enter")
    assert where(tab) == LAYER
    tab.run("document.getElementById('search').focus()")
    tab.send("Input.insertText", text="nothing like it")
    assert tab.run("document.querySelector('#hits p').textContent") == "0 layers"
    tab.key("Escape")
    assert tab.run("document.getElementById('hits').hidden")
    assert where(tab) == LAYER


def test_switches_redraw(tab):
    go(tab, LAYER)
    bars = "[...document.querySelectorAll('.gauges rect')].map((r) => r.attributes.height.value)"
    seen = {str(tab.run(bars))}
    for kind in ("raw", "ica"):
        click(tab, f"input[value={kind}]")
        seen.add(str(tab.run(bars)))
    assert len(seen) == 3
    assert tab.run("document.querySelectorAll('.gauges rect.hollow').length") > 0
    go(tab, BOND)
    line = "document.querySelector('path.line.own').getAttribute('d')"
    before = tab.run(line)
    click(tab, ".picture .switch input")
    assert tab.run(line) != before
    texts = "[...document.querySelectorAll('.features b')].map((b) => b.firstChild.data.slice(6))"
    cards = f"{texts}.map((text) => parseInt(text))"
    by_importance = tab.run(cards)
    choose(tab, "sorting", "index")
    assert tab.run(cards) == sorted(by_importance) == [0, 1, 2, 3, 4, 5]
    click(tab, ".controls .switch input")
    own = readings.reading()["layers"][7]["bonds"][0]["features"]
    assert tab.run(cards) == [f["index"] for f in own if f["identified"]]


def test_another_null_colours_the_strip_anew(tab):
    marks = "[...document.querySelectorAll('.cell .far')].map((text) => text.textContent)"
    shades = "[...document.querySelectorAll('.cell .tie')].map((tie) => tie.getAttribute('class'))"
    before, colours = tab.run(marks), tab.run(shades)
    for name in ("gaussian", "random gauge", "shuffled"):
        choose(tab, "null", name)
        if name == "shuffled":
            assert (tab.run(marks), tab.run(shades)) == (before, colours)
        else:
            assert tab.run(marks) != before
            assert tab.run(shades) != colours


def test_an_example_shows_its_text(tab):
    go(tab, FEATURE)
    given = readings.reading()
    corpus, feature = given["corpus"], given["layers"][7]["bonds"][0]["features"][2]
    position, _ = feature["examples"][0]
    assert tab.run("document.querySelector('.examples mark').textContent") == corpus["pieces"][
        corpus["ids"][position]
    ].replace("\n", "\u21b5")
    start = position - position % corpus["length"]
    window = range(max(start, position - 16), min(start + corpus["length"], position + 8))
    text = "".join(corpus["pieces"][corpus["ids"][k]] for k in window).replace("\n", "\u21b5")
    assert tab.run("document.querySelector('.examples p').textContent").strip("\u2026") == text


def arrived(folder):
    for _ in range(500):
        for file in folder.glob("*.svg"):
            if file.stat().st_size:
                return file
        time.sleep(0.02)
    raise AssertionError("no file came")


def test_every_picture_is_saved_as_a_file_that_stands_alone(tab, pages, tmp_path):
    folder = tmp_path / "saved"
    folder.mkdir()
    session, tab.session = tab.session, None
    tab.send("Browser.setDownloadBehavior", behavior="allow", downloadPath=str(folder))
    tab.session = session
    saved = {}
    for dark in (False, True):
        tab.dark(on=dark)
        tab.open(pages["plain"])  # a page may save ten files
        for address in VIEWS:
            go(tab, address)
            buttons = "[...document.querySelectorAll('#view > div:not([hidden]) .save')]"
            for k in range(tab.run(f"{buttons}.length")):
                tab.run(f"{buttons}[{k}].click()")
                file = arrived(folder)
                text = file.read_text()
                assert saved.setdefault(file.name, text) == text, "light colours in both themes"
                file.unlink()
    assert len(saved) == 1 + 3 + 2 + 1
    for name, text in saved.items():
        root = ElementTree.fromstring(text)
        assert root.tag == f"{SPACE}svg", name
        assert float(root.get("width")) > 30, name
        assert not re.search(r"var\(|currentColor|\s(class|style|href|data-\w+)=", text), name
        shapes = [e for tag in ("path", "rect", "circle") for e in root.iter(f"{SPACE}{tag}")]
        assert shapes, name
        assert "rgb(" in text, name


@pytest.mark.parametrize("dark", [False, True])
def test_words_can_be_read(tab, dark):
    tab.dark(on=dark)
    light = tab.run("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert light != dark
    names = ("--paper", "--ink", "--soft", "--link")
    value = "getComputedStyle(document.documentElement).getPropertyValue"
    paper, *others = (luminance(tab.run(f"{value}({name!r})")) for name in names)
    for other in others:
        low, high = sorted((paper, other))
        assert (high + 0.05) / (low + 0.05) >= 4.5, names


def luminance(colour):
    parts = [int(colour.strip()[k : k + 2], 16) / 255 for k in (1, 3, 5)]
    linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def test_whatever_can_be_used_has_a_name_and_the_page_has_landmarks(tab):
    tab.send("Accessibility.enable")
    usable = {"link", "button", "checkbox", "radio", "combobox", "searchbox", "image", "img"}
    for address in VIEWS:
        go(tab, address)
        nodes = tab.send("Accessibility.getFullAXTree")["nodes"]
        heard = [node for node in nodes if not node["ignored"]]
        seen = [(node["role"]["value"], node.get("name", {}).get("value")) for node in heard]
        assert [entry for entry in seen if entry[0] in usable and not entry[1]] == [], address
        roles = [role for role, _ in seen]
        for landmark in ("main", "navigation", "search", "banner", "contentinfo"):
            assert roles.count(landmark) == 1, (landmark, address)
        heads = tab.run(
            "[...document.querySelectorAll('h1, h2, h3')]"
            ".filter((head) => head.getClientRects().length).map((head) => head.tagName)"
        )
        assert heads[:2] == ["H1", "H2"]
    tab.send("Accessibility.disable")


def test_whoever_wants_less_motion_has_it(tab):
    feature = {"name": "prefers-reduced-motion", "value": "reduce"}
    tab.send("Emulation.setEmulatedMedia", features=[feature])
    assert tab.run("getComputedStyle(document.documentElement).scrollBehavior") == "auto"
