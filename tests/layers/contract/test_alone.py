"""Layers in processes of their own: compiled and exported graphs, two processes that share them."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

TESTS = Path(__file__).parents[2]
MOST = ["few", pytest.param("all", marks=pytest.mark.thorough)]


def start(script: str, *given: object) -> subprocess.Popen:
    paths = [str(TESTS), str(TESTS.parent / "src"), os.environ.get("PYTHONPATH", "")]
    return subprocess.Popen(
        [sys.executable, str(Path(__file__).with_name(script)), *map(str, given)],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1"},
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(*running: subprocess.Popen) -> None:
    for process in running:
        _, said = process.communicate(timeout=280)
        assert process.returncode == 0, said[said.rfind("AssertionError") :][-6000:]


@pytest.mark.compile
@pytest.mark.parametrize("most", MOST)
@pytest.mark.parametrize("way", ["compiled", "exported"])
def test_one_graph_for_every_batch(way, most):
    finish(start("graphs.py", way, most))


@pytest.mark.parametrize("most", MOST)
def test_sharded_by_two_processes(tmp_path, most):
    finish(*(start("sharded.py", rank, tmp_path / "meet", most) for rank in range(2)))
