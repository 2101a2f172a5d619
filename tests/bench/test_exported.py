"""`bondwise export` from end to end on tiny models; no test looks at how fast they are."""

import re
import sys
from pathlib import Path

import jaxtyping
import pytest
import torch
from transformers import BertConfig, BertModel

import bondwise as bw
import tiny
from bondwise.checkpoint.sources.code import model_of
from bondwise.compress.effort import EFFORT
from verbs import bondwise, files

onnxruntime = pytest.importorskip("onnxruntime", reason="needs the extra onnx")
pytest.importorskip("onnxscript", reason="needs the extra onnx")

FEW = ("--repeats", 2, "--length", 12, "-q")
PAGE = Path(__file__).parents[2] / "docs/export.md"
NETS = """
import torch
from torch.nn import BatchNorm2d, Conv2d, Flatten, Linear, Module, ReLU, Sequential

def small():
    torch.manual_seed(0)
    return Sequential(
        Conv2d(3, 16, 3), BatchNorm2d(16), ReLU(), Conv2d(16, 16, 3), ReLU(), Flatten(),
        Linear(16 * 16, 8),
    )

class Looks(Module):
    def __init__(self):
        super().__init__()
        self.linear = Linear(4, 4)

    def forward(self, x):
        return self.linear(x) if x.sum() > 0 else x
"""


@pytest.fixture(autouse=True)
def unchecked(monkeypatch):
    """A size in a graph is no int."""
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)


@pytest.fixture(scope="module")
def encoders(tmp_path_factory):
    """An encoder of one block, dense and with networks."""
    folder = tmp_path_factory.mktemp("encoders")
    torch.manual_seed(0)
    config = BertConfig(
        hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2,
        vocab_size=128, max_position_embeddings=40,
    )  # fmt: skip
    dense = BertModel(config).eval()
    tiny.on_disk(dense, folder / "dense")
    own = dense.encoder.layer[0]
    for part, name in ((own.attention.self, "query"), (own.output, "dense")):
        layer = getattr(part, name)
        made = bw.TensorLinear.from_linear(layer, bw.lowrank(*layer.weight.shape, 6))
        setattr(part, name, made)
    bw.save(dense, folder / "cut", tokenizer=tiny.tokenizer())
    return folder


@pytest.fixture
def shelf(tmp_path, monkeypatch):
    """The current folder: code, samples, a text."""
    monkeypatch.setitem(EFFORT, "fast", tiny.BRIEF)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    name = f"exported_{tmp_path.name}"
    Path(f"{name}.py").write_text(NETS)
    torch.save(torch.randn(12, 3, 8, 8), "images.pt")
    torch.save(torch.randn(6, 4), "vectors.pt")
    Path("text.txt").write_text("words and words " * 50)
    yield name
    sys.modules.pop(name, None)


def outputs(file, **values):
    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    found = session.run(None, {name: value.numpy() for name, value in values.items()})
    return [torch.from_numpy(each) for each in found]


def listed(heading):
    """The keys of JSON that the page lists under a heading."""
    section = re.search(rf"^## {heading}\n(?:[^|]*)((?:\|.*\n)+)", PAGE.read_text("utf-8"), re.M)
    assert section is not None
    return {
        key for row in section[1].splitlines() for key in re.findall(r"`(\w+)`", row.split("|")[1])
    }


@pytest.mark.slow
def test_an_encoder_beside_dense(capsys, encoders, tmp_path):
    file, cut, dense = tmp_path / "cut.onnx", encoders / "cut", encoders / "dense"
    said = bondwise(capsys, "export", cut, "--onnx", file, "--vs", dense, *FEW, "--json")
    assert (said.code, said.err) == (0, f"Wrote {file}.\n")
    report = said.json
    assert set(report) == listed("What `--json` prints")
    assert set(report["after"]) == set(report["before"]) == listed("Each of before and after")
    assert (report["source"], report["vs"], report["file"]) == (str(cut), str(dense), str(file))
    assert (report["kind"], report["length"], report["batch"], report["repeats"]) == (
        "text", 12, 8, 2,
    )  # fmt: skip
    assert [port["name"] for port in report["inputs"]] == ["input_ids", "attention_mask"]
    assert {tuple(port["axes"]) for port in report["inputs"]} == {("batch", "sequence")}
    assert report["outputs"][0]["axes"] == ["batch", "sequence", 32]
    assert 0 < report["difference"] < 1e-5
    assert report["after"]["bytes"] == file.stat().st_size < report["before"]["bytes"]
    assert (report["after"]["layers"], report["before"]["layers"]) == ({"network": 2}, {})
    for side in ("before", "after", "ratio"):
        for where in ("onnxruntime", "torch"):
            for part in ("forward", "batched"):
                spread = report[side][where][part]
                assert 0 < spread["low"] <= spread["median"] <= spread["high"]
    assert report["notes"] == []
    assert sorted(files(tmp_path)) == ["cut.onnx"]
    ids = torch.randint(128, (3, 17))
    mask = torch.ones_like(ids)
    mask[1, 5:] = 0
    with torch.no_grad():
        wanted = BertModel.from_pretrained(cut)(input_ids=ids, attention_mask=mask)
    got = outputs(file, input_ids=ids, attention_mask=mask)
    torch.testing.assert_close(got[0], wanted.last_hidden_state, atol=1e-5, rtol=1e-4)

    said = bondwise(capsys, "export", cut, "--onnx", file, *FEW)
    assert (said.code, said.out) == (1, "")
    assert "cut.onnx is there already" in said.err


