"""Writes the rooms and files of the package into architecture.md, from the code's own words.

Run it where a file was added, renamed or gone: ``python docs/make_rooms.py``. The order is that of
the imports in ``pyproject.toml``, the sentence of each file its docstring's first.
"""

import ast
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "architecture.md"
BEGIN, END = "<!-- rooms: written by make_rooms.py -->\n", "<!-- end of rooms -->\n"


def rooms() -> list[str]:
    """The rooms and files at the top of the package, from the ground up."""
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]
    layers = next(c["layers"] for c in contracts["contracts"] if c["type"] == "layers")
    return [name.strip() for layer in reversed(layers) for name in layer.split("|")]


def sentence(file: Path) -> str:
    """The first line of a module's docstring."""
    doc = ast.get_docstring(ast.parse(file.read_text(encoding="utf-8"))) or ""
    return doc.partition("\n")[0]


def listing() -> str:
    """A line for each room, with a line for each of its files below it."""
    lines = list[str]()
    for name in rooms():
        place = ROOT / "src" / "bondwise" / name
        if not place.is_dir():
            lines.append(f"- **`{name}.py`** {sentence(place.with_suffix('.py'))}")
            continue
        lines.append(f"- **`{name}/`** {sentence(place / '__init__.py')}")
        files = sorted(file for file in place.rglob("*.py") if file.name != "__init__.py")
        lines += [f"    - `{file.relative_to(place)}` {sentence(file)}" for file in files]
    return "\n".join(lines) + "\n"


def written(page: str) -> str:
    """The page with the rooms as they are now."""
    head, _, rest = page.partition(BEGIN)
    return f"{head}{BEGIN}\n{listing()}\n{END}{rest.partition(END)[2]}"


if __name__ == "__main__":
    PAGE.write_text(written(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
