"""Tests that cannot fail, found by breaking the code on purpose: a seeded sample of small mutants.

    python benchmarks/mutants.py --rooms network,compute,gauge,fit --count 150 --seed 0 --out FILE

A mutant is one edit of one expression or statement, in a copy of `src`; the checkout is not
touched. A room is a folder of src/bondwise, tested by the folder of tests with its name. First
runs the module's own doctests and test file, then the rest of its room, then the other rooms, one
parameter of every test before the second of any, as long as the budget of seconds lasts. One JSON
line per mutant; those that are there are not run again. ``--only 3,17`` runs these of the sample,
``--show`` prints them. A survivor changes no promise, or lacks a test.
"""

import argparse
import ast
import builtins
import compileall
import gc
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

os.environ["OMP_NUM_THREADS"] = "1"
os.environ["HYPOTHESIS_STORAGE_DIRECTORY"] = tempfile.mkdtemp()  # no example goes to the next
import hypothesis  # noqa: F401
import pytest
import quimb  # noqa: F401
import tensorly  # noqa: F401
import torch  # noqa: F401  (imported once: every mutant runs in a fork of this process)
from transformers import BertModel, GPT2LMHeadModel, LlamaForCausalLM  # noqa: F401

ROOT = Path(__file__).parents[1]
BUDGETS = (8.0, 10.0, 8.0)  # seconds of a module's own tests, of its room, of the other rooms
FEW = 6  # files of tests in a room, below which the other rooms' run too
SLOW = 4.5  # seconds above which a test is left out
HANGS, LIMIT = 60, 300  # seconds of a test, and of a process, that is taken to hang
SKIPPED = {"annotation", "returns", "decorator_list", "bases", "type_params", "format_spec"}
TEXTS = {"__repr__", "__str__", "__format__"}
PAIRS = (
    *((ast.Lt, ast.LtE), (ast.Gt, ast.GtE), (ast.Eq, ast.NotEq), (ast.In, ast.NotIn)),
    *((ast.Is, ast.IsNot), (ast.Add, ast.Sub), (ast.Mult, ast.Div), (ast.BitOr, ast.BitAnd)),
    *((ast.And, ast.Or), ("min", "max"), ("any", "all"), ("zeros", "ones"), ("rows", "cols")),
    *(("argmin", "argmax"), ("left", "right"), ("amin", "amax")),
)
SWAPS = {one: two for pair in PAIRS for one, two in (pair, pair[::-1])}
SWAPS |= {ast.FloorDiv: ast.Mult, ast.Mod: ast.FloorDiv, ast.Pow: ast.Mult}
SWAPS |= {"sorted": "list", "reversed": "list"}


class Site(NamedTuple):
    parent: ast.AST
    field: str
    at: int | None  # where the field is a list
    old: ast.AST
    new: ast.AST
    kind: str

    def put(self) -> None:
        if self.at is None:
            setattr(self.parent, self.field, self.new)
        else:
            getattr(self.parent, self.field)[self.at] = self.new


def edit(node: ast.AST) -> tuple[str, ast.AST] | None:
    """What the edit of a node is called, and what the node becomes."""
    match node:
        case ast.Compare(left, [op, *ops], sides) if type(op) in SWAPS:
            return "comparison", ast.Compare(left, [SWAPS[type(op)](), *ops], sides)
        case ast.BinOp(left, ast.MatMult(), right):
            return "factors swapped", ast.BinOp(right, ast.MatMult(), left)
        case ast.BinOp(left, op, right) if type(op) in SWAPS:
            return "operator", ast.BinOp(left, SWAPS[type(op)](), right)
        case ast.BoolOp(op, values):
            return "and/or", ast.BoolOp(SWAPS[type(op)](), values)
        case ast.UnaryOp(ast.Not() | ast.USub(), operand) if not isinstance(operand, ast.Constant):
            return "not or minus dropped", operand
        case _:
            return _other(node)


def _other(node: ast.AST) -> tuple[str, ast.AST] | None:
    match node:
        case ast.Constant(bool(value)):
            return "constant", ast.Constant(not value)
        case ast.Constant(int(value) | float(value)):
            return "constant", ast.Constant(value + 1)
        case ast.Return(ast.AST()):
            return "returns None", ast.Return(ast.Constant(None))
        case ast.If(test, body, other) | ast.IfExp(test, body, other):
            return "condition", type(node)(ast.UnaryOp(ast.Not(), test), body, other)
        case ast.Expr(ast.Call()) | ast.AugAssign() | ast.Raise() | ast.Break() | ast.Continue():
            return "statement deleted", ast.Pass()
        case _:
            return _named(node)


def _named(node: ast.AST) -> tuple[str, ast.AST] | None:
    match node:
        case ast.Attribute(value, "mT" | "T" | "H"):
            return "not transposed", value
        case ast.Attribute(value, name, context) if name in SWAPS:
            return "name", ast.Attribute(value, SWAPS[name], context)
        case ast.Name(name, context) if name in SWAPS and hasattr(builtins, name):
            return "name", ast.Name(SWAPS[name], context)
        case _:
            return None


