"""Models as ONNX files: equal numbers in onnxruntime for all sizes, files whole or not at all."""

import sys

import numpy as np
import pytest
import torch
from torch import nn
from transformers import BertConfig, BertModel, LlamaConfig, LlamaForCausalLM

import bondwise as bw
import tiny
from bondwise.checkpoint.onnx import export as writing
from bondwise.checkpoint.onnx import forms
from bondwise.checkpoint.onnx.contest import Contest, fastest
from bondwise.checkpoint.onnx.export import export
from bondwise.checkpoint.onnx.inputs import Inputs, inputs_of
from bondwise.errors import CheckpointError, DataError, MissingExtraError
from bondwise.topology import registry
from nets import BESIDE, beside_of, layer_of, noise, random_cores, reference, thorough
from verbs import files

onnx = pytest.importorskip("onnx", reason="needs the extra onnx")
onnxruntime = pytest.importorskip("onnxruntime", reason="needs the extra onnx")
pytest.importorskip("onnxscript", reason="needs the extra onnx")

SMALL = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "vocab_size": 128}
SMALL |= {"num_attention_heads": 2, "max_position_embeddings": 40}


def session(file, kept=None):
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    if kept is not None:
        options.optimized_model_filepath = str(kept)
    return onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])


def run(file, **values):
    """The outputs by name."""
    own = session(file)
    given = {name: value.numpy() for name, value in values.items()}
    names = [each.name for each in own.get_outputs()]
    return dict(zip(names, map(torch.from_numpy, own.run(None, given)), strict=True))


def rows_of(width):
    """What a layer takes: any number of rows."""
    return Inputs({"x": {0: "rows"}}, lambda n, _: {"x": torch.randn(n, width)}, named=False)


class All(nn.Module):
    """Layers beside each other, on one input."""

    def __init__(self, layers):
        super().__init__()
        self.layers = nn.ModuleDict(layers)

    def forward(self, x):
        return {name: layer(x) for name, layer in self.layers.items()}


def every_kind(gauge):
    """A linear layer of every topology, and of every kind of term beside a network; and weights."""
    bias, layers, weights = noise((1, 24))[0], {}, {}
    for name in registry.names():
        net = registry.find(name).sized(24, 16, 2)
        cores = random_cores(net)
        layers[name] = layer_of(bw.TensorLinear, net, cores, gauge, bias=bias)
        weights[name] = reference(net, cores)
    net = bw.lowrank(24, 16, 3)
    for kind in BESIDE:
        term, matrix = beside_of(kind, net.shape)
        layers[f"with_{kind}"] = layer_of(
            bw.TensorLinear, net, random_cores(net), gauge, [term], bias=bias
        )
        weights[f"with_{kind}"] = reference(net, random_cores(net)) + matrix
        if kind != "network":
            layers[f"only_{kind}"] = bw.TensorLinear.of([term], bias)
            weights[f"only_{kind}"] = matrix
    return All(layers).float().eval(), weights, bias


@pytest.mark.slow
@pytest.mark.parametrize("gauge", [True, *thorough(False)], ids=["free", "whole cores"])
@pytest.mark.parametrize("place", [0, *thorough(-1)], ids=["networks", "whole"])
def test_layers_of_every_kind_are_one_graph_of_equal_numbers(tmp_path, monkeypatch, gauge, place):
    model, weights, bias = every_kind(gauge)
    won = lambda contests, _: [len(own.forms) + place if place else 0 for own in contests]  # noqa: E731
    monkeypatch.setattr(forms, "fastest", won)
    with tiny.untouched(model):
        found = export(model, tmp_path / "all.onnx", rows_of(16))
    assert [port.axes for port in found.outputs] == [("rows", 24)] * len(weights)
    named = {form for path, form in found.forms.items() if not path.startswith("layers.only")}
    # matrices alone with fewer multiplications than dense are networks without a contest
    assert named == ({"network"} if place == 0 else {"network", "whole"})
    for rows in (1, 7, 300):
        x = torch.randn(rows, 16)
        for name, y in run(found.file, x=x).items():
            wanted = x.double() @ weights[name].mT + bias
            torch.testing.assert_close(y.double(), wanted, atol=2e-4, rtol=2e-4, msg=name)
    session(found.file, tmp_path / "kept.onnx")
    graph = onnx.load(tmp_path / "kept.onnx").graph
    constant = {each.name for each in graph.initializer}
    late = [n.op_type for n in graph.node if n.input and {*n.input} - {""} <= constant]
    assert late == []  # what is worked out of numbers alone was worked out when the file was read
    if place:
        assert {n.op_type for n in graph.node} <= {"Gemm", "MatMul", "Add", "Reshape", "Transpose"}


