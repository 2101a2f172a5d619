"""Shapes and numbers that trip up other libraries: they work here, or one sentence says why not."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import bondwise as bw
from bondwise.errors import BondwiseError, SelectionError, ShapeError
from bondwise.topology import registry
from nets import reference

SHAPES = [(1, 127), (127, 1), (13, 17), (1, 1), (2, 1)]
NINE = {"tucker": (2, 2, 2, 2, 2, 1, 1, 1, 1)}  # its core has an axis for each mode


@pytest.mark.parametrize(
    "dtype", [torch.float32, pytest.param(torch.bfloat16, marks=pytest.mark.thorough)]
)
@pytest.mark.parametrize("name", registry.names())
def test_ones_and_primes_in_a_layer_of_any_dtype(name, dtype):
    for out, inp in SHAPES:
        torch.manual_seed(out)
        linear = nn.Linear(inp, out, dtype=dtype)
        layer = bw.TensorLinear.from_linear(linear, registry.find(name).sized(out, inp, 2))
        x = torch.randn(5, inp, dtype=dtype)
        y = layer(x)
        assert (y.dtype, y.shape) == (dtype, (5, out))
        want = F.linear(x.double(), layer.dense().double(), linear.bias.double())
        assert torch.allclose(y.double(), want, atol=1e-5 if dtype == torch.float32 else 0.1)
        assert layer(x[:0]).shape == (0, out)
        assert layer(x[None, :0]).shape == (1, 0, out)


@pytest.mark.parametrize("name", registry.names())
def test_nine_modes_a_side(name):
    modes = NINE.get(name, (2,) * 9)
    try:
        net = registry.find(name).build(modes, modes, 2)
    except ShapeError as error:
        assert "got 9 modes" in str(error)  # noqa: PT017
        pytest.skip("takes two modes a side")
    cores = [torch.randn(shape) for shape in net.core_shapes]
    want = reference(net, cores)
    scale = want.norm() / want.numel() ** 0.5
    assert torch.allclose(bw.dense(net, cores).double() / scale, want / scale, atol=1e-3)
    x = torch.randn(3, net.shape[1])
    y, right = bw.apply(bw.plan(net, batch=3), cores, x).double(), x.double() @ want.T
    assert torch.allclose(y / right.norm(), right / right.norm(), atol=1e-5)
    assert bw.parse(str(net), **net.sizes) == net


@pytest.mark.parametrize("name", registry.names())
def test_modes_and_ranks_that_cannot_be(name):
    build = getattr(bw, name)
    for rank in (0, -1, True, (1,) * 50):
        with pytest.raises(ShapeError, match="came"):
            build((3, 4), (2, 5), rank)
    for modes in ((3, 0), (-2, 1), (2, True)):
        with pytest.raises(ShapeError, match=r"Modes .* came .*whole numbers of at least 1"):
            build(modes, (2, 5), 1)
    net = build((3, 4), (2, 5), 1)
    with pytest.raises(ShapeError, match=r"\(12, 11\)"):
        bw.fit(torch.zeros(12, 11), net)
    with pytest.raises(ShapeError, match=r"\(12, 11\)"):
        bw.TensorLinear.from_linear(nn.Linear(11, 12), net)


def test_a_model_of_odd_layers_goes_through():
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Linear(31, 1), nn.Linear(1, 53), nn.ReLU(), nn.Linear(53, 127, bias=False)
    ).bfloat16()
    data = torch.randn(300, 31, dtype=torch.bfloat16)
    result = bw.tensorize(model, keep=0.7, data=data)
    assert result.table.kept <= 0.7
    assert [row.name for row in result.table if row.changes] == ["3"]
    assert result.model(data).dtype == torch.bfloat16
    assert result.model[3].bias is None
    assert bw.merge(result.model)(data[:0]).shape == (0, 127)


def test_every_error_of_a_user_is_a_value_error():
    assert issubclass(BondwiseError, ValueError)
    with pytest.raises(SelectionError, match="No target came"):
        bw.plan_model(nn.Sequential(nn.Linear(64, 64)), 0.5, targets=[])
    with pytest.raises(SelectionError, match="no Linear, Conv1D, Embedding or convolution"):
        bw.tensorize(nn.ReLU(), 0.5)
