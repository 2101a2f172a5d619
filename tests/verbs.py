"""The command line, called in this process, and the files that it reads and writes."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from safetensors.torch import load_file, save_file

from bondwise.cli import main


class Said(NamedTuple):
    """Exit code, standard output, standard error."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> dict[str, Any]:
        """Standard output, which must be one JSON object on one line and nothing else."""
        assert self.out.count("\n") == 1
        return json.loads(self.out)


def bondwise(capsys: pytest.CaptureFixture[str], *arguments: Any) -> Said:
    """Run a verb; whatever it is given counts as text."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as ended:
        main([str(argument) for argument in arguments])
    return Said(int(ended.value.code or 0), *capsys.readouterr())


def process(*arguments: Any, **env: str) -> subprocess.CompletedProcess[str]:
    """Python in a process of its own, as a user starts it."""
    return subprocess.run(
        [sys.executable, *map(str, arguments)],
        env={**os.environ, "OMP_NUM_THREADS": "1", **env},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )


def files(folder: Path) -> dict[str, bytes]:
    """Everything under a folder, hidden ones too: path to content, folders to nothing."""
    return {
        str(path.relative_to(folder)): b"" if path.is_dir() else path.read_bytes()
        for path in sorted(folder.rglob("*"))
    }


def edit(file: Path, change: Callable[[Any], object] | None = None, **values: Any) -> None:
    """Rewrite a file of JSON or of tensors after ``change``, or what has new values."""
    change = change or (lambda found: found.update(values))
    if file.suffix == ".json":
        change(found := json.loads(file.read_text()))
        file.write_text(json.dumps(found))
    else:
        change(found := {name: value.clone() for name, value in load_file(file).items()})
        save_file(found, file, metadata={"format": "pt"})


def weights(folder: Path) -> dict[str, bytes]:
    """The bytes of the weights."""
    found = {path.name: path.read_bytes() for path in folder.glob("*.safetensors")}
    assert found
    return found


def documented(*sections: str) -> set[str]:
    """The keys of JSON that the page on the command line lists under these headings."""
    text = Path(__file__).parents[1].joinpath("docs/command-line.md").read_text("utf-8")
    found = set[str]()
    for name in sections:
        section = re.search(rf"^### {re.escape(name)}\n(?:[^|]*)((?:\|.*\n)+)", text, re.M)
        assert section is not None, name
        found |= {
            key
            for row in section[1].splitlines()
            for key in re.findall(r"`(\w+)`", row.split("|")[1])
        }
    return found
