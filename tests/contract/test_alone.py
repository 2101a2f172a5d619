"""Layers in processes of their own: compiled and exported graphs, two processes that share them."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

TESTS = Path(__file__).parents[1]
MOST = ["few", pytest.param("all", marks=pytest.mark.thorough)]


def alone(script: str, *processes: tuple[object, ...]) -> None:
    """Run a script with some arguments, once for each process."""
    paths = [str(TESTS), str(TESTS.parent / "src"), os.environ.get("PYTHONPATH", "")]
    settings = {"PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(Path(__file__).with_name(script))]
    running = [
        subprocess.Popen(
            [*command, *map(str, given)],
            env=os.environ | settings,
            stderr=subprocess.PIPE,
            text=True,
        )
        for given in processes
    ]
    said = [process.communicate()[1] for process in running]
    for process, words in zip(running, said, strict=True):
        assert process.returncode == 0, words[words.rfind("AssertionError") :][-6000:]


@pytest.mark.compile
@pytest.mark.parametrize("most", MOST)
@pytest.mark.parametrize("way", ["compiled", "exported", "prepared"])
def test_one_graph_for_every_batch(way, most):
    alone("graphs.py", (way, most))


@pytest.mark.parametrize("most", MOST)
def test_sharded_by_two_processes(tmp_path, most):
    alone("sharded.py", *((rank, tmp_path / "meet", most) for rank in range(2)))
