"""What a user can get wrong ends in one sentence and an exit code, and leaves nothing behind."""

import errno
import os
import shlex
import shutil
import signal
import subprocess
import sys
from functools import partial
from pathlib import Path
from unittest.mock import Mock, patch

import pytest
import torch
from transformers import GPT2LMHeadModel

import bondwise as bw
import tiny
from bondwise.choose.select import SelectionError
from bondwise.cli import main
from bondwise.compress.effort import EFFORT
from verbs import bondwise, edit, files

FEW = ("--windows", 4, "--length", 16, "-q")


@pytest.fixture(scope="session")
def ours(shelf, tmp_path_factory):
    """A folder that compress wrote."""
    folder = tmp_path_factory.mktemp("ours") / "ours"
    with pytest.raises(SystemExit, match="0"), patch.dict(EFFORT, fast=tiny.BRIEF):
        main(["compress", str(shelf / "llama"), "--out", str(folder), "-q"])
    return folder


@pytest.fixture
def desk(tmp_path, monkeypatch):
    """Where the user stands; nothing may appear or change here."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def refused(capsys, *arguments, code, says):
    """One sentence on standard error, the right exit code, and every file as it was."""
    before = files(Path.cwd())
    said = bondwise(capsys, *arguments)
    assert said.code == code, said
    assert said.out == ""
    assert said.err.startswith("bondwise: ")
    assert said.err.endswith(".\n")
    assert said.err.count("\n") == 1  # one line: no traceback, no bar, no warning
    assert says in said.err
    assert files(Path.cwd()) == before


def weight(value):
    name = "model.layers.1.mlp.up_proj.weight"
    return lambda m, _: edit(m / "model.safetensors", lambda found: found[name][3, 4].fill_(value))


def content(name, change):
    return lambda m, _: (m / name).write_bytes(change((m / name).read_bytes()))


def config(**values):
    return lambda m, _: edit(m / "config.json", **values)


def instead(make):
    """Another thing where the model was."""

    def spoil(m, ours):
        shutil.rmtree(m)
        make(m, ours)

    return spoil


def gguf(content):
    return instead(lambda m, _: (m.mkdir(), (m / "x.gguf").write_bytes(content)))


def of_the_future(m, ours):
    shutil.copytree(ours, m)
    edit(m / "config.json", lambda found: found["quantization_config"].update(schema=99))


def foreign_code(m, _):
    (m / "modeling_x.py").write_text("raise SystemExit(9)")
    auto = {"AutoModelForCausalLM": "modeling_x.X"}
    edit(m / "config.json", model_type="x", auto_map=auto, architectures=["X"])


def only_pickles(m, _):
    (m / "model.safetensors").rename(m / "pytorch_model.bin")


def without_tokenizer(m, _=None):
    for file in m.glob("tokenizer*"):
        file.unlink()


def gpt2(vocabulary, folder):
    config = tiny.gpt2().config
    config.update({"vocab_size": vocabulary, "n_layer": 1, "bos_token_id": 1, "eos_token_id": 1})
    return tiny.on_disk(GPT2LMHeadModel(config), folder)


UNKNOWN = "names model type 'x' and class 'X', which transformers"
MODELS = [
    (weight(float("nan")), 1, "model.layers.1.mlp.up_proj has NaN or infinite entries"),
    (weight(float("-inf")), 1, "model.layers.1.mlp.up_proj has NaN or infinite entries"),
    (content("config.json", lambda b: b[:20]), 1, "config.json does not read as JSON"),
    (content("config.json", lambda _: b"\xff\xfe"), 1, "config.json does not read as JSON"),
    (content("config.json", lambda _: b"[]"), 1, "config.json"),
    (content("model.safetensors", lambda b: b[:-1000]), 1, "copy or download it again"),
    (content("model.safetensors", lambda _: b""), 1, "copy or download it again"),
    (content("tokenizer.json", lambda b: b[:-1000]), 1, "The tokenizer in"),
    (instead(of_the_future), 1, "schema version 99, this bondwise reads up to 3"),
    (foreign_code, 1, "needs code of its own (X, auto_map in config.json)"),
    (config(model_type="x", architectures=["X"]), 1, UNKNOWN),
    (only_pickles, 1, "only pickled weights, which can run code when read"),
    (without_tokenizer, 1, "has no tokenizer, which text needs"),
    (gguf(b"GGUF" + b"\x07" * 500), 1, "does not load"),
    (gguf(b"nonsense"), 1, "is not a GGUF file"),
    (instead(lambda m, _: gpt2(4, m)), 2, "tokens or positions that the model lacks"),
    (instead(lambda m, _: m.mkdir()), 1, "has no config.json"),
    (instead(lambda m, _: m.write_text("x")), 1, "is a plain file"),
    (instead(lambda *_: None), 1, "There is no folder or file"),
    (instead(lambda m, ours: shutil.copytree(ours, m)), 2, "it holds tensor networks already"),
]


@pytest.fixture
def model(shelf, desk):
    """A copy of the llama to spoil."""
    return shutil.copytree(shelf / "llama", desk / "model")


@pytest.mark.parametrize(("spoil", "code", "says"), MODELS)
def test_models(capsys, shelf, ours, model, spoil, code, says):
    spoil(model, ours)
    data = ("--data", shelf / "text.txt")
    refused(capsys, "compress", model, *data, "--out", "o", *FEW, code=code, says=says)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "is empty; give a text"),
        (b" \n\t\n", "is empty; give a text"),
        (b"bond core", "has 2 tokens, but 1 windows of 16 need 16"),
        (bytes(range(256)), "is not UTF-8 at byte 128"),
        (b"bond\0core " * 99, "holds zero bytes"),
        (None, "There is no text file"),
        ("folder", "is a folder; give one text file"),
    ],
)
def test_texts(capsys, shelf, desk, content, says):
    if content == "folder":
        (desk / "text").mkdir()
    elif content is not None:
        (desk / "text").write_bytes(content)
    for verb in ("compress", "eval"):
        out = ("--out", "o") if verb == "compress" else ()
        said = says if verb == "compress" else says.replace("1 windows of 16 need 16", "4 windows")
        model = shelf / "llama"
        refused(capsys, verb, model, "--data", "text", *out, *FEW, code=2, says=said)


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--keep", 0], "keep=0 came; it is the fraction of numbers that stays"),
        (["--keep", 1.5], "keep=1.5 came"),
        (["--keep", -1], "keep=-1 came"),
        (["--keep", "nan"], "keep=nan came"),
        (["--keep", "inf"], "keep=inf came"),
        (["--keep", "abc"], "'--keep': 'abc' came; write a number such as 0.6"),
        (["--keep", 0.001], "is below what these formats can reach; write at least 0.0"),
        (["--targets", "nosuch"], "Target 'nosuch' matches nothing in LlamaForCausalLM"),
        (["--targets", "q_proj", "--targets", "nosuch"], "Target 'nosuch' matches nothing"),
        (["--targets", "re:("], "'re:(' is no regular expression"),
        (["--targets", "LlamaRMSNorm"], "left to change (not a matrix)"),
        (["--ignore", "linear"], "left to change (ignored by 'linear')"),
        (
            ["--format", "nosuch"],
            "write one of btt, cp, kron, lowrank, mpo, ring, tree, tucker, tucker2",
        ),
        (["--format", ""], "write one of btt"),
        (["--format", "lowrank 3"], "Topology 'lowrank 3' is not known"),
        (["--format", "o1 i1 a, a o2 -> (o1 o2) (i1 i1)"], "i1 stands 2 times in columns"),
        (["--format", "o1 i1 a, a o2 -> (o1 o2) (i1 i2)"], "i2"),
        (["--format", "o a, a -> (o) ()"], "has no mode for 48 of the weight"),
        (["--format", "o a, a i -> o i"], "write cores -> (rows) (columns)"),
        (["--format", "o a,, a i -> (o) (i)"], "has an empty core"),
        (["--format", "o! a, a i -> (o!) (i)"], "'o!' in 'o! a, a i -> (o!) (i)' is no index"),
        (["--format", "o i -> (o) (i)"], "stores less in this format than dense"),
        (["--unit", "bytes", "--format", "lowrank"], "unit='bytes' came with format='lowrank'"),
        (["--unit", "nosuch"], "unit='nosuch' came"),
        (["--effort", "nosuch"], "write one of fast, best"),
        (["--prefer", "nosuch"], "write one of speed, size, quality"),
        (["--dtype", "int8"], "write one of auto, float32, bfloat16, float16"),
        (["--dtype", "bf16"], "dtype='bf16' came"),
        (["--device", "nosuch"], "device='nosuch' came, which cannot be used here; write cpu"),
        (["--device", "meta"], "device='meta' came, which cannot be used here"),
        (["--seed", "x"], "'--seed': 'x' came; write a whole number"),
        (["--seed", -1], "seed=-1 came; write a whole number of 0 or more"),
        (["--seed", 2**80], "fits 64 bits"),
        (["--windows", 0], "0 windows of 16 tokens came"),
        (["--windows", 1.5], "'--windows': '1.5' came"),
        (["--length", 1], "4 windows of 1 tokens came"),
        (["--length", -8], "4 windows of -8 tokens came"),
        (["another"], "unexpected extra argument"),
    ],
)
def test_flags(capsys, shelf, desk, flags, says):
    usual = ("compress", shelf / "llama", "--data", shelf / "text.txt", "--out", "o", *FEW)
    refused(capsys, *usual, *flags, code=2, says=says)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_a_gpu_that_is_not_there(capsys, shelf, desk):
    out, data = ("--out", "o"), ("--data", shelf / "text.txt")
    for verb, more in {
        "plan": (),
        "compress": out,
        "merge": out,
        "eval": data,
        "bench": (),
    }.items():
        usual = (verb, shelf / "llama", *more, "--device", "cuda")
        refused(capsys, *usual, code=2, says="device='cuda' came")


ENCODER = "bert holds a BertModel, which does not predict the next token"
EVAL = "eval --data {shelf}/text.txt --windows 4 --length 16 -q "


@pytest.mark.parametrize(
    ("line", "code", "says"),
    [
        ("nosuch", 2, "No such command 'nosuch'"),
        ("compress", 2, "Missing option '--out'; see bondwise compress --help"),
        ("compress --out o", 2, "No model came; write its folder, or --recipe FILE.yaml"),
        ("compress '' --out o", 2, "No model came"),
        ("merge m", 2, "Missing option '--out'; see bondwise merge --help"),
        ("eval m", 2, "Missing option '--data'"),
        ("plan", 2, "Missing argument 'MODEL'"),
        ("bench", 2, "Missing argument 'DIR'"),
        ("demo --keep 7 --out o", 2, "keep=7 came"),
        ("demo --text --keep 0 --out o", 2, "keep=0 came"),
        ("demo --dtype int4 --out o", 2, "dtype='int4' came"),
        ("demo --device nosuch --out o", 2, "device='nosuch' came"),
        ("plan nosuch/at/all --keep 2", 2, "keep=2 came"),
        ("plan nosuch/at/all --format x", 2, "'x' is not known"),
        ("merge nosuch --out o -q", 1, "nosuch"),
        ("merge {shelf}/llama --out o -q", 2, "holds no tensor networks; give a folder that comp"),
        (EVAL + "{shelf}/bert", 1, ENCODER),
        (EVAL + "{ours} --vs {shelf}/bert", 1, ENCODER),
        (EVAL + "{ours} --vs nosuch/at/all", 1, "There is no folder or file"),
        (EVAL + "{ours} --vs {wider}", 2, "The model has a vocabulary of 128, its teacher of 130"),
        (EVAL + "{ours} --windows 0", 2, "0 windows of 16 tokens came"),
        (EVAL + "{ours} --seed 1180591620717411303424", 2, "fits 64 bits"),
        (EVAL + "{ours} --dtype x", 2, "dtype='x' came"),
    ],
)
def test_usage(capsys, shelf, ours, desk, tmp_path_factory, line, code, says):
    wider = tmp_path_factory.mktemp("wider")
    if "wider" in line:
        gpt2(130, wider)
    arguments = shlex.split(line.format(shelf=shelf, ours=ours, wider=wider))
    refused(capsys, *arguments, code=code, says=says)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("model: m\ncolour: red\n", "has a line 'colour'; it may have model, keep, targets"),
        ("model: m\nkeep: lots\n", "has keep: 'lots'; write a value such as 0.8"),
        ("model: m\nkeep: null\n", "has keep: None"),
        ("model: m\nkeep: true\n", "has keep: True"),
        ("model: m\nkeep: 3\n", "keep=3 came"),
        ("model: m\nwindows: 1.5\n", "has windows: 1.5; write a value such as 64"),
        ("model: m\nwindows: -3\n", "-3 windows of 256 tokens came"),
        ("model: m\nthreads: -1\n", "threads=-1 came"),
        ("model: m\nthreads: 99999999999\n", "threads=99999999999 came"),
        ("model: m\nformat: 3\n", "has format: 3"),
        ("model: m\ntargets: [1, 2]\n", "has targets: [1, 2]; write a list of patterns"),
        ("model: m\ndata: 3\n", "has data: 3; write a path"),
        ("model: 3\n", "has model: 3"),
        ("keep: 0.6\n", "names no model; it needs a line such as 'model: DIR'"),
        ("- model\n- keep\n", "names no model"),
        ("", "names no model"),
        ("model: [m\n", "cannot be read"),
        ("\tmodel: m", "cannot be read"),
        ("!!python/object/apply:os.system ['touch pwned']", "cannot be read"),
        (bytes(range(256)), "cannot be read"),
        (None, "cannot be read (No such file or directory)"),
    ],
)
def test_recipes(capsys, desk, text, says):
    if text is not None:
        (desk / "r.yaml").write_bytes(text if isinstance(text, bytes) else text.encode())
    refused(capsys, "compress", "--recipe", "r.yaml", "--out", "o", code=2, says=says)


def test_one_pattern_in_a_recipe_needs_no_list(capsys, shelf, desk):
    (desk / "r.yaml").write_text(f"model: {shelf / 'llama'}\ntargets: q_proj\n")
    said = bondwise(capsys, "compress", "--recipe", "r.yaml", "--out", "o", "--json", "-q")
    assert sum(w["action"] == "tensorize" for w in said.json["weights"]) == 2


@pytest.mark.parametrize("verb", ["compress", "merge", "demo", "demo --text"])
def test_places_to_write(capsys, shelf, ours, desk, verb, monkeypatch):
    never = Mock(side_effect=AssertionError("looked at the model before the folder"))
    monkeypatch.setattr("bondwise.checkpoint.loading._read_model", never)
    monkeypatch.setattr("bondwise.demo.assets.fetch", never)
    (desk / "theirs").mkdir()
    (desk / "theirs" / "thesis.txt").write_text("years of work")
    (desk / "file").write_text("a file")
    shutil.copytree(ours, desk / "done")
    model = {"compress": [shelf / "llama"], "merge": [ours]}.get(verb, [])
    for out, says in {
        "theirs": "exists and is no checkpoint of ours; name another folder",
        "file": "exists and is no checkpoint of ours",
        "file/o": "is no folder that you may write to",
        "file/o/o": "is no folder that you may write to",
        "done": "holds a checkpoint already; name another folder, or replace it with",
    }.items():
        where = (*verb.split(), *model, "--out", out)
        refused(capsys, *where, code=1, says=says)
        if out != "done":
            refused(capsys, *where, "--force", code=1, says=says)


@pytest.mark.parametrize("replacing", [False, True])
def test_a_full_disk(capsys, shelf, ours, desk, monkeypatch, replacing):
    if replacing:
        shutil.copytree(ours, desk / "o")
    write = Path.write_bytes

    def full(path, data):
        if path.name == "report.html":
            write(path, data[:100])
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
        return write(path, data)

    monkeypatch.setattr(Path, "write_bytes", full)
    usual = ("compress", shelf / "llama", "--out", "o", "--force", "-q")
    refused(capsys, *usual, code=1, says="(No space left on device), and nothing was left there")


def test_what_the_rust_writers_say_of_a_full_disk(capsys, shelf, desk, monkeypatch):
    full = Mock(side_effect=Exception("No space left on device (os error 28)"))
    monkeypatch.setattr(type(tiny.tokenizer()), "save_pretrained", full)
    usual = ("compress", shelf / "llama", "--out", "o", "-q")
    refused(capsys, *usual, code=1, says="cannot be written (No space left on device (os error 28)")


def test_a_model_without_tokenizer_or_head_is_not_measured(capsys, shelf, model):
    measure = ("eval", "--data", shelf / "text.txt", *FEW)
    edit(model / "model.safetensors", lambda tensors: tensors.pop("lm_head.weight"))
    for verb in (measure, ("plan", "-q")):
        refused(capsys, *verb, "model", code=1, says="(lm_head.weight, ..), which would be random")
    shutil.rmtree(model)
    without_tokenizer(shutil.copytree(shelf / "llama", model))
    refused(capsys, *measure, "model", code=1, says="has no tokenizer")


def test_a_bug_of_ours_shows_its_traceback(shelf, desk, monkeypatch):
    monkeypatch.setattr(
        "bondwise.compress.fit_group.fit_groups", Mock(side_effect=RuntimeError("a bug"))
    )
    with pytest.raises(RuntimeError, match="a bug"):
        main(["compress", str(shelf / "llama"), "--out", "o", "-q"])
    assert files(desk) == {}


def test_ctrl_c_ends_in_one_sentence(capsys, shelf, desk, monkeypatch):
    hears = signal.signal(signal.SIGINT, signal.default_int_handler)
    interrupts = Mock(side_effect=lambda *_, **__: signal.raise_signal(signal.SIGINT))
    monkeypatch.setattr("bondwise.compress.fit_group.fit_groups", interrupts)
    usual = ("compress", shelf / "llama", "--out", "o", "-q")
    try:
        refused(capsys, *usual, code=1, says="Stopped by Ctrl-C; nothing was left half-written.")
    finally:
        signal.signal(signal.SIGINT, hears)


@pytest.mark.thorough
def test_ctrl_c_ends_a_process_while_it_calibrates(shelf, desk):
    (desk / "long.txt").write_text(tiny.text(200_000))
    before = files(desk)
    hears = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)  # jobs in the background do not
    long = ["--data", "long.txt", "--windows", "100000", "--length", "64"]
    running = subprocess.Popen(
        [sys.executable, "-m", "bondwise.cli", "compress", shelf / "llama", "--out", "o", *long],
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=hears,  # noqa: PLW1509
    )
    assert running.stderr.readline().startswith("load: ")
    running.send_signal(signal.SIGINT)
    out, err = running.communicate(timeout=100)
    assert (running.returncode, out) == (1, "")
    assert err == "bondwise: Stopped by Ctrl-C; nothing was left half-written.\n"
    assert files(desk) == before


@pytest.mark.skipif(not hasattr(os, "fork"), reason="limits on files are a thing of Unix")
def test_a_disk_that_really_refuses(capsys, shelf, desk, monkeypatch):
    import resource

    monkeypatch.setattr(sys, "dont_write_bytecode", True)  # or a module is cut short for good
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (40_000, hard))
    try:
        usual = ("compress", shelf / "llama", "--out", "o", "-q")
        refused(capsys, *usual, code=1, says="o cannot be written")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_what_is_left_to_change_is_said_in_python_too():
    small = bw.tensorize(tiny.llama(), keep=0.8).model
    with pytest.raises(SelectionError, match="it holds tensor networks already"):
        bw.tensorize(small, keep=0.5)
