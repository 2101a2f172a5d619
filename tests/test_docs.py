"""The documentation tells the truth: its code runs, prints what it says, and its links lead."""

import inspect
import re
from collections.abc import Iterator
from contextlib import nullcontext
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

import pytest
import torch
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError

import bondwise
from bondwise import errors
from bondwise.cli.parse import VERBS
from bondwise.topology import registry
from verbs import bondwise as called

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", *sorted(DOCS.glob("*.md"))]
FENCE = re.compile(r"^```([^\n]*)\n(.*?)^```$", re.M | re.S)


class Block(NamedTuple):
    info: str  # what follows the opening fence
    code: str
    line: int  # of the opening fence, from 1


def runs(page: Path) -> Iterator[tuple[Block, str | None]]:
    """Every block to run, with what it prints where the page says so.

    A block ``text output`` right after a block of Python is what that prints.
    """
    text = page.read_text(encoding="utf-8")
    found = [
        Block(match[1].strip(), match[2], text.count("\n", 0, match.start()) + 1)
        for match in FENCE.finditer(text)
    ]
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


@pytest.mark.parametrize("page", [p for p in PAGES if any(runs(p))], ids=lambda page: page.name)
def test_code_runs_and_prints_what_the_page_says(page, tmp_path, monkeypatch, capsys):
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


def links(page: Path) -> list[str]:
    """Where a page links to, but for other sites."""
    prose = FENCE.sub("", page.read_text(encoding="utf-8"))
    found = re.findall(r'\]\(([^)\s]+)\)|src="([^"]+)"', prose)
    return [one or other for one, other in found if "://" not in one + other]


def leads(page: Path, target: str) -> bool:
    path, _, name = target.partition("#")
    file = (page.parent / path) if path else page
    if not name:
        return file.exists()
    text = FENCE.sub("", file.read_text(encoding="utf-8")) if file.exists() else ""
    return name in map(anchor, re.findall(r"^#+ (.+)$", text, re.M))


def test_links_lead_somewhere() -> None:
    there = [(page, target) for page in PAGES for target in links(page)]
    assert any("#" in target for _, target in there)
    assert [(page.name, target) for page, target in there if not leads(page, target)] == []
    readme = PAGES[0]
    assert not any(leads(readme, target) for target in ("none.md", "docs/none.md#x", "#no-such"))


def script_of(name: str) -> ModuleType:
    """A script beside the pages."""
    spec = spec_from_file_location(name, DOCS / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    script = module_from_spec(spec)
    spec.loader.exec_module(script)
    return script


@pytest.mark.parametrize("package", [bondwise, bondwise.read, errors])
def test_every_public_name_is_in_the_reference(package: ModuleType) -> None:
    hooks = script_of("hooks")
    assert hooks.HERE in (DOCS / hooks.REFERENCE).read_text(encoding="utf-8")
    there = hooks.reference().splitlines()
    for name in getattr(package, "__all__", vars(package)):
        thing = getattr(package, name)
        ours = inspect.isclass(thing) and thing.__module__ == errors.__name__
        if callable(thing) and (ours or package is not errors):
            assert f"::: {thing.__module__}.{thing.__qualname__}" in there, name


@pytest.mark.parametrize(
    ("text", "fetches"),
    [
        ('<script src="https://cdn.example/x.js">', True),
        ('<link rel="stylesheet" href="//cdn.example/x.css">', True),
        ("<img alt='x' src='http://example.org/x.png'>", True),
        ("@font-face { src: url('https://fonts.example/x.woff') }", True),
        ('@import "https://fonts.example/x.css";', True),
        ('<a class="x" href="https://example.org">', False),
        ('<script src="js/x.js"></script><img src="x.png">', False),
        ('<svg xmlns="http://www.w3.org/2000/svg"><!-- https://example.org -->', False),
        ("src: url(fonts/x.woff) /* https://example.org */", False),
    ],
)
def test_the_site_is_refused_where_it_fetches(text: str, fetches: bool, tmp_path: Path) -> None:
    hooks = script_of("hooks")
    (tmp_path / "x.html").write_text(text)
    config = MkDocsConfig()
    config.site_dir = str(tmp_path)
    with pytest.raises(PluginError) if fetches else nullcontext():
        hooks.on_post_build(config)


def test_pictures_are_those_of_the_networks() -> None:
    script = script_of("make_pictures")
    there = {file.name: file.read_text(encoding="utf-8") for file in script.FOLDER.glob("*.svg")}
    assert there == script.pictures(), "run python docs/make_pictures.py"


def test_the_rooms_of_the_architecture_are_those_of_the_code() -> None:
    script, page = script_of("make_rooms"), (DOCS / "architecture.md").read_text(encoding="utf-8")
    assert page == script.written(page), "run python docs/make_rooms.py"
    inside = {f.name for f in (ROOT / "src" / "bondwise").iterdir() if f.suffix in {"", ".py"}}
    tops = {name.removesuffix(".py") for name in inside} - {"__init__", "__pycache__"}
    assert set(script.rooms()) == tops


def test_the_command_line_page_has_every_verb_and_flag_and_no_other(capsys):
    text = (DOCS / "command-line.md").read_text(encoding="utf-8")
    helps = {verb: called(capsys, verb, "--help").out for verb in VERBS}
    flags = {verb: {*re.findall(r"^ .*?(--[a-z-]+) ", helps[verb], re.M)} for verb in VERBS}
    there = {"--version", "--quiet"}.union(*flags.values())
    assert set(re.findall(r"(?<![\w-])--[a-z][\w-]*", text)) == there
    assert set(re.findall(r"^bondwise ([a-z]+)", text, re.M)) == set(VERBS)
    for name in VERBS:
        section = text.partition(f"## {name}\n")[2].partition("\n## ")[0]
        shared = {"--json", "--quiet", "--seed", "--device", "--dtype", "--help"}
        missing = flags[name] - shared - {*re.findall(r"--[a-z-]+", section)}
        assert not missing, f"{name} lacks {missing}"
