"""What the pages of healing say is what their cells say."""

import json
import sys
from pathlib import Path
from typing import Any

import healing
import pytest


def healed(method: str, keep: float, ratio: float, **more: Any) -> dict[str, Any]:
    text = {"ratio": ratio, "interval": [ratio - 0.01, ratio + 0.01], "dense": 20.0}
    text |= {"kl": 0.25, "top1": 0.5}
    setting = {"minutes": 15.0, "threads": 2, "windows": 64, "length": 512}
    texts = dict.fromkeys(healing.TEXTS, text)
    return {"method": method, "keep": keep, "texts": texts, **setting, **more}


TRAINED = {"steps": 7, "measured": [40.0, 30.0], "curve": [[60.0, 35.0], [120.0, 30.0]]}
TRAINED |= {"step_seconds": 2.0, "peak_bytes": 10**9}
CELLS = [
    healed("none", 0.6, 2.1),
    healed("text", 0.6, 1.5, **TRAINED),
    healed("dense", 1.0, 0.99, **TRAINED | {"measured": [20.0, 19.0], "curve": [[60.0, 19.0]]}),
]


def rows(table: str) -> list[list[str]]:
    lines = [line for line in table.splitlines() if line.startswith("| ")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[1:]]


def test_a_table_of_healing_says_what_its_cells_say():
    dense, none, text = rows(healing.section(CELLS))
    assert dense[:2] == ["1", healing.METHODS["dense"][0]]
    assert none[2:5] == ["", "", "2.100x (2.090 to 2.110)"]
    assert text[2:5] == ["15", "7", "1.500x (1.490 to 1.510)"]
    assert text[6:9] == ["0.250", "50.0%", "2.0 s"]


def test_what_a_run_said_of_itself_stands_below_the_table():
    said = healed("global", 0.6, 2.1, **TRAINED, notes=["ended early: no better perplexity"])
    text = healing.section([*CELLS, said])
    assert "- keep 0.6, healed, 15 min: ended early: no better perplexity." in text.splitlines()
    assert "said of themselves" not in healing.section(CELLS)


def test_a_curve_is_drawn_over_the_dense_perplexity_before_training():
    drawn = healing.picture(CELLS)
    assert "keep 0.6" in drawn
    assert "1.5" in drawn  # 30 over 20
    assert healing.picture(CELLS[:2]) == ""  # without a dense run


def test_a_folder_without_cells_is_said_and_the_page_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    page = healing.PAGE.read_bytes()
    monkeypatch.setattr(sys, "argv", ["x", "--page", "--results", str(tmp_path)])
    with pytest.raises(SystemExit, match="holds no cell"):
        healing.main()
    assert healing.PAGE.read_bytes() == page


def test_the_page_is_made_of_the_results_that_are_kept():
    """Who changes a cell or the table and not the page is told."""
    folder = healing.HERE / "results" / "healing"
    found = [json.loads(file.read_text("utf-8")) for file in sorted(folder.glob("*.json"))]
    assert healing.section(found) in healing.PAGE.read_text("utf-8")
