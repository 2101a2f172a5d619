"""Pieces of work: the same files however they were shared out, cut off or gone on with."""

import errno
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from bondwise.compress.worklist import Piece, WorkList
from bondwise.errors import BudgetError, CheckpointError, DataError
from bondwise.flow import files

NAMES = ["first", "second", "third", "fourth", "fifth"]
IDENTITY = {"steps": 3, "data": "sha256:ab", "model": "sha256:cd"}


def make(at):
    """Numbers that depend on the piece alone."""
    drawn = torch.randn(4, 4, generator=torch.Generator().manual_seed(at))
    return Piece({"x": drawn @ drawn.T}, {"at": at, "name": NAMES[at]})


def contents(folder):
    return {p.name: p.read_bytes() for p in sorted(folder.glob("piece-*"))}


def whole(folder):
    WorkList(folder, NAMES, IDENTITY).run(make)
    return contents(folder)


def test_going_on_and_several_processes_give_the_same_to_the_bit(tmp_path):
    expected, folder = whole(tmp_path / "whole"), tmp_path / "shared"

    def cut(_stage, done, _total):
        if done == 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        WorkList(folder, NAMES, IDENTITY).run(make, progress=cut)
    assert [p.name for p in folder.glob("piece-*")] == ["piece-0000.safetensors"]
    changed = (folder / "piece-0000.safetensors").stat().st_mtime_ns
    first, made = WorkList(folder, NAMES, IDENTITY), []
    first.run(lambda at: made.append(at) or make(at), rank=0, world=2)
    assert made == [2, 4]
    assert first.missing == ["second", "fourth"]
    with pytest.raises(DataError, match="2 of 5 pieces are not made yet, such as second"):
        first.pieces()
    WorkList(folder, NAMES, IDENTITY).run(make, rank=1, world=2)
    assert (folder / "piece-0000.safetensors").stat().st_mtime_ns == changed
    assert contents(folder) == expected
    assert [piece.note for piece in first.pieces()] == [make(at).note for at in range(5)]
    for at, piece in enumerate(first.pieces()):
        assert torch.equal(piece.tensors["x"], make(at).tensors["x"])


def test_two_at_once_share_the_pieces_of_a_folder(tmp_path):
    expected, folder = whole(tmp_path / "whole"), tmp_path / "shared"

    def work(rank):
        WorkList(folder, NAMES, IDENTITY).run(make, rank=rank, world=2)

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(work, range(2)))
    assert contents(folder) == expected


KILLED = """
import os, signal, sys
from pathlib import Path
from test_worklist import IDENTITY, NAMES, WorkList, make
def stops(at):
    return make(at) if at < 3 else os.kill(os.getpid(), signal.SIGKILL)
WorkList(Path(sys.argv[1]), NAMES, IDENTITY).run(stops)
"""


@pytest.mark.thorough
@pytest.mark.skipif(os.name != "posix", reason="signals")
def test_a_process_that_is_killed_leaves_whole_pieces(tmp_path):
    expected, folder = whole(tmp_path / "whole"), tmp_path / "killed"
    command = [sys.executable, "-c", KILLED, str(folder)]
    done = subprocess.run(command, cwd=Path(__file__).parent, check=False)
    assert done.returncode == -9
    there = contents(folder)
    assert len(there) == 3
    assert there == {name: expected[name] for name in there}
    assert whole(folder) == expected


def test_the_folder_of_another_run_is_refused_by_what_differs(tmp_path):
    whole(tmp_path)
    differs = {"steps": (4, "steps 3, not 4"), "data": ("sha256:ef", "other data")}
    differs["model"] = ("sha256:ef", "another model")
    for name, (value, said) in differs.items():
        with pytest.raises(CheckpointError, match=f"pieces of another run \\({said}\\)"):
            WorkList(tmp_path, NAMES, IDENTITY | {name: value})
    with pytest.raises(CheckpointError, match="pieces of another run \\(pieces"):
        WorkList(tmp_path, NAMES[:2], IDENTITY)


def test_a_spoilt_piece_and_processes_that_there_are_none_of(tmp_path):
    whole(tmp_path)
    with pytest.raises(BudgetError, match="rank=2 of world=2 came"):
        WorkList(tmp_path, NAMES, IDENTITY).run(make, rank=2, world=2)
    (tmp_path / "piece-0001.safetensors").write_bytes(b"no such thing")
    with pytest.raises(CheckpointError, match=r"piece-0001\.safetensors cannot be read"):
        WorkList(tmp_path, NAMES, IDENTITY).pieces()


def test_a_disk_that_fills_loses_nothing_that_was_done(tmp_path, monkeypatch):
    expected, folder = whole(tmp_path / "whole"), tmp_path / "full"
    real, left = files.save_file, [3]

    def full(tensors, path, **named):
        left[0] -= 1
        if left[0] < 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        real(tensors, path, **named)

    monkeypatch.setattr(files, "save_file", full)
    with pytest.raises(CheckpointError, match=r"No space left on device.*free some space"):
        WorkList(folder, NAMES, IDENTITY).run(make)
    assert not [p for p in folder.iterdir() if p.name.startswith(".")]
    done = {p: p.stat().st_mtime_ns for p in folder.glob("piece-*")}
    assert len(done) == 3
    monkeypatch.setattr(files, "save_file", real)
    assert whole(folder) == expected
    assert all(p.stat().st_mtime_ns == then for p, then in done.items())
