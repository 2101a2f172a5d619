"""The house: imports that go up only, no circle inside a room, no room too full, a first line."""

import ast
import tomllib
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import grimp
import pytest

SRC = Path(__file__).parents[1] / "src" / "bondwise"
MOST = 15  # files of a room
FILES = sorted(SRC.rglob("*.py"))
ROOMS = sorted({file.parent for file in FILES} - {SRC})


@pytest.fixture(scope="module")
def graph():
    return grimp.build_graph("bondwise")


@pytest.mark.parametrize("room", ROOMS, ids=lambda room: room.relative_to(SRC).as_posix())
def test_no_circle_of_imports_inside_a_room(room, graph):
    name = ".".join(("bondwise", *room.relative_to(SRC).parts))
    inside = {name} | graph.find_descendants(name)
    imports = {
        module: graph.find_modules_directly_imported_by(module) & inside for module in inside
    }
    try:
        TopologicalSorter(imports).prepare()
    except CycleError as error:
        pytest.fail(" -> ".join(error.args[1]))


@pytest.mark.parametrize("room", ROOMS, ids=lambda room: room.relative_to(SRC).as_posix())
def test_a_room_has_few_files(room):
    files = [file.name for file in room.glob("*.py")]
    assert len(files) <= MOST, files


def test_imports_go_down_the_list_of_rooms_only(graph):
    """The list is import-linter's; ``make check`` reads it too, and it must name every room."""
    config = tomllib.loads((SRC.parents[1] / "pyproject.toml").read_text("utf-8"))
    (rooms,) = (c for c in config["tool"]["importlinter"]["contracts"] if c["type"] == "layers")
    order = {name: at for at, name in enumerate(rooms["layers"])}
    here = {module.removeprefix("bondwise.").split(".")[0] for module in graph.modules}
    assert here - {"bondwise"} == order.keys()
    room = lambda module: module.split(".")[1]  # noqa: E731
    upward = [
        f"{module} imports {other}"
        for module in sorted(graph.modules - {"bondwise"})
        for other in graph.find_modules_directly_imported_by(module) - {"bondwise"}
        if order[room(module)] > order[room(other)]
    ]
    assert not upward, upward


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.relative_to(SRC).as_posix())
def test_the_first_line_of_a_file_says_what_it_is(file):
    doc = ast.get_docstring(ast.parse(file.read_text("utf-8")))
    assert doc is not None
    line, *rest = doc.splitlines()
    assert line.endswith(".")
    assert not rest or not rest[0]
