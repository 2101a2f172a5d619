"""Shared by all tests: one thread and one seed, so that runs repeat and no two fight for cores."""

import os
from pathlib import Path

import pytest
import torch
from hypothesis import settings

import tiny
from bondwise.compress.effort import EFFORT
from bondwise.flow.chains import blocks
from bondwise.layers.prepare import contest

torch.set_num_threads(1)
settings.register_profile("quick", deadline=None, max_examples=10)
settings.register_profile("thorough", deadline=None, max_examples=50)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "quick"))


@pytest.fixture(autouse=True)
def seeded():
    """Each test draws the same numbers, whatever ran before it and in which process."""
    torch.manual_seed(0)


@pytest.fixture
def in_float32(monkeypatch) -> None:
    """The precision "auto" is float32 here; not in processes that a test starts."""
    monkeypatch.setattr(blocks, "fast_bfloat16", lambda _device: False)


@pytest.fixture
def brief(monkeypatch) -> None:
    """Little work for each block, for tests of what goes on around it."""
    monkeypatch.setitem(EFFORT, "fast", tiny.BRIEF)


@pytest.fixture
def briefly(monkeypatch) -> None:
    """Each way of a layer is timed once, for tests in which its seconds are of no interest."""
    for name, value in {"LEAST": 0.0, "FEWEST": 1, "IN_A_ROW": 1, "LOOKS": 1}.items():
        monkeypatch.setattr(contest, name, value)


@pytest.fixture(scope="session")
def shelf(tmp_path_factory) -> Path:
    """Tiny models as folders, and a text: to be read only."""
    folder = tmp_path_factory.mktemp("shelf")
    tiny.on_disk(tiny.llama(), folder / "llama")
    tiny.on_disk(tiny.gpt2(), folder / "gpt2")
    tiny.on_disk(tiny.bert(), folder / "bert")
    tiny.on_disk(tiny.llama(tied=True), folder / "tied", torch.bfloat16)
    (folder / "text.txt").write_text(tiny.text(), encoding="utf-8")
    return folder
