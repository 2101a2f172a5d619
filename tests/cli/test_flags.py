"""Words and what they come to: help, flags that are fields, the time before torch is there."""

import os
import re
from dataclasses import fields

import pytest

from bondwise.cli.parse import VERBS, UsageError, verb_of
from bondwise.compress.recipe import Cut, Recipe
from bondwise.topology.registry import names
from bondwise.train.recipe import Healing
from verbs import bondwise, process

LOCAL = {"local", "slice", "inputs", "chained", "local_rate", "local_windows", "local_batch"}
SHARED = {"json", "quiet", "seed", "device", "dtype"}
HIDDEN = {"digest"}  # a recipe has it, and nobody writes it
RECIPES = {"compress": Recipe, "heal": Healing, "plan": Cut}
FLAGS = {
    "demo": {"lm", "text", "wav", "out", "keep", "force"},
    "plan": {"full"},
    "compress": {"out", "recipe", "heal", "force"},
    "heal": {"teacher", "data", "out", "time", "validation", "track", "code", "force"},
    "read": {"data", "out", "layer", "gauge", "features", "draws", "measure", "windows", "length"},
    "merge": {"out", "code", "force"},
    "eval": {"data", "vs", "code", "windows", "length"},
    "bench": {"vs", "data", "code", "prompt", "tokens", "repeats", "threads"}
    | {"prepare", "measurements"},
    "export": {"onnx", "vs", "data", "code", "length", "repeats", "threads", "force"},
}


@pytest.mark.parametrize("verb", VERBS)
def test_help_fits_80_columns_and_names_every_flag(capsys, monkeypatch, verb):
    monkeypatch.setenv("COLUMNS", "80")
    said = bondwise(capsys, verb, "--help")
    assert (said.code, said.err) == (0, "")
    assert max(map(len, said.out.splitlines())) <= 80
    recipe = fields(RECIPES[verb]) if verb in RECIPES else ()
    wanted = FLAGS[verb] | SHARED | {field.name for field in recipe}
    wanted -= LOCAL | HIDDEN | {"model", "minutes"}
    listed = set(re.findall(r"^  (?:-. ?, )?--([a-z-]+)", said.out, re.M)) - {"help"}
    assert listed >= {name.replace("_", "-") for name in wanted}
    assert "None" not in said.out


def test_help_lists_the_verbs_whole_and_is_what_no_verb_gets(capsys):
    said = bondwise(capsys, "--help")
    assert bondwise(capsys) == said
    lines = [line for line in said.out.splitlines() if line[2:].startswith((*VERBS,))]
    assert len(lines) == len(VERBS)
    assert all(line.endswith(".") and len(line) <= 80 for line in lines)
    formats = " ".join(bondwise(capsys, "compress", "--help").out.split())
    assert f"or {', '.join(names(kernels=True))}, or an einsum" in formats
    assert re.fullmatch(r"bondwise \d+\.\d+\.\d+\n", bondwise(capsys, "--version").out)


def test_lists_may_be_repeated_and_take_the_place_of_the_default():
    verb = verb_of(["plan", "--targets", "a", "--targets=b", "model", "--ignore", "c"])
    assert (verb.model, verb.targets, verb.ignore) == ("model", ("a", "b"), ("c",))
    assert verb_of(["plan", "m", "--targets", "linear"]).targets == ("linear",)
    assert verb_of(["plan", "m"]).targets == ("auto",)


def test_what_was_given_is_a_choice_and_what_was_not_is_none():
    words = ["heal", "s", "--teacher", "t", "--data", "d", "--out", "o"]
    assert verb_of(words).choices(Healing) == {}
    given = verb_of([*words, "--time", "1h30m", "--batch", "2", "--top-k=9", "--checkpointing"])
    wanted = {"minutes": 90.0, "batch": 2, "top_k": 9, "checkpointing": True}
    assert given.choices(Healing) == wanted
    assert verb_of(["compress", "--out", "o", "--keep", "0.8"]).choices(Recipe) == {"keep": 0.8}


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ("plan m --keep", "No value came for option '--keep'"),
        ("plan m --ke 0.5", "No such option: --ke"),
        ("bench m --repeats 1e3", "option '--repeats': '1e3' came; write a whole number"),
        ("eval m --nosuch", "No such option: --nosuch"),
        ("--nosuch", "No such option '--nosuch'"),
        ("heal s --teacher t --data d --out o --time soon", "'soon' came; write a time such as"),
    ],
)
def test_words_that_are_no_command(words, says):
    with pytest.raises(UsageError, match=re.escape(says)) as told:
        verb_of(words.split())
    assert re.search(r"; see bondwise ?[a-z]* --help$", str(told.value))


def test_nothing_heavy_is_imported_before_a_verb_runs():
    script = (
        "import sys; from bondwise.cli import main\n"
        "try: main(sys.argv[1:])\n"
        "except SystemExit: print([m for m in ('torch', 'numpy') if m in sys.modules])"
    )
    for words in ([], ["heal", "--help"], ["compress", "--nosuch"]):
        assert process("-c", script, *words).stdout.splitlines()[-1] == "[]"


INTERRUPTS = """
import os, signal, sys

class Finder:
    def find_spec(name, path=None, target=None):
        if name == "torch":
            signal.signal(signal.SIGINT, signal.default_int_handler)
            os.kill(os.getpid(), signal.SIGINT)

sys.meta_path.insert(0, Finder)
from bondwise.cli import main
main(sys.argv[1:])
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="signals of Unix")
def test_ctrl_c_while_imports_run_is_a_sentence(tmp_path):
    done = process("-c", INTERRUPTS, "compress", tmp_path, "--out", tmp_path / "o")
    assert done.returncode == 1
    assert done.stderr == "bondwise: Stopped by Ctrl-C; nothing was left half-written.\n"
