"""The documentation tells the truth: its code runs, prints what it says, and its links lead."""

import re
from collections.abc import Iterator
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import NamedTuple

import pytest
import torch

from bondwise.cli.parse import VERBS
from bondwise.topology import registry
from verbs import bondwise

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", *sorted(DOCS.glob("*.md"))]
FENCE = re.compile(r"^```([^\n]*)\n(.*?)^```$", re.M | re.S)


class Block(NamedTuple):
    info: str  # what follows the opening fence
    code: str
    line: int  # of the opening fence, from 1


def blocks(text: str) -> list[Block]:
    return [
        Block(match[1].strip(), match[2], text.count("\n", 0, match.start()) + 1)
        for match in FENCE.finditer(text)
    ]


def runs(page: Path) -> Iterator[tuple[Block, str | None]]:
    """Every block to run, with what it prints where the page says so.

    A block ``text output`` right after a block of Python is what that prints.
    """
    found = blocks(page.read_text(encoding="utf-8"))
    for block, after in zip(found, [*found, None][1:], strict=True):
        if block.info == "python":
            stated = after is not None and after.info == "text output"
            yield block, after.code if stated and after is not None else None


@pytest.fixture(autouse=True)
def _as_it_was() -> Iterator[None]:
    """A page may seed torch and enter a topology of its own; other tests see neither."""
    known, state = dict(registry._known), torch.random.get_rng_state()
    yield
    torch.random.set_rng_state(state)
    registry._known.clear()
    registry._known.update(known)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_code_runs_and_prints_what_the_page_says(
    page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {"__name__": page.stem}
    for block, stated in runs(page):
        lines = "\n" * block.line + block.code  # a traceback then names the page and its line
        exec(compile(lines, str(page), "exec"), names)
        printed = capsys.readouterr().out
        if stated is not None:
            assert printed == stated, f"{page.name}, block at line {block.line}"


def test_a_wrong_block_and_a_wrong_output_are_seen(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(
        "```python\nprint(1)\n```\n```text output\n2\n```\n```python notest\n1 / 0\n```\n"
        "```python\n1 / 0\n```\n```text\nno output\n```\n"
    )
    (first, stated), (second, nothing) = runs(page)
    assert (first.code, stated, first.line) == ("print(1)\n", "2\n", 1)
    assert (second.code, nothing, second.line) == ("1 / 0\n", None, 10)


def anchor(heading: str) -> str:
    """The anchor that GitHub gives a heading."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    prose = FENCE.sub("", page.read_text(encoding="utf-8"))
    for link in re.findall(r'\]\(([^)\s]+)\)|src="([^"]+)"', prose):
        target = next(filter(None, link))
        if "://" in target:
            continue
        path, _, name = target.partition("#")
        file = (page.parent / path) if path else page
        assert file.exists(), f"{page.name}: {target}"
        if name:
            text = FENCE.sub("", file.read_text(encoding="utf-8"))
            assert name in map(anchor, re.findall(r"^#+ (.+)$", text, re.M)), f"{page}: {target}"


def test_pictures_are_those_of_the_networks() -> None:
    spec = spec_from_file_location("make_pictures", DOCS / "make_pictures.py")
    assert spec is not None
    assert spec.loader is not None
    script = module_from_spec(spec)
    spec.loader.exec_module(script)
    there = {file.name: file.read_text(encoding="utf-8") for file in script.FOLDER.glob("*.svg")}
    assert there == script.pictures(), "run python docs/make_pictures.py"


def test_every_file_has_its_line_in_the_architecture() -> None:
    text = (DOCS / "architecture.md").read_text(encoding="utf-8")
    source = ROOT / "src" / "bondwise"
    for file in sorted(source.rglob("*.py")):
        if file.name != "__init__.py":
            assert re.search(rf"^\s*{file.name}\s+\S", text, re.M), file.relative_to(source)


def test_the_command_line_page_has_every_verb_and_flag_and_no_other(
    capsys: pytest.CaptureFixture[str],
) -> None:
    text = (DOCS / "command-line.md").read_text(encoding="utf-8")
    flags = {
        verb: set(re.findall(r"^ .*?(--[a-z-]+) ", bondwise(capsys, verb, "--help").out, re.M))
        for verb in VERBS
    }
    there = {"--version", "--quiet"}.union(*flags.values())
    assert set(re.findall(r"(?<![\w-])--[a-z][\w-]*", text)) == there
    assert set(re.findall(r"^bondwise ([a-z]+)", text, re.M)) == set(VERBS)
    for name in VERBS:
        _, _, section = text.partition(f"## {name}\n")
        section = section.partition("\n## ")[0]
        missing = flags[name] - {
            *re.findall(r"--[a-z-]+", section),
            *("--json", "--quiet", "--seed", "--device", "--dtype", "--help"),
        }
        assert not missing, f"{name} lacks {missing}"
