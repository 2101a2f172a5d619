"""Tiny tensorized models as folders."""

from pathlib import Path

import pytest

import bondwise as bw
import tiny


@pytest.fixture(scope="session")
def small(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("small")
    for kind in ("llama", "gpt2", "bert"):
        bw.save(tiny.cut(kind).result.model, folder / kind)
    return folder
