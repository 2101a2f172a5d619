"""The page is whole, safe, self-contained, and the data it shows."""

import math
import re

from bondwise.report.page import page
from report.parts import Parts, scripts


def test_well_formed_with_working_anchors_and_nothing_is_fetched(written):
    for _, html in written.values():
        reader = Parts(html)
        anchors = {v[1:] for tag, key, v in reader.attributes if tag == "a" and key == "href"}
        assert anchors <= set(reader.ids)
        outside_text = re.sub(r">[^<]*<", "><", html)
        assert not re.search(r"https?://|url\(|@import", outside_text)


def test_every_weight_is_in_the_table(written):
    for name, (report, html) in written.items():
        table = re.search(r'<table id="table".*?</table>', html, re.DOTALL)[0]
        assert {weight["name"] for weight in report["weights"]} <= set(Parts(table).texts), name


def test_every_block_has_a_picture_and_its_details(written):
    report, html = written["language_model"]
    reader = Parts(html)
    for k in range(30):
        assert f"block-{k}" in reader.ids
    tips = {value for _, key, value in reader.attributes if key == "data-tip"}
    for weight in report["weights"]:
        if weight["action"] == "tensorize":
            rank, error = weight["ranks"]["a"], weight["error"]
            assert any(f"lowrank {rank}," in tip and f"{error:.3f}" in tip for tip in tips)


def test_hostile_names_are_text(written):
    reader = Parts(written["odd_networks"][1])
    assert reader.tags.count("script") == 2
    assert any("<b>later</b>" in text for text in reader.texts)
    assert any("<script>alert(1)</script>" in text for text in reader.texts)


def test_the_page_is_also_the_data(written):
    demo, html = written["language_model"]
    assert scripts(html)["report"] == demo
    odd, html = written["odd_networks"]
    assert odd["evaluation"][0]["after"]["perplexity"] == math.inf
    read = scripts(html)["report"]
    assert read["evaluation"][0]["after"]["perplexity"] is None  # JSON has no infinity
    assert read["weights"] == odd["weights"]


def test_a_source_file_is_compared_honestly(written):
    demo, html = written["language_model"]
    text = " ".join(Parts(html).texts)
    assert f"{demo['bytes']['after'] / demo['bytes']['source_file']:.2f} times its size" in text
    assert "smaller" not in text


def test_sections_without_content_are_left_out(written):
    there = {"quality", "samples", "steps", "repeat"}
    assert there <= set(Parts(written["language_model"][1]).ids)
    ids = Parts(written["bare"][1]).ids
    assert not there & set(ids)
    assert {"cost", "blocks", "depth", "sizes", "weights", "untouched"} <= set(ids)


def test_a_block_without_error_or_left_alone_still_draws(demo):
    few = demo | {"weights": demo["weights"][:15]}
    few["weights"][1] |= {"action": "leave", "reason": "larger than dense", "format": None}
    few["weights"][1] |= {"network": None, "ranks": {}, "sizes": {}, "error": None}
    html = page(few)
    assert 'class="dense"' in html
    assert "left alone: larger than dense" in html


def test_300_weights_stay_light(written):
    assert len(written["language_model"][1].encode()) < 1_500_000


LOOK = """
(() => {
  const table = document.getElementById("table");
  const first = () => table.tBodies[0].rows[0].cells[0].textContent;
  table.querySelectorAll("thead button")[7].click();
  table.querySelectorAll("thead button")[7].click();
  const filter = document.getElementById("filter");
  filter.value = "v_proj 192X576";
  filter.dispatchEvent(new Event("input"));
  const before = getComputedStyle(document.body).backgroundColor;
  document.getElementById("theme").click();
  location.hash = "#block-7";
  return {
    requests: performance.getEntriesByType("resource").map((entry) => entry.name),
    first: first(), shown: document.getElementById("shown").textContent,
    turned: before !== getComputedStyle(document.body).backgroundColor,
    open: getComputedStyle(document.getElementById("block-7")).display,
    shut: getComputedStyle(document.getElementById("block-8")).display,
    wide: document.documentElement.scrollWidth - document.documentElement.clientWidth,
  };
})()
"""


def test_a_browser_opens_it_without_errors_or_requests(browser, written, tmp_path):
    demo, html = written["language_model"]
    file = tmp_path / "report.html"
    file.write_text(html, encoding="utf-8")
    browser.events.clear()
    browser.size(400)
    browser.open(file.as_uri())
    found = browser.run(LOOK)
    assert browser.faults() == []
    worst = max((w for w in demo["weights"] if w["error"] is not None), key=lambda w: w["error"])
    assert found == {
        "requests": [], "first": worst["name"], "shown": "30 weights", "turned": True,
        "open": "block", "shut": "none", "wide": 0,
    }  # fmt: skip
