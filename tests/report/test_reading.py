"""The page of a reading is whole, safe and light, and carries the numbers that it was given."""

import json
import re
from base64 import b64decode
from urllib.parse import unquote

import numpy as np
import pytest

import readings
from bondwise.report import packed
from bondwise.report.atlas import link, placed
from bondwise.report.reading import reading_page, write_reading
from report.parts import Parts, scripts


@pytest.fixture(scope="module")
def pages():
    """Each reading with its page: to be read only."""
    made = {"plain": readings.reading(), "odd": readings.odd(), "empty": {"model": "none"}}
    return {name: (reading, reading_page(reading)) for name, reading in made.items()}


def test_well_formed_and_nothing_is_fetched_from_anywhere(pages):
    for _, html in pages.values():
        assert Parts(html).ids
        assert "default-src &#x27;none&#x27;" in html
        styles = "".join(re.findall(r"<style>(.*?)</style>", html, re.DOTALL))
        assert styles
        assert not re.search(r"https?://|url\(|@import", styles)


def test_every_bond_is_in_the_strip_and_in_the_table(pages):
    given, html = pages["odd"]
    parts = Parts(html)
    links = parts.values("href", "a")
    spoken = "\n".join(parts.values("aria-label", "a"))
    for layer in given["layers"]:
        assert link("layer", layer["name"]) in links
        assert layer["name"] in spoken
        for bond in layer.get("bonds", []):
            assert link("bond", layer["name"], bond["name"]) in links
            assert f"bond {bond['name']} {bond['size']}" in spoken
    assert "unknown" not in spoken


def test_hostile_text_is_text(pages):
    given, html = pages["odd"]
    assert Parts(html).tags.count("script") == 4 + len(given["layers"])
    assert "</script><b>bold</b>" in "".join(Parts(html).texts)
    assert scripts(html)["corpus"]["pieces"] == given["corpus"]["pieces"]
    assert scripts(html)["layer-0"]["name"] == given["layers"][0]["name"]


def test_addresses_read_back():
    name = "h.0/attn <i>%41#q</i>"
    assert [unquote(part) for part in link("bond", name, "a")[1:].split("/")] == ["bond", name, "a"]


def test_the_corpus_reads_back():
    for pieces, size in ((3, 2), (65_536, 2), (65_537, 4)):
        ids = [0, pieces - 1, 1, 2]
        given = {"pieces": [str(k) for k in range(pieces)], "ids": ids, "windows": 2, "length": 2}
        made = packed.corpus({"corpus": given})
        assert made["bytes"] == size
        array = np.frombuffer(b64decode(made["ids"]), dtype={2: "<u2", 4: "<u4"}[size])
        assert array.tolist() == ids
        assert made["length"] == 2


def test_features_read_back_to_three_digits(pages):
    given, html = pages["plain"]
    own = given["layers"][2]["bonds"][0]["features"]
    columns = scripts(html)["layer-2"]["bonds"][0]["features"]
    assert columns["index"] == [feature["index"] for feature in own]
    assert columns["scale"] == pytest.approx([feature["scale"] for feature in own], rel=6e-3)
    for k, feature in enumerate(own):
        flat = columns["examples"][k]
        assert flat[::2] == [position for position, _ in feature["examples"]]
        assert flat[1::2] == pytest.approx([v for _, v in feature["examples"]], rel=6e-3)
        back = [packed.SHADES.index(letter) for letter in columns["around"][k]]
        assert back == [value >> 2 for value in b64decode(feature["around"])]
        assert columns["logits"][k]["up"][0] == feature["logits"]["up"][0][0]
    assert "why_no_logits" not in columns


def test_equal_pictures_are_stored_once(pages):
    given, html = pages["plain"]
    found = scripts(html)
    sizes = {(layer["kind"], tuple(layer["sizes"].values())) for layer in given["layers"]}
    different = {values for _, values in sizes}
    assert len(found["pictures"]) == 2 * len(different)
    assert all(text.startswith("<svg") for text in found["pictures"])
    assert found["layer-0"]["diagram"] == found["layer-7"]["diagram"]


def test_layers_of_one_block_and_kind_stand_in_rows_of_their_own():
    layers = [{"name": f"expert.{k}", "block": 3, "kind": "w1"} for k in range(3)]
    cells, columns, rows = placed(layers)
    assert columns == ["3"]
    assert rows == ["w1", "w1 2", "w1 3"]
    assert [(cell.column, cell.row) for cell in cells] == [(0, 0), (0, 1), (0, 2)]


def test_what_is_not_finite_is_not_measured():
    given = readings.reading(blocks=1)
    given["layers"][0]["bonds"][0] |= {"effective_rank": float("inf"), "values": [float("nan")]}
    bond = scripts(reading_page(given))["layer-0"]["bonds"][0]
    assert bond["effective_rank"] is None
    assert bond["values"] == [None]


def test_written_whole_or_not_at_all(tmp_path):
    target, given = tmp_path / "page.html", readings.reading(blocks=1)
    plain = json.dumps(given)
    assert write_reading(given, target) == target
    assert json.dumps(given) == plain  # what was given is left as it was
    before = target.read_bytes()
    broken = readings.reading(blocks=1)
    broken["layers"][0]["bonds"][0]["features"][0]["skew"] = object()
    with pytest.raises(TypeError):
        write_reading(broken, target)
    assert target.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["page.html"]
    with pytest.raises(OSError, match="No such file"):
        write_reading(given, tmp_path / "missing" / "page.html")


def test_a_page_of_full_size_is_light():
    one, two = (len(reading_page(readings.full(blocks)).encode()) for blocks in (1, 2))
    assert one + 29 * (two - one) < 30e6
