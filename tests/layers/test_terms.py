"""Terms beside a network against their matrices by numpy; in layers see test_layers too."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.testing import assert_close

import bondwise as bw
from bondwise.errors import CheckpointError, ShapeError
from bondwise.layers import entries, places
from bondwise.layers.linear import TensorLinear
from bondwise.layers.module import stored_numbers
from nets import BESIDE, beside_of, layer_of, random_cores

OUT, WIDTH = 7, 10
PLACED = ("columns", "rows", "entries")
every_kind = pytest.mark.parametrize("kind", BESIDE)
both_forms = pytest.mark.parametrize("gauge", [False, True], ids=["plain", "gauge"])


def make(kind, gauge):
    """A layer with a second term, and the weight that it stands for."""
    term, R = beside_of(kind, (OUT, WIDTH))
    U, V = torch.randn(OUT, 3, dtype=torch.float64), torch.randn(3, WIDTH, dtype=torch.float64)
    net, bias = bw.lowrank(OUT, WIDTH, 3), torch.randn(OUT, dtype=torch.float64)
    return layer_of(TensorLinear, net, [U, V], gauge, [term], bias=bias), U @ V + R


@given(
    kind=st.sampled_from(PLACED),
    out=st.integers(1, 9),
    width=st.integers(1, 9),
    share=st.floats(0, 1),
    seed=st.integers(0, 99),
)
def test_any_shape_and_count(kind, out, width, share, seed):
    most = {"columns": width, "rows": out, "entries": out * width}[kind]
    term, R = beside_of(kind, (out, width), seed, max(1, round(share * most)))
    x = torch.randn(3, width, dtype=torch.float64)
    assert_close(term.kind.apply(term.numbers, term.places, x), x @ R.T)
    assert_close(term.dense(), R)
    ids = torch.arange(out)
    assert_close(term.kind.rows(term.numbers, term.places, ids), R)
    again = term.kind.places(term.kind.stored(term.places))
    assert_close(again, term.places)


@every_kind
def test_a_step_of_training_changes_the_numbers_and_no_position(kind):
    layer, _ = make(kind, gauge=True)
    names = [name for name, _ in layer.named_parameters()]
    assert all(name.startswith(("core_", "t1_", "bias")) for name in names)
    before = {n: p.detach().clone() for n, p in layer.named_parameters()}
    at = layer.get_extra_state()
    layer(torch.randn(4, WIDTH, dtype=torch.float64)).square().sum().backward()
    torch.optim.SGD(layer.parameters(), lr=0.1).step()
    assert all(bool((p != before[n]).all()) for n, p in layer.named_parameters())
    assert torch.equal(layer.get_extra_state(), at)


@every_kind
def test_a_term_is_added_and_taken_away(kind):
    layer, W = make(kind, gauge=True)
    x = torch.randn(5, WIDTH, dtype=torch.float64)
    term, R = beside_of(kind, (OUT, WIDTH), seed=3)
    layer.add(term)
    assert any(name.startswith("t2_") for name, _ in layer.named_parameters())
    assert_close(layer(x), F.linear(x, W + R, layer.bias))
    assert_close(layer.remove().dense(), R)
    assert_close(layer(x), F.linear(x, W, layer.bias))
    layer.remove()
    with pytest.raises(ShapeError, match="only term"):
        layer.remove()


def test_positions_count_as_the_bits_they_take():
    net = bw.lowrank(6, 40, 2)
    columns = entries.columns(torch.tensor([33]), torch.zeros(6, 1), (6, 40))  # 32 bits, not 40
    for dtype, positions in ((torch.float32, 1), (torch.bfloat16, 2), (torch.float64, 1)):
        layer = TensorLinear(net, dtype=dtype)
        layer.add(columns)
        assert layer.stored_numbers == 2 * (6 + 40) + 6 + positions
        assert stored_numbers([layer, layer]) == layer.stored_numbers


def ones(kind, at, shape):
    return getattr(entries, kind)(torch.tensor(at), torch.ones(shape), (OUT, WIDTH))


@pytest.mark.parametrize(
    ("kind", "at", "shape", "says"),
    [
        ("columns", [1, 1], (7, 2), "ascending order, from 0 to 9"),
        ("columns", [3, 1], (7, 2), "ascending"),
        ("columns", [-1, 1], (7, 2), "ascending"),
        ("columns", [1, 10], (7, 2), r"columns of a weight 7 x 10.* from 0 to 9"),
        ("columns", [1.0, 2.0], (7, 2), "whole numbers"),
        ("columns", [[1, 2]], (7, 2), "one dimension"),
        ("columns", [1, 2], (2, 7), r"\(7, 2\).*\(2, 7\).* came"),
        ("rows", [1, 7], (2, 10), "from 0 to 6"),
        ("entries", [1, 70], (2,), "from 0 to 69"),
        ("entries", [1, 2], (3,), r"\(2,\).*\(3,\).* came"),
        ("entries", [], (0,), "one or more"),
    ],
)
def test_what_does_not_fit_is_named(kind, at, shape, says):
    with pytest.raises(ShapeError, match=says):
        ones(kind, at, shape)


def test_a_weight_too_large_for_the_positions_is_named():
    with pytest.raises(ShapeError, match="keep whole columns"):
        entries.entries(torch.tensor([1, 2]), torch.ones(2), (2**16, 2**16))


def averaged(state):
    return state.float() * 0.9


def swapped(state):
    return torch.cat([state[1:2], state[:1], state[2:]])


def short(state):
    return state[:-1]


@both_forms
@pytest.mark.parametrize("change", [averaged, swapped, short, lambda _: "none", torch.zeros_like])
def test_positions_that_are_not_those_stored_are_refused(change, gauge):
    layer, _ = make("columns", gauge)
    state = {f"0.{name}": tensor for name, tensor in layer.state_dict().items()}
    model = nn.Sequential(layer)
    before = layer.get_extra_state()
    state["0._extra_state"] = change(state["0._extra_state"])
    with pytest.raises(CheckpointError, match=r"^0: positions .*; take them"):
        model.load_state_dict(state)
    assert torch.equal(layer.get_extra_state(), before)


@both_forms
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.int64])
def test_positions_come_through_a_cast_of_the_whole_state_dict(dtype, gauge):
    layer, _ = make("columns", gauge)
    state = {name: tensor.to(dtype) for name, tensor in layer.state_dict().items()}
    other = make("columns", gauge)[0]
    other.set_extra_state(state["_extra_state"])
    assert torch.equal(other.get_extra_state(), layer.get_extra_state())


@pytest.mark.parametrize("kind", ["columns", "rows", "entries", "network"])
@pytest.mark.parametrize("change", ["repeat", "outside", "below", "order"])
def test_wrong_positions_with_a_right_checksum_are_refused(kind, change):
    """Few of many: they are stored one by one, not as a mask."""
    net = bw.lowrank(400, 400, 2)
    layer = layer_of(TensorLinear, net, random_cores(net), True)
    if kind != "network":
        layer.add(beside_of(kind, (400, 400), count=2)[0])
    kept = [own for part in layer.parts for own in part.kind.kept]
    stored = places.unpacked(layer.get_extra_state(), kept)
    at = stored[-1]
    assert at.dtype == torch.int32
    wrong = {"repeat": [5, 5], "outside": [5, 400**2], "below": [-1, 5], "order": [7, 5]}
    stored[-1] = torch.tensor(wrong[change], dtype=torch.int32)
    with pytest.raises(CheckpointError, match=r"^The layer: .*each once, in ascending order"):
        layer.load_state_dict(layer.state_dict() | {"_extra_state": places.packed(stored)})


def test_a_layer_without_positions_has_no_extra_state():
    assert "_extra_state" not in TensorLinear(bw.lowrank(6, 4, 2)).state_dict()
