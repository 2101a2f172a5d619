"""Tiny tensorized models as folders."""

from pathlib import Path

import pytest

import bondwise as bw
import tiny


@pytest.fixture(scope="session")
def small(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("small")
    for name, model in {"llama": tiny.llama(), "gpt2": tiny.gpt2(), "bert": tiny.bert()}.items():
        bw.save(bw.tensorize(model, keep=0.6).model, folder / name)
    return folder
