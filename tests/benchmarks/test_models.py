"""The speed of whole models: random low-rank layers are sound, and the page says what was found."""

import json
import sys

import models
import pytest
import torch
from torch import nn

import bondwise as bw
import tiny
from bondwise.gauge.pivots import unpack


@pytest.mark.parametrize("shape", [(24, 40), (40, 24), (32, 32)])
def test_a_random_layer_is_low_rank_and_stores_no_gauge(shape):
    out, inp = shape
    linear, rank = nn.Linear(inp, out), 9
    layer = models.random_layer(bw.lowrank(out, inp, rank), linear)
    x = torch.randn(5, inp)
    torch.testing.assert_close(layer(x), x @ layer.dense().T + linear.bias, atol=1e-5, rtol=1e-4)
    assert torch.linalg.matrix_rank(layer.dense().double(), rtol=1e-6) == rank
    assert sum(core.numel() for core in layer.matrices()) == rank * (out + inp - rank)
    (term,) = layer.terms
    (pivots,) = term.kind.stored(term.places)
    assert int(unpack(pivots, inp).sum()) == rank


@pytest.fixture
def page(tmp_path, monkeypatch):
    """The script on a tiny Llama, away from the cache and the docs."""
    page = tmp_path / "page.md"
    page.write_text("before\n<!-- models -->\n<!-- end of models -->\nafter\n")
    monkeypatch.setattr(models, "KEPT", tmp_path / "kept")
    monkeypatch.setattr(models, "PAGE", page)
    monkeypatch.setattr(models, "_config", lambda _: tiny.llama().config)
    monkeypatch.setattr("bondwise.bench.verb.peak_bytes", lambda *_: 3 * 2**30)
    return page


def test_it_measures_and_writes_its_section_which_is_empty_without(page, tmp_path, monkeypatch):
    results, before = tmp_path / "results", page.read_text()
    monkeypatch.setattr(sys, "argv", ["models.py", "--page", "--results", str(results)])
    models.main()
    assert page.read_text() == before
    flags = ["--models", "wide", "--dtypes", "float32", "--results", str(results)]
    few = ["--prompt", "16", "--tokens", "4", "--repeats", "2"]
    monkeypatch.setattr(sys, "argv", ["models.py", *flags, *few])
    models.main()
    entry = json.loads((results / "model-wide-0.5-float32.json").read_text())
    assert str(tmp_path) not in json.dumps(entry)
    # compressed to a half; some weights this small are quicker whole
    assert 0.4 < entry["ratio"]["macs"]["prefill"] <= 1
    assert entry["after"]["networks"] == 14
    text = page.read_text()
    assert text.startswith("before\n<!-- models -->\n\n## How fast models run\n")
    assert text.endswith("<!-- end of models -->\nafter\n")
    for part in ("decode, tokens/s", "time to first token", "the model in memory", "peak memory"):
        assert f"| {part}" in text
    assert "--models wide --dtypes float32`" in text
    assert f"{entry['prepared']['ratio']['decode']['median']:.2f} [" in text
    assert "| as built | prepared |" in text
    monkeypatch.setattr(sys, "argv", ["models.py", "--page", "--results", str(results)])
    models.main()
    assert page.read_text() == text