def sites(node: ast.AST) -> Iterator[Site]:
    """Every edit below a node, always in the same order; none of texts, types and assertions."""
    if isinstance(node, ast.Raise | ast.Assert | ast.JoinedStr):
        return
    if isinstance(node, ast.FunctionDef) and node.name in TEXTS:
        return
    for field, value in ast.iter_fields(node):
        if field in SKIPPED:
            continue
        for at, child in enumerate(value if isinstance(value, list) else [value]):
            if not isinstance(child, ast.AST):
                continue
            if found := edit(child):
                new = ast.copy_location(found[1], child)
                place = at if isinstance(value, list) else None
                yield Site(node, field, place, child, new, found[0])
            yield from sites(child)


class Mutant(NamedTuple):
    path: Path  # relative to src
    site: int
    line: int
    kind: str
    change: str

    def source(self, text: str) -> str:
        tree = ast.parse(text)
        list(sites(tree))[self.site].put()
        return ast.unparse(ast.fix_missing_locations(tree))


def sample(rooms: Sequence[str], skip: set[str], count: int, seed: int) -> list[Mutant]:
    """At most one mutant a line and kind, drawn from all modules of the rooms alike."""
    found = dict[tuple[Path, int, str], Mutant]()
    draw = random.Random(seed)
    for path in (p for room in rooms for p in sorted((ROOT / "src/bondwise" / room).glob("*.py"))):
        if path.name in skip:
            continue
        every = list(enumerate(sites(ast.parse(path.read_text(encoding="utf-8")))))
        draw.shuffle(every)
        for number, site in every:
            line, name = getattr(site.old, "lineno", 0), path.relative_to(ROOT / "src")
            both = (ast.unparse(node).replace("\n", " ") for node in (site.old, site.new))
            change = " -> ".join(text[:90] for text in both)
            mutant = Mutant(name, number, line, site.kind, change)
            found.setdefault((name, line, site.kind), mutant)
    every = sorted(found.values(), key=lambda m: (str(m.path), m.site))
    return draw.sample(every, min(count, len(every)))


class Judge:
    """Puts the tests in order, cuts them at a budget, and records what came of them."""

    def __init__(self, target: Path | None, budget: float, known: dict[str, float]) -> None:
        self.target, self.budget, self.known = target, budget, known
        self.seconds, self.killer = Counter[str](), None

    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        seconds = {item: self.known.get(item.nodeid, 0.0) for item in items}
        params, order = Counter[str](), dict[pytest.Item, float]()
        for item in sorted(items, key=lambda item: seconds[item]):
            test = item.nodeid.split("[")[0]
            order[item] = params[test] + 3 * seconds[item]
            params[test] += 1
        order |= {item: -1 for item in items if item.path.name == "test_doctests.py"}
        rounds = sorted((item for item in items if seconds[item] <= SLOW), key=order.__getitem__)
        spent, items[:] = 0.0, []
        for item in rounds:
            spent += max(0.005, seconds[item])
            if spent > self.budget:
                break
            items.append(item)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self.seconds[report.nodeid] += report.duration
        if report.failed:
            self.killer = self.killer or report.nodeid

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if report.failed:
            self.killer = self.killer or report.nodeid or "collection"


DOCTESTS = """
import doctest, importlib
def test_doctests():
    flags = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
    found = doctest.testmod(importlib.import_module({name!r}), optionflags=flags)
    assert not found.failed
"""


class Verdict(NamedTuple):
    code: int  # pytest's; -1 where time was up
    killer: str | None
    seconds: dict[str, float]


