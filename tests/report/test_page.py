"""The page is whole, safe, self-contained, and the data it shows."""

import json
import math
import re
import shutil
import subprocess

import pytest

from bondwise.report.page import page, write_page
from report.parts import Parts

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "chrome"))), None)


def embedded(html):
    return json.loads(
        re.search(r'<script type="application/json" id="report">(.*?)</script>', html)[1]
    )


def test_well_formed_with_unique_ids_and_working_anchors(report):
    reader = Parts(page(report))
    assert len(reader.ids) == len(set(reader.ids))
    anchors = {value[1:] for tag, key, value in reader.attributes if tag == "a" and key == "href"}
    assert anchors <= set(reader.ids)


def test_every_weight_is_in_the_table(report):
    table = re.search(r'<table id="table".*?</table>', page(report), re.DOTALL)[0]
    texts = Parts(table).texts
    for weight in report["weights"]:
        assert weight["name"] in texts


def test_every_block_has_a_picture_and_its_details(demo):
    reader = Parts(page(demo))
    for k in range(30):
        assert f"block-{k}" in reader.ids
    tips = [value for _, key, value in reader.attributes if key == "data-tip"]
    for weight in demo["weights"]:
        if weight["action"] == "tensorize":
            rank, error = weight["ranks"]["a"], weight["error"]
            assert any(f"lowrank {rank}," in tip and f"{error:.3f}" in tip for tip in tips)


def test_nothing_is_fetched_from_anywhere(report):
    html = page(report)
    for tag, key, value in Parts(html).attributes:
        if key in ("src", "href", "xlink:href", "action", "poster", "srcset", "data"):
            assert value.startswith("#") or value == "data:,", (tag, key, value)
    outside_text = re.sub(r">[^<]*<", "><", html)
    assert not re.search(r"https?://|url\(|@import", outside_text)


def test_hostile_names_are_text(odd):
    reader = Parts(page(odd))
    assert reader.tags.count("script") == 2
    assert any("<b>later</b>" in text for text in reader.texts)
    assert any("<script>alert(1)</script>" in text for text in reader.texts)


def test_the_page_is_also_the_data(demo, odd):
    assert embedded(page(demo)) == demo
    assert odd["evaluation"][0]["after"]["perplexity"] == math.inf
    read = embedded(page(odd))
    assert read["evaluation"][0]["after"]["perplexity"] is None  # JSON has no infinity
    assert read["weights"] == odd["weights"]


def test_a_source_file_is_compared_honestly(demo):
    text = " ".join(Parts(page(demo)).texts)
    assert f"{demo['bytes']['after'] / demo['bytes']['source_file']:.2f} times its size" in text
    assert "smaller" not in text


def test_sections_without_content_are_left_out(demo):
    for key in ("evaluation", "similarity", "samples", "steps", "recipe", "commands"):
        del demo[key]
    ids = Parts(page(demo)).ids
    assert not {"quality", "samples", "steps", "repeat"} & set(ids)
    assert {"cost", "blocks", "depth", "sizes", "weights", "untouched"} <= set(ids)


def test_a_block_without_error_or_left_alone_still_draws(demo):
    demo["weights"][1] |= {"action": "leave", "reason": "larger than dense", "format": None}
    demo["weights"][1] |= {"network": None, "ranks": {}, "sizes": {}, "error": None}
    html = page(demo)
    assert 'class="dense"' in html
    assert "left alone: larger than dense" in html


def test_written_whole_or_not_at_all(demo, tmp_path, monkeypatch):
    target = tmp_path / "report.html"
    assert write_page(demo, target) == target
    before = target.read_bytes()

    def broken(report):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("bondwise.report.page.page", broken)
    with pytest.raises(OSError, match="No space"):
        write_page(demo, target)
    assert target.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["report.html"]


def test_300_weights_stay_light(demo):
    assert len(page(demo).encode()) < 1_500_000


PROBE = """
<script>
addEventListener("load", () => setTimeout(() => {
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
  document.body.append(Object.assign(document.createElement("pre"), { id: "probe",
    textContent: JSON.stringify({
      requests: performance.getEntriesByType("resource").map((entry) => entry.name),
      first: first(), shown: document.getElementById("shown").textContent,
      turned: before !== getComputedStyle(document.body).backgroundColor,
      open: getComputedStyle(document.getElementById("block-7")).display,
      shut: getComputedStyle(document.getElementById("block-8")).display,
      wide: document.documentElement.scrollWidth - document.documentElement.clientWidth,
    }) }));
}, 50));
</script>
"""


@pytest.mark.skipif(CHROMIUM is None, reason="needs chromium to open the page")
def test_a_browser_opens_it_without_errors_or_requests(demo, tmp_path):
    file = tmp_path / "report.html"
    file.write_text(page(demo).replace("</body>", PROBE + "</body>"), encoding="utf-8")
    flags = (
        "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-sync "
        "--disable-background-networking --disable-component-update --enable-logging=stderr "
        "--window-size=400,900 --virtual-time-budget=3000 --dump-dom"
    )
    command = [CHROMIUM, *flags.split(), f"--user-data-dir={tmp_path / 'profile'}", file.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    assert "CONSOLE" not in done.stderr  # an error, or a request that the page's policy refused
    found = json.loads(re.search(r'<pre id="probe">(.*?)</pre>', done.stdout)[1])
    worst = max((w for w in demo["weights"] if w["error"] is not None), key=lambda w: w["error"])
    assert found == {
        "requests": [], "first": worst["name"], "shown": "30 weights", "turned": True,
        "open": "block", "shut": "none", "wide": 0,
    }  # fmt: skip