class Mixed(nn.Module):
    """Convolutions and embeddings, by name."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        own = {"mpo": bw.mpo((10, 5), (4, 3), 3), "low": bw.lowrank(50, 12, 4)}
        cores = {name: random_cores(net) for name, net in own.items()}
        table = {name: layer_of(bw.TensorEmbedding, own[name], cores[name], True) for name in own}
        table["padded"] = bw.TensorEmbedding(own["low"], padding_idx=0, zero_padding=True)
        self.tables = nn.ModuleDict(table)
        convs = [
            bw.TensorConv2d.from_conv(nn.Conv2d(4, 6, 3, padding=1), bw.tucker2(6, 4, (3, 3), 3)),
            bw.TensorConv2d.from_conv(nn.Conv2d(4, 6, 3, stride=2, groups=2)),
            bw.TensorConvTranspose2d.from_conv(nn.ConvTranspose2d(4, 6, 3, stride=2)),
            bw.TensorConv2d(bw.cp(6, (4, 3, 3), 3), padding="same", padding_mode="circular"),
        ]
        self.convs = nn.ModuleList(convs)

    def forward(self, ids, x):
        rows = {name: table(ids) for name, table in self.tables.items()}
        return rows | {f"conv{k}": conv(x) for k, conv in enumerate(self.convs)}


@pytest.mark.parametrize("place", [0, *thorough(1)], ids=["networks", "whole"])
def test_convolutions_and_embeddings(tmp_path, monkeypatch, place):
    model = Mixed().float().eval()
    monkeypatch.setattr(forms, "fastest", lambda contests, _: [place] * len(contests))

    def draw(batch, sizes):
        tokens = sizes.get("sequence", 6)
        return {"ids": torch.randint(50, (batch, tokens)), "x": torch.randn(batch, 4, 9, 9)}

    takes = Inputs({"ids": {0: "batch", 1: "sequence"}, "x": {0: "batch"}}, draw)
    found = export(model, tmp_path / "mixed.onnx", takes)
    assert {own for path, own in found.forms.items() if "convs" in path} == (
        {"whole"} if place else {"network"}
    )
    assert found.inputs[0].axes == ("batch", "sequence")
    for batch, tokens in ((1, 1), (5, 9)):
        values = draw(batch, {"sequence": tokens})
        with torch.no_grad():
            wanted = model(**values)
        got = run(found.file, **values)
        for name, y in wanted.items():
            torch.testing.assert_close(got[name], y, atol=1e-5, rtol=1e-4, msg=name)


def low(linear):
    return bw.TensorLinear.from_linear(linear, bw.lowrank(*linear.weight.shape, 4))


def encoder():
    torch.manual_seed(0)
    model = BertModel(BertConfig(**SMALL)).eval()
    own = model.encoder.layer[0].attention.self
    own.query, own.key = low(own.query), low(own.key)
    return model, tiny.tokenizer()


def decoder():
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(num_key_value_heads=1, **SMALL)).eval()
    model.model.layers[0].mlp.up_proj = low(model.model.layers[0].mlp.up_proj)
    return model, None


@pytest.mark.parametrize(
    ("make", "outputs"),
    [(encoder, ["last_hidden_state", "pooler_output"]), (decoder, ["logits"])],
    ids=["encoder", "decoder"],
)
def test_texts_of_any_number_and_length(tmp_path, make, outputs):
    model, tokenizer = make()
    bw.prepare(model, rows=(1, 16))
    takes = inputs_of(model, tokenizer, source="it")
    found = export(model, tmp_path / "text.onnx", takes)
    assert bw.unprepare(model) > 0  # what was prepared stays, and is not what is written
    assert {port.axes for port in found.inputs} == {("batch", "sequence")}
    assert [port.name for port in found.outputs] == outputs
    assert [(c.batch, c.length) for c in found.checks] == [(1, 5), (3, 13), (1, 1)]
    assert 0 < found.difference < 1e-5
    names = [port.name for port in found.inputs]
    for batch, length in ((1, 1), (1, 40), (4, 3)):
        values = {name: takes.example(batch, length)[name] for name in names}
        with torch.no_grad():
            wanted = model(**values, use_cache=False)
        got = run(found.file, **values)
        for name in outputs:
            torch.testing.assert_close(got[name], wanted[name], atol=1e-5, rtol=1e-4)


def test_the_form_that_took_fewest_seconds_is_taken_and_the_first_unless_it_gains(monkeypatch):
    from bondwise.checkpoint.onnx import contest

    one, two = nn.Linear(8, 4), nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 4))
    sizes = [(3, 8), (50, 8)]
    seen = []

    def seconds(sessions, values):
        seen.append([own.run(own.given(values))[0].shape for own in sessions])
        return took.pop(0)

    monkeypatch.setattr(contest, "_seconds", seconds)
    took = [[1.0, 0.5], [1.0, 1.5], [1.0, 0.97], [1.0, 0.97]]
    assert fastest([Contest([one, two], sizes), Contest([two, one], sizes)], "it") == [1, 0]
    assert seen == [[(3, 4), (3, 4)], [(50, 4), (50, 4)]] * 2
    assert fastest([], "it") == []


class Branch(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(4, 4)

    def forward(self, x):
        return self.linear(x) if x.sum() > 0 else x


class Fixed(Branch):
    def forward(self, x):
        return self.linear(x).reshape(2, 4)


class Noise(Branch):
    def forward(self, x):
        return self.linear(x) + torch.randn_like(x)


class Svd(Branch):
    def forward(self, x):
        return torch.linalg.svdvals(self.linear(x).reshape(-1, 2, 2))


class Named(Branch):
    """Gives its input, one value twice, none, and a number."""

    def forward(self, x):
        y = self.linear(x)
        return {"x": x, "y": y, "more": [y, None, {"most": y.argmax(-1)}], "count": 3}


SAYS = {
    Branch: "looks at values of a tensor",
    Fixed: "fixes the rows of x to 2, which has to be free",
    Noise: "gives other numbers in onnxruntime than in torch: output differs by",
    Svd: "ONNX has nothing for aten",
}


@pytest.mark.parametrize("kind", SAYS, ids=lambda kind: kind.__name__)
def test_what_cannot_be_one_graph_is_named_and_nothing_is_left(tmp_path, kind):
    (tmp_path / "it.onnx").write_bytes(b"before")
    before = files(tmp_path)
    with pytest.raises(CheckpointError, match="The model ") as told:
        export(kind(), tmp_path / "it.onnx", rows_of(4), overwrite=True, source="The model")
    assert SAYS[kind] in str(told.value)
    assert "\n" not in str(told.value)
    assert files(tmp_path) == before


def test_outputs_have_names_of_their_own(tmp_path):
    model = Named().eval()
    found = export(model, tmp_path / "named.onnx", rows_of(4))
    assert [port.name for port in found.outputs] == ["x_out", "y", "more_0", "more_2_most"]
    x = torch.randn(3, 4)
    got = run(found.file, x=x)
    torch.testing.assert_close(got["x_out"], x)
    torch.testing.assert_close(got["y"], model.linear(x).detach())
    assert got["more_2_most"].dtype == torch.int64


def test_numbers_of_a_large_model_are_a_file_beside_it(tmp_path, monkeypatch):
    model, file = nn.Sequential(nn.Linear(64, 64)), tmp_path / "large.onnx"
    with monkeypatch.context() as patch:
        patch.setattr(writing, "LARGEST", 1000)
        found = export(model, file, rows_of(64))
    assert found.data == tmp_path / "large.onnx.data"
    assert sorted(files(tmp_path)) == ["large.onnx", "large.onnx.data"]
    assert found.bytes == sum(map(len, files(tmp_path).values()))
    assert found.data.stat().st_size >= 4 * 64 * 64
    x = torch.randn(3, 64)
    torch.testing.assert_close(run(file, x=x)["output"], model(x).detach())
    assert (
        b"/"
        not in onnx.load(file, load_external_data=False)
        .graph.initializer[0]
        .external_data[0]
        .value.encode()
    )
    assert export(model, file, rows_of(64), overwrite=True).data is None
    assert sorted(files(tmp_path)) == ["large.onnx"]


def test_a_file_tells_nothing_of_the_machine_that_wrote_it(tmp_path):
    found = export(nn.Sequential(nn.Linear(4, 4)), tmp_path / "it.onnx", rows_of(4))
    assert b".py" not in found.file.read_bytes()
    assert str(tmp_path).encode() not in found.file.read_bytes()


@pytest.mark.parametrize("package", ["onnx", "onnxscript", "onnxruntime"])
def test_a_missing_package_is_named_with_its_extra(tmp_path, monkeypatch, package):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(MissingExtraError, match=rf"{package} is not installed; .*bondwise\[onnx\]"):
        export(nn.Sequential(nn.Linear(4, 4)), tmp_path / "it.onnx", rows_of(4))


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("it.pt", r"end its name in \.onnx"),
        ("folder.onnx", "is a folder; name a file"),
        ("there.onnx", "is there already; name another file, or replace it with --force"),
        ("none/it.onnx", "cannot be written to; make it"),
    ],
)
def test_a_place_that_will_not_do_is_refused_before_anything_is_done(tmp_path, name, says):
    (tmp_path / "folder.onnx").mkdir()
    (tmp_path / "there.onnx").write_bytes(b"before")
    with pytest.raises(CheckpointError, match=says):
        export(nn.Sequential(nn.Linear(4, 4)), tmp_path / name, rows_of(4))
    assert (tmp_path / "there.onnx").read_bytes() == b"before"


def test_a_disk_without_room_leaves_nothing(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(writing, "Session", full)
    with pytest.raises(CheckpointError, match="No space left on device"):
        export(nn.Sequential(nn.Linear(4, 4)), tmp_path / "it.onnx", rows_of(4))
    assert files(tmp_path) == {}


def test_what_has_no_arithmetic_there_is_refused(tmp_path):
    model = nn.Sequential(nn.Linear(4, 4)).bfloat16()
    with pytest.raises(DataError, match="is in bfloat16, for which onnxruntime has no arithmetic"):
        export(model, tmp_path / "it.onnx", rows_of(4))


@pytest.mark.parametrize(
    ("found", "wanted", "off"),
    [
        ([1.0, 2.0], [1.0, 2.5], 0.2),
        ([0.0, 0.0], [0.0, 0.0], 0.0),
        ([float("nan"), 1.0], [float("nan"), 1.0], 0.0),
        ([float("nan"), 1.0], [2.0, 1.0], float("inf")),
        ([float("inf"), 1.0], [float("inf"), 1.0], 0.0),
        ([1.0], [1.0, 1.0], float("inf")),
        ([1e-3], [0.0], float("inf")),
        ([], [], 0.0),
    ],
)
def test_the_difference_is_relative_to_the_largest_number(found, wanted, off):
    from bondwise.checkpoint.onnx.session import difference

    assert difference(np.array(found), torch.tensor(wanted)) == pytest.approx(off)
