"""What mkdocs asks for while it builds: the pages from outside docs/, and the reference."""

import inspect
import re
import tomllib
from collections.abc import Iterable, Iterator
from dataclasses import is_dataclass
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any, get_args, get_type_hints

import griffe
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError
from mkdocs.plugins import event_priority
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page
from mkdocs.structure.toc import AnchorLink

import bondwise
from bondwise import errors

ROOT = Path(__file__).parents[1]
OUTSIDE = ("README.md", "CHANGELOG.md", "LOG.md")  # on the site they lie beside the other pages
REFERENCE = "reference.md"
HERE = "<!-- every public name -->"  # there, where the docstrings go
# What a browser fetches by itself: any tag with an address but <a>, and what styles name.
FETCHED = re.compile(
    r"""<(?!a\s)\w[^>]*\s(?:src|srcset|href|data)=["']?\s*(?:https?:)?//[^>]*"""
    r"""|(?:url\(\s*["']?|@import\s+["'])(?:https?:)?//[^)"';]*""",
    re.I,
)


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages that lie beside docs/."""
    for name in OUTSIDE:
        files.append(File.generated(config, name, abs_src_path=str(ROOT / name)))
    return files


def on_page_markdown(markdown: str, page: Page, **_: object) -> str:
    """Suit a page to the site: links between the folders, fences, lists, the reference."""
    text = re.sub(r'(\]\(|src=")(?:docs|\.\.)/', r"\1", markdown)
    text = re.sub(r"^```(\w+) .*$", r"```\1", text, flags=re.M)  # `python notest`, `text output`
    parts = re.split(r"(^```.*?^```$)", text, flags=re.M | re.S)
    parts[::2] = map(listed, parts[::2])
    text = "".join(parts)
    return text.replace(HERE, reference()) if page.file.src_uri == REFERENCE else text


def listed(text: str) -> str:
    """Lists as Python-Markdown reads them, which GitHub reads with less."""
    text = re.sub(r"^ {2,3}(?=\S)", "    ", text, flags=re.M)  # what is inside, by four
    return re.sub(r"(\n\n(?:    .*\n)+)(?=- |\d+\. )", r"\1\n", text)  # and a line after it


@event_priority(100)  # before the search takes the page
def on_page_context(context: dict[str, Any], page: Page, **_: object) -> dict[str, Any]:
    """Call things in the reference as a user does, not after the file that defines them."""
    if page.file.src_uri == REFERENCE:
        names = {path(thing): name for name, thing in documented().items()}
        defined = "|".join(sorted(map(re.escape, names), reverse=True))  # the longer name first

        def called(text: str) -> str:
            return re.sub(rf"\b(?:{defined})\b", lambda match: names[match[0]], text)

        def rename(entries: Iterable[AnchorLink]) -> None:
            for entry in entries:
                entry.id, entry.title = called(entry.id), called(entry.title)
                rename(entry.children)

        rename(page.toc)
        page.content = called(re.sub(r' title="bondwise\.[^"]*"', "", page.content or ""))
    return context


def on_post_build(config: MkDocsConfig) -> None:
    """Refuse a site that fetches something from elsewhere when it is looked at."""
    for file in sorted(Path(config.site_dir).rglob("*")):
        if file.suffix in (".html", ".css", ".svg"):
            found = FETCHED.search(file.read_text(encoding="utf-8"))
            if found:
                raise PluginError(f"{file.name} fetches {found[0]}; keep what it needs in docs/.")


def public() -> dict[str, object]:
    """Every public name, as a user writes it, and what it is."""
    found: dict[str, object] = {}
    for package in (bondwise, *(vars(bondwise)[name] for name in bondwise.__all__)):
        if isinstance(package, ModuleType):
            names = {f"{package.__name__}.{n}": vars(package)[n] for n in package.__all__}
            found |= {n: thing for n, thing in names.items() if not isinstance(thing, ModuleType)}
    kinds = {f"{errors.__name__}.{n}": kind for n, kind in vars(errors).items()}
    own = {n: k for n, k in kinds.items() if getattr(k, "__module__", "") == errors.__name__}
    return found | {n: kind for n, kind in own.items() if inspect.isclass(kind)}


def documented() -> dict[str, object]:
    """The public names, and the classes of what they give and of what that holds."""
    found = public()
    for _ in range(2):
        there = list(found.values())
        given = (kind for thing in there for kind in classes(thing))
        found |= {kind.__name__: kind for kind in given if kind not in there}
    return found


def classes(thing: object) -> Iterator[type]:
    """Our own classes among what a function returns, or among the fields of a dataclass."""
    if inspect.isclass(thing):
        hints = [*get_type_hints(thing).values()] if is_dataclass(thing) else []
    else:
        hints = [get_type_hints(thing)["return"]]
    for hint in hints:
        hints.extend(get_args(hint))
        if inspect.isclass(hint) and hint.__module__.startswith("bondwise."):
            yield hint


def path(thing: object) -> str:
    """Where a class or function is defined."""
    return f"{thing.__module__}.{thing.__qualname__}"


def reference() -> str:
    """All of them for mkdocstrings, room by room from the ground up, errors last."""
    rooms: dict[str, list[str]] = {}
    for thing in documented().values():
        rooms.setdefault(path(thing).split(".")[1], []).append(f"::: {path(thing)}\n")
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]
    layers = " | ".join(reversed(contracts["contracts"][0]["layers"])).split(" | ")
    text = ""
    for room in sorted(rooms, key=lambda room: (room == "errors", layers.index(room))):
        title = re.split("[,;:.]", import_module(f"bondwise.{room}").__doc__ or room)[0]
        text += "\n".join([f"## {title}\n", *rooms[room], ""])
    return text


class Doctests(griffe.Extension):
    """Examples, which our docstrings write without a heading, as blocks of code."""

    def on_object(self, *, obj: griffe.Object, **_: object) -> None:
        """Fence the examples of one docstring."""
        if obj.docstring:
            fence = r"```pycon\n\1\n```"
            text = re.sub(r"^(>>> .*(?:\n.+)*)", fence, obj.docstring.value, flags=re.M)
            obj.docstring.value = text
