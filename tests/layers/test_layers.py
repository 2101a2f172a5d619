"""Layers against F.linear and F.embedding with a weight that numpy multiplies out."""

import json

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.testing import assert_close
from transformers.pytorch_utils import Conv1D

import bondwise as bw
from bondwise.errors import ShapeError
from bondwise.gauge.compact import compact, pivot_bits, stored_numbers
from bondwise.layers import entries
from bondwise.layers.embedding import TensorEmbedding
from bondwise.layers.hosts.registry import host_of
from bondwise.layers.linear import TensorLinear
from bondwise.layers.networks import Cores, compacted
from bondwise.layers.specs import from_spec
from bondwise.layers.terms import Term
from bondwise.network.ranks import layouts
from bondwise.topology import registry
from nets import BESIDE, beside_of, layer_of, random_cores, reference, thorough

NETS = [registry.find(name).sized(12, 18, 3) for name in registry.names()]
NETS += [bw.lowrank(9, 70, 2)]  # pivots are positions, not a mask of bits
MORE = [registry.find(name).sized(7, 5, 2) for name in registry.names()] + [bw.lowrank(9, 70, 1)]
every_net = pytest.mark.parametrize("net", [*NETS, *thorough(*MORE)], ids=str)
both_forms = pytest.mark.parametrize("gauge", [False, True], ids=["plain", "gauge"])
KINDS = (TensorLinear, TensorEmbedding)
LOW = bw.lowrank(7, 10, 3)
every_layer = pytest.mark.parametrize(
    ("kind", "net", "rest"),
    [
        *((kind, net, None) for kind in KINDS for net in NETS),
        *((kind, LOW, rest) for kind in KINDS for rest in BESIDE),
        *(pytest.param(k, net, None, marks=pytest.mark.thorough) for k in KINDS for net in MORE),
    ],
)
DRAWS = 400


def make(kind, net, gauge, seed=0, **options):
    """A layer that holds random cores, and its weight by numpy."""
    cores = random_cores(net, seed)
    return layer_of(kind, net, cores, gauge, **options), reference(net, cores)


def full(kind, net, gauge, rest=None, seed=0):
    """The same with all that its kind can have: a bias, a second term."""
    term, R = beside_of(rest, net.shape, seed) if rest else (None, 0)
    options = {"beside": [term] if term else []}
    if kind is TensorLinear:
        options["bias"] = torch.linspace(-1, 1, net.shape[0], dtype=torch.float64)
    layer, W = make(kind, net, gauge, seed, **options)
    return layer, W + R


def inputs(layer, *batch):
    """Something that the layer takes: vectors or ids."""
    if isinstance(layer, TensorEmbedding):
        return torch.randint(layer.num_embeddings, batch)
    return torch.randn(*batch, layer.in_features, dtype=torch.float64)


def plain(layer, x, W):
    return F.linear(x, W, layer.bias) if x.is_floating_point() else F.embedding(x, W)


@every_layer
@both_forms
def test_a_layer_is_f_linear_or_f_embedding(kind, net, rest, gauge):
    layer, W = full(kind, net, gauge, rest)
    assert_close(layer.dense(), W)
    for batch in [(), (0,), (1,), (5,), (2, 3), (2, 0, 3), (70,)]:
        x = inputs(layer, *batch)
        y = layer(x)
        assert y.shape == (*batch, W.shape[kind is TensorEmbedding])
        assert_close(y, plain(layer, x, W))


@every_layer
@both_forms
def test_gradients_are_those_through_dense(kind, net, rest, gauge):
    layer, W = full(kind, net, gauge, rest)
    x = inputs(layer, 4)
    leaves = [*layer.parameters()]
    if kind is TensorLinear:
        leaves.append(x.requires_grad_())
    through = plain(layer, x, layer.dense())
    towards = torch.randn_like(through)
    ours = torch.autograd.grad(layer(x), leaves, towards)
    assert_close(ours, torch.autograd.grad(through, leaves, towards))
    if kind is TensorLinear:
        assert_close(ours[-1], towards @ W)


