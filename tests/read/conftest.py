"""A tiny compressed language model and one reading of it, made once: to be read only."""

import pytest

import bondwise as bw
import tiny
from bondwise.read.verb import Reader


@pytest.fixture(scope="session")
def model():
    """A tiny Llama of which half is left."""
    return bw.tensorize(tiny.llama(), keep=0.5, seed=0).model


@pytest.fixture(scope="session")
def folder(model, tmp_path_factory):
    """It as compress leaves it."""
    out = tmp_path_factory.mktemp("read") / "small"
    bw.save(model, out, tokenizer=tiny.tokenizer())
    return out


@pytest.fixture(scope="session")
def reader(folder, shelf):
    """Makes a reader of the folder, with less to do than by default."""

    def make(**other):
        given = {"windows": 8, "length": 32, "draws": 3, "measure": 10, "per_bond": 6} | other
        return Reader(str(folder), str(shelf / "text.txt"), **given)

    return make


@pytest.fixture(scope="session")
def report(reader):
    """The reading."""
    return reader().run()