def _child(src: Path, files: list[Path], judge: Judge) -> None:
    os.setsid()
    out = os.open(src.parent / "output", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(out, 1), os.dup2(out, 2)
    os.environ["PYTHONPATH"] = str(src)
    sys.path.insert(0, str(src))
    sys.dont_write_bytecode = bool(judge.known)  # what is compiled is the copy as it came
    options = ["-c", str(ROOT / "pyproject.toml"), f"--rootdir={ROOT}", "-x", "-q"]
    options += ["-p", "no:cacheprovider", "-p", "no:unraisableexception", "--hypothesis-seed=0"]
    options += ["-o", f"addopts=--import-mode=importlib --timeout={HANGS}"]
    if judge.target:  # its types are checked; those of all modules would take seconds
        name = ".".join(judge.target.relative_to(src).with_suffix("").parts)
        options += [f"--jaxtyping-packages={name},beartype.beartype"]
        doctests = src.parent / "test_doctests.py"
        doctests.write_text(DOCTESTS.format(name=name), encoding="utf-8")
        files = [doctests if file == judge.target else file for file in files]
    options += ["-W", "ignore::pytest.PytestAssertRewriteWarning"]  # plugins that came warm
    code = pytest.main([*options, *map(str, files)], plugins=[judge])
    package = sys.modules.get("bondwise")
    if package is not None and not str(package.__file__).startswith(str(src)):
        code = 99  # not the copy
    found = json.dumps([int(code), judge.killer, judge.seconds])
    (src.parent / "note.json").write_text(found, encoding="utf-8")


def run(src: Path, files: list[Path], judge: Judge) -> Verdict:
    """The tests of some files against a copy of src, in a fork: what it imports dies with it."""
    note = src.parent / "note.json"
    note.unlink(missing_ok=True)
    gc.freeze()
    child = os.fork()
    if child == 0:
        try:
            _child(src, files, judge)
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            os._exit(0)
    end = time.monotonic() + LIMIT
    while os.waitpid(child, os.WNOHANG)[0] == 0:
        if time.monotonic() > end:
            os.killpg(child, signal.SIGKILL)
            os.waitpid(child, 0)
            return Verdict(-1, "time", {})
        time.sleep(0.05)
    return Verdict(*json.loads(note.read_text())) if note.exists() else Verdict(-2, "crash", {})


def measured(src: Path, files: list[Path], at: Path) -> dict[str, float]:
    """Seconds of every test on the code as it is, measured once."""
    known = json.loads(at.read_text()) if at.exists() else dict[str, float]()
    for file in files:
        if not any(node.startswith(str(file.relative_to(ROOT))) for node in known):
            verdict = run(src, [file], Judge(None, 1e9, {}))
            if verdict.code not in (0, 5):
                said = (src.parent / "output").read_text(encoding="utf-8")
                raise SystemExit(f"{said}\n{file} ended with {verdict.code} before any mutant")
            known |= verdict.seconds
            at.write_text(json.dumps(known), encoding="utf-8")
    return known


def judge(mutant: Mutant, src: Path, files: list[Path], known: dict[str, float]) -> dict[str, Any]:
    """Runs the tests against one mutant, the likeliest killers first."""
    began, target = time.monotonic(), src / mutant.path
    room, own = mutant.path.parts[1], f"test_{mutant.path.stem}.py"
    mine = [f for f in files if f.parts[-2] == room]
    first = [f for f in mine if f.name == own]
    rest = [f for f in mine if f not in first]
    stages = [[target, *first], rest] if first else [[target, *rest], []]
    stages.append([f for f in files if f not in mine] if len(mine) < FEW else [])
    text = target.read_text(encoding="utf-8")
    target.write_text(mutant.source(text), encoding="utf-8")
    os.utime(target, (began, began))  # no bytecode is of this second
    try:
        for stage, budget in zip(stages, BUDGETS, strict=True):
            verdict = run(src, stage, Judge(target, budget, known)) if stage else verdict
            if verdict.code not in (0, 5):
                break
    finally:
        shutil.copy2(ROOT / "src" / mutant.path, target)
    if verdict.code == 99:
        raise SystemExit(f"{mutant.path}: the tests did not import the copy")
    fate = {0: "survived", 5: "survived", -1: "timeout"}.get(verdict.code, "killed")
    return {**mutant._asdict(), "path": str(mutant.path), "fate": fate, "killer": verdict.killer,
            "seconds": round(time.monotonic() - began, 1)}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rooms", default="network,compute,gauge,fit")
    parser.add_argument("--count", type=int, default=150)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument(
        "--skip", default="", help="files left out, of src and tests, by their names"
    )
    parser.add_argument("--only", default="", help="numbers of mutants in the sample")
    parser.add_argument("--show", action="store_true", help="print the sample and run nothing")
    asked = parser.parse_args()
    rooms, skip = asked.rooms.split(","), set(asked.skip.split(","))
    chosen = dict(enumerate(sample(rooms, skip, asked.count, asked.seed)))
    if asked.only:
        chosen = {int(n): chosen[int(n)] for n in asked.only.split(",")}
    if asked.show:
        print(*(f"{n} {m.path}:{m.line} {m.kind}: {m.change}" for n, m in chosen.items()), sep="\n")
        return
    tests = (f for room in rooms for f in sorted((ROOT / "tests" / room).glob("test_*.py")))
    files = [f for f in tests if f.name not in skip]
    with tempfile.TemporaryDirectory() as folder:
        src = shutil.copytree(ROOT / "src", Path(folder) / "src")
        compileall.compile_dir(src, quiet=1)
        known = measured(src, files, asked.out.with_suffix(".seconds.json"))
        lines = asked.out.read_text().splitlines() if asked.out.exists() else []
        done = {entry["number"]: entry for entry in map(json.loads, lines)}
        for number, mutant in chosen.items():
            if number not in done:
                done[number] = {"number": number, **judge(mutant, src, files, known)}
                with asked.out.open("a", encoding="utf-8") as out:
                    print(json.dumps(done[number]), file=out)
    counts = Counter((entry["path"].split("/")[1], entry["fate"]) for entry in done.values())
    for (room, fate), count in sorted(counts.items()):
        print(f"{room:10} {fate:10} {count}")


if __name__ == "__main__":
    main()