@every_layer
@both_forms
def test_spec_and_state_dict_make_the_layer_again(kind, net, rest, gauge):
    layer, _ = full(kind, net, gauge, rest)
    spec = json.loads(json.dumps(layer.spec()))
    x = inputs(layer, 5)
    for device in ("cpu", "meta"):
        again = from_spec(spec, device=device, dtype=torch.float64)
        again.load_state_dict(layer.state_dict(), assign=device == "meta")
        assert type(again) is kind
        assert again.spec() == layer.spec()
        assert torch.equal(again(x), layer(x))


@every_net
def test_parameters_are_matrices_in_the_networks_layout(net):
    layer, _ = full(TensorLinear, net, gauge=False)
    names = [f"core_{k}" for k in range(len(net.cores))]
    assert [name for name, _ in layer.named_parameters()] == [*names, "bias"]
    assert not list(layer.named_buffers())
    assert layer.state_dict()["weight"].shape == (1,)
    for matrix, layout, shape, core in zip(
        layer.matrices(), layouts(net), net.core_shapes, random_cores(net), strict=True
    ):
        assert matrix.shape == layout.shape(shape)
        assert torch.equal(matrix, core.permute(layout.order).reshape(matrix.shape))
    for core, given in zip(layer.cores(), random_cores(net), strict=True):
        assert torch.equal(core, given)