@pytest.mark.slow
def test_a_compressed_model_of_code_with_samples(capsys, shelf, tmp_path):
    code, data = f"{shelf}:small", ("--data", "images.pt")
    made = bondwise(capsys, "compress", code, *data, "--keep", 0.4, "--out", "cut", "-q")
    assert made.code == 0, made.err
    said = bondwise(capsys, "export", "cut", "--onnx", "cut.onnx", *data, *FEW)
    assert (said.code, f"add --code {code}" in said.err) == (1, True)
    said = bondwise(capsys, "export", "cut", "--code", code, "--onnx", "cut.onnx", *data, *FEW)
    assert said.code == 0, said.err
    lines = said.out.splitlines()
    assert max(map(len, lines)) <= 80
    assert lines[0] == "cut"
    assert lines[-1] == "Wrote cut.onnx."
    assert "Takes input: float (batch, 3, 8, 8); gives output: float (batch, 8)." in said.out
    images = torch.randn(5, 3, 8, 8)
    with torch.no_grad():
        wanted = bw.load("cut", model=model_of(code)).eval()(images)
    torch.testing.assert_close(outputs("cut.onnx", input=images)[0], wanted, atol=1e-5, rtol=1e-4)
    assert [p.name for p in tmp_path.iterdir() if p.name.startswith(".")] == []


@pytest.mark.parametrize(
    ("words", "code", "says"),
    [
        ("{0}:small --onnx o.onnx", 2, "{0}:small does not say what it takes; add samples of it"),
        ("{0}:small --onnx o.onnx --data text.txt", 2, "text.txt came as samples; write a file of"),
        ("{0}:small --onnx o.onnx --data gone.pt", 2, "There is no file gone.pt"),
        ("{0}:small --onnx o.onnx --data vectors.pt", 2, "cannot run on the data, float32 (6, 4)"),
        ("{0}:Looks --onnx o.onnx --data vectors.pt", 1, "cannot be exported: its code looks at "),
        ("{0}:none --onnx o.onnx --data images.pt", 1, "has no attribute none"),
        ("gone --onnx o.onnx", 1, "There is no folder gone"),
        ("empty --onnx o.onnx", 1, "empty is not a model: it has no config.json"),
        ("{0}:small --onnx o.txt --data images.pt", 1, "end its name in .onnx"),
        ("{0}:small --onnx none/o.onnx --data images.pt", 1, "none cannot be written to; make it"),
        ("{0}:small --onnx o.onnx --data images.pt --repeats 0", 2, "repeats=0 came"),
        ("{0}:small --onnx o.onnx --data images.pt --length 0", 2, "length=0 came"),
        ("{0}:small --onnx o.onnx --data images.pt --dtype bfloat16", 2, "is in bfloat16, for "),
        ("{0}:small --onnx o.onnx --data images.pt --device nosuch", 2, "device='nosuch' came"),
        ("{0}:small --data images.pt", 2, "Missing option '--onnx'"),
    ],
)
def test_what_cannot_be_is_one_sentence_and_nothing_is_left(capsys, shelf, words, code, says):
    Path("empty").mkdir()
    before = {*Path().iterdir()}
    said = bondwise(capsys, "export", *words.format(shelf).split(), "-q")
    assert (said.code, said.out) == (code, "")
    assert says.format(shelf) in said.err
    assert said.err.count("\n") == 1
    assert {*Path().iterdir()} - {Path("__pycache__")} == before


def test_a_text_longer_than_the_model_reads(capsys, encoders, tmp_path):
    said = bondwise(
        capsys, "export", encoders / "dense", "--onnx", tmp_path / "o.onnx", "--length", 41, "-q"
    )
    assert said.code == 2
    assert "A text of 41 tokens came, and" in said.err
    assert "has 40 positions; write a smaller --length." in said.err
    assert files(tmp_path) == {}


def test_a_missing_package_is_named_before_anything_is_loaded(capsys, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    said = bondwise(capsys, "export", tmp_path / "none", "--onnx", tmp_path / "o.onnx", "-q")
    assert said.code == 1
    assert "onnxscript is not installed; run: pip install 'bondwise[onnx]'" in said.err
