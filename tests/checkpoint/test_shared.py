"""What layers share is in the files once, and shared again after loading."""

import struct

import pytest
import torch
from bondwise.layers.remainder import Columns, Entries
from safetensors.torch import load_file
from torch import nn

from bondwise.checkpoint.checkpoint import load, save
from bondwise.layers.module import share
from verbs import edit

from .conftest import gauge_free, manifest_of, pop, refused


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


@pytest.fixture
def model() -> Attention:
    torch.manual_seed(0)
    model = Attention()
    columns = Columns(torch.tensor([0, 5]), torch.randn(16, 2))
    entries = Entries(torch.tensor([3, 50, 95]), torch.randn(3))
    model.q = gauge_free(model.q, 4, remainder=columns)
    model.k = gauge_free(model.k, 4, remainder=entries)
    model.v = gauge_free(model.v, 4)
    share([model.q, model.k, model.v])
    return model


@pytest.fixture
def folder(model, tmp_path):
    return save(model, tmp_path / "attention")


def tied(layers) -> bool:
    """One core, as attribute and as parameter, in one place and with one table of pivots."""
    cores = {id(core) for own in layers for core in (own.core_1, own._parameters["core_1"])}
    places = {(own.core_1.data_ptr(), id(own.pivots_1)) for own in layers}
    return len(cores) == len(places) == 1


def bytes_of(folder) -> int:
    """Bytes of the tensors in the safetensors file of a folder, without its header."""
    raw = (folder / "model.safetensors").read_bytes()
    return len(raw) - 8 - struct.unpack("<Q", raw[:8])[0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_a_round_trip_is_exact_and_tied_and_a_second_writes_the_same(model, tmp_path, dtype):
    folder = save(model.to(dtype), tmp_path / "one")
    loaded = load(folder, model=Attention())
    assert tied([loaded.q, loaded.k, loaded.v])
    assert torch.equal(loaded(X.to(dtype)), model(X.to(dtype)))
    want, got = model.state_dict(), loaded.state_dict()
    assert list(want) == list(got)
    assert all(torch.equal(want[name], got[name]) for name in want)
    assert {p.dtype for p in loaded.parameters()} == {dtype}
    again = save(loaded, tmp_path / "again")
    assert (again / "bondwise.json").read_bytes() == (folder / "bondwise.json").read_bytes()
    one, two = (load_file(at / "model.safetensors") for at in (again, folder))
    assert one.keys() == two.keys()
    assert all(torch.equal(one[name], two[name]) for name in two)


def test_the_file_holds_it_once_and_the_manifest_names_its_owner(folder):
    saved = load_file(folder / "model.safetensors")
    for name in ("core_1", "pivots_1"):
        assert sum(key.endswith(name) for key in saved) == 1
    expected = 4 * (4 * (16 + 8 + 8) + 4 * (12 - 4))  # cores
    expected += 2 + 4 * 3  # one mask of twelve bits, three guards
    expected += 4 * (16 * 2 + 2 + 3 + 3)  # remainders, positions as int32
    expected += 4 * (16 + 8 + 8 * 12 + 12)  # biases and the dense layer
    assert bytes_of(folder) == expected
    manifest = manifest_of(folder, "bondwise.json")
    modules = manifest["modules"]
    assert manifest["schema"] == 2
    assert "shared" not in modules["q"]
    assert modules["k"]["shared"] == modules["v"]["shared"] == {"1": "q"}
    assert modules["q"]["remainder"] == {"kind": "columns", "count": 2}
    assert modules["k"]["remainder"] == {"kind": "entries", "count": 3}


@pytest.mark.parametrize("name", ["q.core_1", "k.core_1", "v.core_1"])
def test_any_of_the_names_may_hold_it(model, folder, name):
    weights = folder / "model.safetensors"
    (held,) = (name for name in load_file(weights) if name.endswith("core_1"))
    edit(weights, lambda t: t.update({name: t.pop(held)}))
    loaded = load(folder, model=Attention())
    assert tied([loaded.q, loaded.k, loaded.v])
    assert torch.equal(loaded(X), model(X))
    edit(weights, pop(name))
    with refused(r"lacks 'k\.core_1'"):
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
    edit(folder / "bondwise.json", change)
    with refused(says):
        load(folder, model=Attention())