@every_net
def test_a_gauge_form_stores_as_little_as_promised(net):
    layer, _ = make(TensorLinear, net, gauge=True)
    assert sum(p.numel() for p in layer.parameters()) == stored_numbers(net)
    assert all(p.ndim == 2 for p in layer.parameters())
    stored = compact(net, random_cores(net)).free
    names = [f"core_{k}" for k, free in enumerate(stored) if free.numel()]
    assert [name for name, _ in layer.named_parameters()] == names
    assert not list(layer.named_buffers())
    bits = pivot_bits(net)
    assert layer.state_dict()["_extra_state"].shape == (bits // 8 + 4,)


def test_the_spec_says_whether_there_is_a_bias():
    net = bw.lowrank(6, 4, 2)
    for bias in (None, False, True):
        layer = from_spec(TensorLinear(net, bias=bias).spec())
        assert ("bias" in layer.state_dict()) == bool(bias)


def test_what_does_not_fit_is_named():
    net = bw.lowrank(6, 4, 2)
    stored = compact(net, random_cores(net))
    with pytest.raises(ShapeError, match=r"\(2, 6\).*\(6, 2\)"):
        TensorLinear(net, [torch.ones(2, 6), torch.ones(2, 4)])
    with pytest.raises(ShapeError, match=r"bias of shape \(4,\).*\(6,\)"):
        TensorLinear(net, bias=torch.ones(4))
    with pytest.raises(ShapeError, match=r"\(2, 2\).*\(2, 4\).*came"):
        Term(Cores(net, stored.form.pinned), (torch.ones(6, 2), torch.ones(2, 4)))
    with pytest.raises(ShapeError, match="1 pins"):
        Cores(net, (None,))
    with pytest.raises(ShapeError, match=r"'conv'.*conv1d, convolution 1d.*embedding, linear"):
        from_spec({"host": "conv", "terms": []})
    with pytest.raises(ShapeError, match=r"'loop'.*network, dense, columns"):
        from_spec({"host": "linear", "terms": [{"kind": "loop", "shape": [2, 2]}]})
    with pytest.raises(ShapeError, match="No term"):
        TensorLinear.of([])
    with pytest.raises(ShapeError, match=r"\(6, 6\) came for a weight of \(6, 4\)"):
        TensorLinear(net).add(entries.dense(torch.eye(6)))
    for padding in (12, -13):
        with pytest.raises(ShapeError, match=r"padding_idx=.*from -12 to 11"):
            TensorEmbedding(bw.lowrank(12, 4, 2), padding_idx=padding)


def full_rank(out, inp):
    return bw.lowrank(out, inp, min(out, inp))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("bias", [True, False])
def test_from_linear_keeps_what_the_source_had(dtype, bias):
    torch.manual_seed(0)
    source = nn.Linear(5, 8, bias=bias, dtype=dtype)
    layer = TensorLinear.from_linear(source, full_rank(8, 5))
    assert {p.dtype for p in layer.parameters()} == {dtype}
    assert (layer.host, layer.out_features, layer.in_features) == ("linear", 8, 5)
    # two factors of at most 5 terms, each rounded once
    tolerance = 8 * torch.finfo(dtype).eps
    assert_close(layer.dense(), source.weight.detach(), rtol=0, atol=tolerance)
    if bias:
        assert torch.equal(layer.bias, source.bias)
        assert layer.bias.data_ptr() != source.bias.data_ptr()
        with torch.no_grad():
            source.bias.zero_()
        assert layer.bias.any()
    else:
        assert layer.bias is None


def test_from_linear_reads_conv1d_the_other_way_round():
    torch.manual_seed(0)
    source = Conv1D(8, 5).double()  # 8 outputs, 5 inputs, weight 5 x 8
    nn.init.normal_(source.bias)
    layer = TensorLinear.from_linear(source, full_rank(8, 5))
    x = torch.randn(3, 5, dtype=torch.float64)
    assert layer.host == "conv1d"
    assert_close(layer(x), source(x))


@pytest.mark.parametrize("rest", ["columns", "entries", "rows"])
def test_what_a_layer_is_made_of_is_copied(rest):
    net, bias = bw.mpo((2, 3), (3, 2), 2), torch.ones(6, dtype=torch.float64)
    cores, (term, _) = random_cores(net), beside_of(rest, (6, 6))
    layer = layer_of(TensorLinear, net, cores, False, [term], bias=bias)
    before = layer.dense()
    for given in (*cores, bias, *term.numbers, *term.places):
        given.zero_()
    assert torch.equal(layer.dense(), before)
    assert torch.equal(layer.bias, torch.ones(6, dtype=torch.float64))


@pytest.mark.parametrize(
    "name", ["mpo", "cp", *thorough(*(n for n in registry.names() if n not in ("mpo", "cp")))]
)
def test_a_fresh_layer_starts_with_the_variance_of_nn_linear(name):
    torch.manual_seed(0)
    net = registry.find(name).sized(48, 64, 4)
    squares = [TensorLinear(net).dense().detach().square().mean() for _ in range(DRAWS)]
    found = torch.stack(squares)
    error = found.std() / DRAWS**0.5
    assert error < found.mean() / 10
    assert abs(found.mean() - 1 / (3 * 64)) < 4 * error


def test_a_fresh_bias_is_drawn_as_nn_linear_does():
    torch.manual_seed(0)
    bias = TensorLinear(bw.lowrank(5000, 16, 1), bias=True).bias
    assert bias.abs().max() <= 0.25
    assert_close(bias.var().item(), 0.5**2 / 12, rtol=0.1, atol=0)  # uniform in -1/4 .. 1/4


@both_forms
@pytest.mark.parametrize("zero", [False, True])
def test_the_padding_entry_gets_no_gradient(gauge, zero):
    net = bw.tucker((3, 4), (3, 2), 2)
    layer, W = make(TensorEmbedding, net, gauge, padding_idx=3, zero_padding=zero)
    expected = W.clone()
    if zero:
        expected[3] = 0
    ids = torch.tensor([[3, 1], [0, 3]])
    assert_close(layer(ids), expected[ids])
    layer(torch.tensor([3, 3])).sum().backward()
    assert not any(p.grad.any() for p in layer.parameters())
    layer(ids).sum().backward()
    alone = torch.autograd.grad(layer.dense()[[1, 0]].sum(), list(layer.parameters()))
    for parameter, gradient in zip(layer.parameters(), alone, strict=True):
        assert_close(parameter.grad, gradient)


@pytest.mark.parametrize("zero", [False, True])
def test_a_padding_row_stays_zero_only_where_it_was(zero):
    torch.manual_seed(0)
    source = nn.Embedding(12, 6, padding_idx=2, dtype=torch.float64)
    if not zero:
        nn.init.normal_(source.weight)
    stored = compact(full_rank(12, 6), [source.weight.detach(), torch.eye(6, dtype=torch.float64)])
    layer = host_of(source).build(source, [compacted(stored)])
    ids = torch.tensor([2, 5])
    assert layer.zero_padding is zero
    assert layer.padding_idx == 2
    assert_close(layer(ids), source(ids))
    assert bool(layer(ids)[0].any()) is not zero


def test_a_layer_prints_its_network():
    net = bw.lowrank(6, 4, 2)
    assert "ranks={'a': 2}, stored=20" in repr(TensorLinear(net))
    assert "ranks={'a': 2}, gauge-free, stored=16" in repr(make(TensorLinear, net, gauge=True)[0])
