"""What layers share is in the files once, and shared again after loading."""

import json
import struct

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

import bondwise as bw
from bondwise.checkpoint.checkpoint import load, save
from bondwise.errors import CheckpointError
from bondwise.gauge.compact import compact
from bondwise.layers.layers import TensorLinear
from bondwise.layers.remainder import Columns, Entries
from bondwise.layers.storage import share


class Attention(nn.Module):
    """Three layers with one input, and one behind them."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v = nn.Linear(12, 16), nn.Linear(12, 8), nn.Linear(12, 8, bias=False)
        self.o = nn.Linear(8, 12)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        weights = (self.q(x)[..., :8] * self.k(x)).softmax(-1)
        return self.o(weights * self.v(x)) + self.q(x)[..., 4:]


X = torch.linspace(-1, 1, 36).view(3, 12)


def gauge_free(dense, remainder=None):
    net = bw.lowrank(*dense.weight.shape, 4)
    stored = compact(net, [torch.randn(shape) for shape in net.core_shapes])
    return TensorLinear.from_compact(stored, dense, remainder)


def made() -> Attention:
    torch.manual_seed(0)
    model = Attention()
    model.q = gauge_free(model.q, Columns(torch.tensor([0, 5]), torch.randn(16, 2)))
    model.k = gauge_free(model.k, Entries(torch.tensor([3, 50, 95]), torch.randn(3)))
    model.v = gauge_free(model.v)
    share([model.q, model.k, model.v])
    return model


@pytest.fixture
def model() -> Attention:
    return made()


@pytest.fixture
def folder(model, tmp_path):
    return save(model, tmp_path / "attention")


def is_tied(model) -> bool:
    layers = [model.q, model.k, model.v]
    cores, pivots = {own.core_1.data_ptr() for own in layers}, {id(own.pivots_1) for own in layers}
    return len(cores) == len({id(own.core_1) for own in layers}) == len(pivots) == 1


def bytes_of(file) -> int:
    """Bytes of the tensors in a safetensors file, without its header."""
    raw = file.read_bytes()
    return len(raw) - 8 - struct.unpack("<Q", raw[:8])[0]


def test_a_round_trip_is_exact_and_tied(model, folder):
    loaded = load(folder, model=Attention())
    assert is_tied(loaded)
    assert torch.equal(loaded(X), model(X))
    want, got = model.state_dict(), loaded.state_dict()
    assert list(want) == list(got)
    assert all(torch.equal(want[name], got[name]) for name in want)
    optimizer = torch.optim.SGD(loaded.parameters(), lr=0.1)
    loaded(X).square().sum().backward()
    optimizer.step()
    assert is_tied(loaded)


def test_the_file_holds_it_once(model, folder):
    saved = load_file(folder / "model.safetensors")
    for name in ("core_1", "pivots_1"):
        assert sum(key.endswith(name) for key in saved) == 1
    expected = 4 * (4 * (16 + 8 + 8) + 4 * (12 - 4))  # cores
    expected += 2 + 4 * 3  # one mask of twelve bits, three guards
    expected += 4 * (16 * 2 + 2 + 3 + 3)  # remainders, positions as int32
    expected += 4 * (16 + 8 + 8 * 12 + 12)  # biases and the dense layer
    assert bytes_of(folder / "model.safetensors") == expected


def test_the_manifest_names_owner_and_remainder(folder):
    manifest = json.loads((folder / "bondwise.json").read_text())
    assert manifest["schema"] == 2
    modules = manifest["modules"]
    assert "shared" not in modules["q"]
    assert modules["k"]["shared"] == modules["v"]["shared"] == {"1": "q"}
    assert modules["q"]["remainder"] == {"kind": "columns", "count": 2}
    assert modules["k"]["remainder"] == {"kind": "entries", "count": 3}


def test_what_shares_nothing_stays_at_the_first_schema(tmp_path):
    plain = nn.Sequential(gauge_free(nn.Linear(12, 16)))
    folder = save(plain, tmp_path / "plain")
    manifest = json.loads((folder / "bondwise.json").read_text())
    assert manifest["schema"] == 1
    assert not {"shared", "remainder"} & manifest["modules"]["0"].keys()


def test_other_dtypes(model, tmp_path):
    for dtype in (torch.bfloat16, torch.float64):
        model.to(dtype)
        loaded = load(save(model, tmp_path / str(dtype)), model=Attention())
        assert is_tied(loaded)
        assert {p.dtype for p in loaded.parameters()} == {dtype}
        assert torch.equal(loaded(X.to(dtype)), model(X.to(dtype)))


def test_a_second_round_trip_writes_the_same(folder, tmp_path):
    again = save(load(folder, model=Attention()), tmp_path / "again")
    assert (again / "bondwise.json").read_bytes() == (folder / "bondwise.json").read_bytes()
    one, two = (load_file(at / "model.safetensors") for at in (again, folder))
    assert one.keys() == two.keys()
    assert all(torch.equal(one[name], two[name]) for name in two)


def test_the_owner_may_be_dense_by_now(model, tmp_path):
    model.q = nn.Linear(12, 16)
    loaded = load(save(model, tmp_path / "kv"), model=Attention())
    assert loaded.k.core_1 is loaded.v.core_1
    assert torch.equal(loaded(X), model(X))


def test_any_of_the_names_may_hold_it(model, folder):
    weights = folder / "model.safetensors"
    tensors = {name: value.clone() for name, value in load_file(weights).items()}
    (held,) = (name for name in tensors if name.endswith("core_1"))
    for name in ("q.core_1", "k.core_1", "v.core_1"):
        moved = {name if key == held else key: value for key, value in tensors.items()}
        save_file(moved, weights)
        loaded = load(folder, model=Attention())
        assert is_tied(loaded)
        assert torch.equal(loaded(X), model(X))
    tensors.pop(held)
    save_file(tensors, weights)
    with pytest.raises(CheckpointError, match=r"lacks 'k\.core_1'"):
        load(folder, model=Attention())


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda m: m["modules"]["k"].update(shared={"1": "z"}), "'k' shares {'1': 'z'}"),
        (lambda m: m["modules"]["k"].update(shared={"1": ["z"]}), "'k' shares"),
        (lambda m: m["modules"]["k"].update(shared={"0": "q"}), "shares a core with 'q'"),
        (lambda m: m["modules"]["k"].update(shared={"7": "q"}), "cores 0 to 1"),
        (lambda m: m["modules"]["k"].update(shared={"x": "q"}), "'k' shares {'x': 'q'}"),
        (lambda m: m["modules"]["k"].update(shared=[1]), r"'k' shares \[1\]"),
        (lambda m: m["modules"]["k"]["remainder"].update(kind="rows"), "'k' cannot be read"),
        (lambda m: m["modules"]["k"]["remainder"].update(count=0), "'k' cannot be read"),
        (lambda m: m["modules"]["k"]["remainder"].update(count=4), r"'k\.remainder' of shape"),
        (lambda m: m["modules"]["k"].update(remainder=3), "'k' cannot be read"),
    ],
)
def test_bad_manifests(folder, change, says):
    manifest = json.loads((folder / "bondwise.json").read_text())
    change(manifest)
    (folder / "bondwise.json").write_text(json.dumps(manifest))
    with pytest.raises(CheckpointError, match=says) as caught:
        load(folder, model=Attention())
    assert "\n" not in str(caught.value)
