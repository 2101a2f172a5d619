"""Remainders against the matrix of them by numpy; in layers see test_layers too."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.testing import assert_close

import bondwise as bw
from bondwise.errors import ShapeError
from bondwise.layers.layers import TensorLinear
from bondwise.layers.remainder import Columns, Entries
from nets import layer_of, remainder_of

OUT, WIDTH = 7, 10
KINDS = ("columns", "entries")
every_kind = pytest.mark.parametrize("kind", KINDS)
both_forms = pytest.mark.parametrize("gauge", [False, True], ids=["plain", "gauge"])


def make(kind, gauge):
    """A layer with a remainder, and the weight that it stands for."""
    remainder, R = remainder_of(kind, 4, (OUT, WIDTH))
    U, V = torch.randn(OUT, 3, dtype=torch.float64), torch.randn(3, WIDTH, dtype=torch.float64)
    net, bias = bw.lowrank(OUT, WIDTH, 3), torch.randn(OUT, dtype=torch.float64)
    layer = layer_of(TensorLinear, net, [U, V], gauge, bias=bias, remainder=remainder)
    return layer, U @ V + R


def columns(at, values=(7, 2)):
    return Columns(torch.tensor(at), torch.ones(values))


def entries(at, count=2):
    return Entries(torch.tensor(at), torch.ones(count))


@given(
    kind=st.sampled_from(KINDS),
    out=st.integers(1, 9),
    width=st.integers(1, 9),
    share=st.floats(0, 1),
    seed=st.integers(0, 99),
)
def test_any_shape_and_count(kind, out, width, share, seed):
    most = width if kind == "columns" else out * width
    remainder, R = remainder_of(kind, max(1, round(share * most)), (out, width), seed)
    remainder.check((out, width))
    x = torch.randn(3, width, dtype=torch.float64)
    assert_close(remainder.apply(x, out), x @ R.T)
    assert_close(remainder.add_to(torch.ones(out, width, dtype=torch.float64)), 1 + R)


@every_kind
def test_a_step_of_training_changes_the_values_and_no_position(kind):
    layer, _ = make(kind, gauge=True)
    assert [name for name, _ in layer.named_parameters()][-2:] == ["remainder", "bias"]
    values, at = layer.remainder.detach().clone(), layer.remainder_at.clone()
    layer(torch.randn(4, WIDTH, dtype=torch.float64)).square().sum().backward()
    torch.optim.SGD(layer.parameters(), lr=0.1).step()
    assert bool((layer.remainder != values).all())
    assert torch.equal(layer.remainder_at, at)


@every_kind
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_it_runs_and_trains_in_other_dtypes(kind, dtype):
    layer, W = make(kind, gauge=True)
    x = torch.randn(5, WIDTH, dtype=dtype)
    layer.to(dtype)
    assert layer.remainder.dtype == dtype
    assert layer.remainder_at.dtype == torch.int32
    y = layer(x)
    assert y.dtype == dtype
    # a sum of ten products of normal numbers, each factor rounded
    atol = 60 * torch.finfo(dtype).eps
    assert_close(y.double(), F.linear(x.double(), W, layer.bias.double()), rtol=0, atol=atol)
    y.sum().backward()
    assert layer.remainder.grad.dtype == dtype


@every_kind
@both_forms
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_autocast_gives_one_dtype(kind, gauge, dtype):
    layer, W = make(kind, gauge)
    layer.float()
    x = torch.randn(5, WIDTH)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = layer(x.to(dtype))
    assert y.dtype == torch.bfloat16
    atol = 60 * torch.finfo(torch.bfloat16).eps
    assert_close(y.double(), F.linear(x.double(), W, layer.bias.double()), rtol=0, atol=atol)
    y.sum().backward()
    assert layer.remainder.grad.dtype == torch.float32


def test_without_one_nothing_is_stored_for_it():
    layer = TensorLinear(bw.lowrank(6, 4, 2))
    assert layer.remainder is None
    assert not [name for name in layer.state_dict() if "remainder" in name]
    assert "remainder" not in layer.spec()


@every_kind
def test_merge_includes_it(kind):
    layer, W = make(kind, gauge=True)
    merged = bw.merge(nn.Sequential(layer))
    assert type(merged[0]) is nn.Linear
    assert_close(merged[0].weight, W)


@pytest.mark.parametrize(
    ("remainder", "says"),
    [
        (columns([1, 1]), "ascending order, from 0 to 9"),
        (columns([3, 1]), "ascending"),
        (columns([-1, 1]), "ascending"),
        (columns([1, 10]), r"columns of a weight of 10.* from 0 to 9"),
        (columns([1.0, 2.0]), "whole numbers"),
        (columns([[1, 2]]), "one dimension"),
        (
            columns([1, 2], (2, 7)),
            r"\(2, 7\) came for 2 columns of a weight 7 x 10; write \(7, 2\)",
        ),
        (entries([1, 70]), "from 0 to 69"),
        (entries([1, 2], 3), r"\(3,\) came for 2 entries; write \(2,\)"),
        (entries([], 0), "one or more"),
    ],
)
def test_what_does_not_fit_is_named(remainder, says):
    with pytest.raises(ShapeError, match=says):
        TensorLinear(bw.lowrank(OUT, WIDTH, 2), remainder=remainder)


def test_a_weight_too_large_for_the_positions_is_named():
    with pytest.raises(ShapeError, match="keep whole columns"):
        entries([1, 2]).check((2**16, 2**16))
