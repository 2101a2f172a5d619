"""Convolutions as layers of terms: what torch's own give, in every way that those move."""

import copy
import json
import re

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, prune
from torch.testing import assert_close

import bondwise as bw
from bondwise.errors import FitError, SelectionError, ShapeError
from bondwise.gauge.compact import compact
from bondwise.layers.entries import entries
from bondwise.layers.hosts.registry import built, densified, find, own_way
from bondwise.layers.networks import compacted
from bondwise.layers.specs import from_spec
from bondwise.network.groups import grouped_network
from nets import thorough

KINDS = [(axes, transposed) for axes in (1, 2, 3) for transposed in (False, True)]
MODES = ("zeros", "reflect", "replicate", "circular")


def module_of(axes, transposed=False, inp=4, out=6, kernel=(3, 2, 3), **options):
    """torch's convolution in float64."""
    kind = getattr(nn, f"Conv{'Transpose' * transposed}{axes}d")
    return kind(inp, out, kernel[:axes], **options).double()


def layer_of(conv, net=None, metric=None):
    return getattr(bw, f"Tensor{type(conv).__name__}").from_conv(conv, net, metric)


def inputs(conv, *batch):
    return torch.randn(*batch, conv.in_channels, *(7, 6, 5)[: len(conv.kernel_size)]).double()


@torch.no_grad()
def same(layer, conv, *batches):
    """To 1e-10 of the largest output; ours lie in memory as torch's."""
    for batch in batches or ((2,),):
        x = inputs(conv, *batch)
        y, right = layer(x), conv(x)
        assert y.shape == right.shape
        assert y.stride() == right.stride() or not y.numel()
        assert_close(y, right, rtol=0, atol=1e-10 * max([1.0, *right.abs().flatten().tolist()]))


PLAIN = [
    {"stride": 2}, {"padding": 1}, {"dilation": 2, "padding": 2}, {"bias": False},
    {"groups": 2}, {"groups": 2, "padding": 1, "stride": 2, "bias": False},
]  # fmt: skip
FORWARD = [
    {"padding": "same"}, {"padding": "same", "dilation": 2, "groups": 2}, {"padding": "valid"},
    {"inp": 4, "out": 8, "groups": 4, "padding": 1},
    *({"padding": 1, "padding_mode": mode, "stride": 2} for mode in MODES[1:]),
    *({"padding": "same", "padding_mode": mode, "dilation": 2} for mode in MODES[1:]),
    {"kernel": (1, 1, 1), "stride": 2, "padding": 1},
    {"kernel": (1, 1, 1), "padding": 1, "padding_mode": "circular", "groups": 2},
]  # fmt: skip
BACKWARD = [
    {"stride": 3, "output_padding": 2}, {"dilation": 2, "output_padding": 1, "groups": 2},
    {"inp": 6, "out": 6, "groups": 6, "stride": 2, "padding": 1, "output_padding": 1},
]  # fmt: skip


@pytest.mark.filterwarnings("ignore:Using padding='same'")
@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("axes", [1, 2, *thorough(3)])
def test_at_full_rank_it_is_torch_s_own(axes, transposed):
    """Tucker-2 of full rank for every group; in one dimension and more, however it moves."""
    for options in PLAIN + (BACKWARD if transposed else FORWARD):
        conv = module_of(axes, transposed, **options)
        layer = layer_of(conv)
        same(layer, conv, (2,), (0,), ())
        assert_close(layer.weight + 0, conv.weight, rtol=0, atol=1e-12)
        assert layer.weight.shape == conv.weight.shape
        assert layer.options.items() <= vars(conv).items()
        twin = densified(layer)
        assert repr(twin) == repr(conv)
        assert_close(twin.weight, conv.weight, rtol=0, atol=1e-12)


def test_all_sizes_of_a_kernel_move_apart():
    """Every axis has its own stride, padding and dilation: no two are the same."""
    for transposed in (False, True):
        more = {"output_padding": (1, 0, 2)} if transposed else {"padding_mode": "replicate"}
        options = {"stride": (2, 1, 3), "padding": (0, 1, 2), "dilation": (1, 3, 2), **more}
        conv = module_of(3, transposed, groups=2, kernel=(3, 2, 2), **options)
        same(layer_of(conv), conv, (2,), ())


# of a group with 3 outputs and 2 inputs and a kernel of 3 x 2, all of full rank
EINSUMS = [
    bw.lowrank(3, (2, 3, 2), 3),
    bw.lowrank(3, (2, 6), 3),
    bw.parse("o a, a i y x -> (o) (i y x)", o=3, i=2, y=3, x=2, a=3),
    bw.parse("o y x a, a i -> (o) (i y x)", o=3, i=2, y=3, x=2, a=2),
    bw.parse("o x a, a i y -> (o) (i y x)", o=3, i=2, y=3, x=2, a=6),
    bw.tucker2(3, 2, (3, 2), (3, 2)),
    bw.tucker(3, (2, 3, 2), (3, 2, 3, 2)),
    bw.mpo((3,), (2, 3, 2), (6, 2)),
]


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("net", EINSUMS, ids=str)
def test_any_einsum_of_full_rank(net, groups):
    conv = module_of(2, inp=2 * groups, out=3 * groups, groups=groups, padding=1, stride=(1, 2))
    layer = layer_of(conv, net)
    same(layer, conv)
    assert layer.groups == groups
    assert str(layer.network) == str(grouped_network(net, groups))


def test_channels_last_goes_in_and_comes_out():
    conv = nn.Conv2d(8, 16, 3, padding=1).to(memory_format=torch.channels_last)
    for net in (bw.tucker2(16, 8, (3, 3), (8, 4)), bw.lowrank(16, (8, 3, 3), 4)):
        layer = bw.TensorConv2d.from_conv(conv, net)
        x = torch.randn(2, 8, 6, 6).to(memory_format=torch.channels_last)
        y = layer(x)
        assert conv(x).is_contiguous(memory_format=torch.channels_last)
        assert y.is_contiguous(memory_format=torch.channels_last)
        assert_close(y, layer(x.contiguous()), rtol=1e-4, atol=1e-5)
    turned = copy.deepcopy(layer).to(memory_format=torch.channels_last)
    assert_close(turned(x), y)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_numbers_and_autocast(dtype):
    conv = module_of(2, padding=1, groups=2).float()
    layer, x = layer_of(conv), inputs(conv, 2).float()
    right = conv(x)
    half = copy.deepcopy(layer).to(dtype)(x.to(dtype))
    with torch.autocast("cpu", dtype):
        mixed = layer(x)
    for y in (half, mixed):
        assert y.dtype == dtype
        # three products, each of rounded factors
        assert (y.float() - right).norm() <= 6 * torch.finfo(dtype).eps * right.norm()
    own = layer_of(conv.to(dtype))
    assert own.core_0.dtype == dtype
    assert (own(x.to(dtype)).float() - right).norm() <= 8 * torch.finfo(dtype).eps * right.norm()


@pytest.mark.parametrize(("axes", "transposed"), KINDS)
def test_what_it_is_comes_back_from_plain_json(axes, transposed):
    """Every kind without its gauge, an entry beside it, of two groups."""
    conv = module_of(axes, transposed, stride=2, padding=1, groups=2)
    whole = layer_of(conv)
    stored = compacted(compact(whole.network, whole.cores()))
    beside = entries(torch.tensor([3]), torch.ones(1).double(), whole.shape)
    layer = built(conv, [stored, beside])
    layer.size = (7, 6, 5)[:axes]
    assert layer.stored_numbers < whole.stored_numbers
    again = from_spec(json.loads(json.dumps(layer.spec())), dtype=torch.double)
    again.load_state_dict(layer.state_dict())
    assert repr(again) == repr(layer)
    assert again.macs(1) == layer.macs(1)
    twin = densified(again)
    same(layer, twin)
    assert torch.equal(again(inputs(conv, 2).zero_()), layer(inputs(conv, 2).zero_()))
    assert_close((twin.weight - conv.weight).sum(), torch.tensor(1.0).double())


def test_a_layer_for_training_starts_as_torch_s():
    for net, groups in [(bw.tucker2(256, 128, (3, 3), 64), 1), (bw.cp(256, (128, 3, 3), 200), 1),
                        (grouped_network(bw.lowrank(128, (64, 3, 3), 30), 2), 2)]:  # fmt: skip
        layer = bw.TensorConv2d(net, bias=True, padding=1)
        assert layer.groups == groups
        like = nn.Conv2d(layer.in_channels, layer.out_channels, 3, groups=groups)
        ratio = layer.dense().std() / like.weight.std()
        assert 0.7 < ratio < 1.4  # as many random numbers as the cores have
        assert 0.7 < layer.bias.std() / like.bias.std() < 1.4
        layer(torch.randn(1, layer.in_channels, 4, 4)).square().mean().backward()
        assert all(p.grad.norm() > 0 for p in layer.parameters())


def test_a_weight_is_assigned_in_torch_s_shape():
    conv = module_of(2, groups=2)
    for transposed in (False, True):
        conv = module_of(2, transposed, groups=2)
        layer = layer_of(conv)
        layer.weight = conv.weight.detach() * 2
        assert_close(layer.weight + 0, conv.weight * 2)
        conv.weight.data *= 2
        same(layer, conv)
        with pytest.raises(ShapeError, match=r"A weight of \(3, 3\).*came; write a tensor of"):
            layer.weight = torch.zeros(3, 3)


def test_gradients_of_inputs_and_parameters():
    conv = module_of(2, inp=4, out=4, kernel=(2, 2), groups=2, padding=1, stride=2)
    layer = layer_of(conv, bw.tucker2(2, 2, (2, 2), (1, 2)))
    params = dict(layer.named_parameters())
    x = torch.randn(1, 4, 3, 3, dtype=torch.float64, requires_grad=True)

    def run(x, *own):
        return torch.func.functional_call(layer, dict(zip(params, own, strict=True)), (x,))

    assert torch.autograd.gradcheck(run, (x, *params.values()))
    twin = densified(layer)
    (ours,) = torch.autograd.grad(layer(x).square().sum(), x)
    assert_close(ours, torch.autograd.grad(twin(x).square().sum(), x)[0])


def test_each_group_is_fitted_in_the_metric_of_its_own_patches():
    """The best for a group's inputs: better there than the best for all, worse elsewhere."""
    conv = module_of(2, inp=8, out=12, kernel=(3, 3), groups=2, bias=False)
    x = torch.randn(64, 8, 7, 6).double() * torch.rand(8, 1, 1).double().mul(5).exp()
    patches = nn.functional.unfold(x, 3).reshape(64, 2, 36, -1)
    metrics = [rows.transpose(0, 1).reshape(36, -1) for rows in patches.unbind(1)]
    moments = [rows @ rows.T for rows in metrics]
    net = bw.lowrank(6, (4, 3, 3), 3)
    off = {}
    for name, metric in (("own", moments), ("none", None), ("swapped", moments[::-1])):
        layer = layer_of(conv, net, metric)
        off[name] = float(((layer(x) - conv(x)).norm() / conv(x).norm()).detach())
    assert off["own"] < 0.9 * min(off["none"], off["swapped"])
    # Eckart and Young (1936), of what comes out
    whole = [conv.weight[6 * g : 6 * g + 6].flatten(1) @ rows for g, rows in enumerate(metrics)]
    tails = [torch.linalg.svdvals(y)[3:].square().sum() for y in whole]
    right = float((sum(tails).sqrt() / conv(x).norm()).detach())
    assert_close(off["own"], right, rtol=1e-6, atol=0)


def test_size_decides_the_order_and_counts_multiplications():
    layer = bw.TensorConv1d(bw.tucker2(64, 64, 4, 48), stride=4)
    conv = nn.Conv1d(64, 64, 4, stride=4)
    assert layer.size is None
    found = {}
    for size in (4, 4096):
        layer.size = size
        assert layer.size == (size,)
        found[size] = layer.macs(1) / (64 * 64 * 4 * (size // 4))
        assert layer.macs(5) == 5 * layer.macs(1)
        conv.weight.data, conv.bias = layer.weight + 0, None
        x = torch.randn(1, 64, size)
        assert_close(layer(x), conv(x), rtol=1e-4, atol=1e-4)
    assert found[4096] < 1
    assert found[4096] != found[4]


class OwnForward(nn.Conv2d):
    def forward(self, x):
        return super().forward(nn.functional.pad(x, (1, 1, 1, 1)))


class OwnStep(nn.Conv2d):
    """It pads for itself, as convolutions of static padding do."""

    def _conv_forward(self, x, weight, bias):
        return super()._conv_forward(nn.functional.pad(x, (1, 1, 1, 1)), weight, bias)


class Renamed(nn.Conv2d):
    pass


def lazy(*_):
    return nn.LazyConv2d(6, 3)


LEFT = [
    (OwnForward, "an? OwnForward with a forward of its own"),
    (OwnStep, "an? OwnStep with a forward of its own"),
    (lazy, "a LazyConv2d that has met no input yet"),
    (lambda *a: parametrizations.weight_norm(nn.Conv2d(*a)), "remove_parametrizations first"),
    (lambda *a: parametrizations.spectral_norm(nn.Conv2d(*a)), "remove_parametrizations first"),
]


@pytest.mark.parametrize(("made", "why"), LEFT)
def test_what_computes_in_another_way_is_left_alone(made, why):
    conv = made(4, 6, 3)
    assert find(conv) is None
    assert re.search(why, own_way(conv))
    with pytest.raises(SelectionError, match=why):
        bw.TensorConv2d.from_conv(conv)


def pruned(conv):
    prune.l1_unstructured(conv, "weight", 0.3)
    return conv


@pytest.mark.parametrize("norm", [nn.utils.weight_norm, nn.utils.spectral_norm, pruned])
@pytest.mark.filterwarnings("ignore:.*deprecated")
def test_old_norms_and_pruning_are_named(norm):
    """Their weight is that of the last call: another one than the next call has."""
    conv, says = norm(nn.Conv2d(4, 6, 3)), "old norms or pruning make: remove those first"
    with pytest.raises(SelectionError, match=says):
        bw.TensorConv2d.from_conv(conv)
    with pytest.raises(SelectionError, match=says):
        bw.plan_model(nn.Sequential(conv), keep=0.5, targets="convolution")


def test_a_subclass_that_computes_as_its_parent_is_taken():
    conv = Renamed(4, 6, 3, padding=1).double()
    same(bw.TensorConv2d.from_conv(conv), conv)


UNFIT = [
    ({}, bw.lowrank(6, 36, 2), ShapeError, r"write columns such as \(.., 3, 3\)"),
    ({}, bw.lowrank(6, (3, 3, 4), 2), ShapeError, "its last column modes are the kernel's"),
    ({}, bw.tucker2(7, 4, (3, 3), 2), ShapeError, r"one such as tucker2\(6, 4, \(3, 3\), 2\)"),
    ({"groups": 2}, bw.tucker2(6, 4, (3, 3), 2), ShapeError, "of 1 groups came for .* of 2"),
    ({"dtype": torch.complex64}, None, FitError, "A weight of torch.complex64 came"),
    ({"device": "meta"}, None, SelectionError, "on meta came, without numbers"),
]


@pytest.mark.parametrize(("options", "wrong", "kind", "says"), UNFIT, ids=str)
def test_what_cannot_be_fitted_is_said_in_one_sentence(options, wrong, kind, says):
    with pytest.raises(kind, match=says) as error:
        bw.TensorConv2d.from_conv(nn.Conv2d(4, 6, 3, **options), wrong)
    assert "\n" not in str(error.value)


def test_another_kind_or_numbers_that_are_none_are_refused():
    conv = nn.Conv2d(4, 6, 3)
    for other in (nn.Conv1d(4, 6, 3), nn.ConvTranspose2d(4, 6, 3), nn.Linear(4, 6)):
        with pytest.raises(SelectionError, match=f"A {type(other).__name__} came.*write a Conv2d"):
            bw.TensorConv2d.from_conv(other)
    conv.weight.data[1, 2] = float("nan")
    with pytest.raises(FitError, match="NaN or infinity"):
        bw.TensorConv2d.from_conv(conv)


OPTIONS = [
    ({"stride": 0}, "stride=0 came"), ({"stride": (1, 2, 3)}, r"stride=\(1, 2, 3\) came"),
    ({"dilation": 1.5}, "dilation=1.5 came"), ({"padding": -1}, "padding=-1 came"),
    ({"padding": "full"}, "padding='full' came; write numbers, same or valid"),
    ({"padding": "same", "stride": 2}, "padding='same' came with a stride"),
    ({"padding_mode": "mirror"}, "padding_mode='mirror' came; write zeros, reflect"),
    ({"output_padding": 1}, "output_padding=.* of a transposed convolution alone"),
    ({"strides": 2}, "strides=2 came; write kernel_size, stride"), ({"size": 0}, "size=0 came"),
    ({"bias": torch.zeros(5)}, r"A bias of shape \(5,\) came"),
]  # fmt: skip


@pytest.mark.parametrize(("options", "says"), OPTIONS, ids=str)
def test_arguments_that_no_convolution_has_are_named(options, says):
    with pytest.raises(ShapeError, match=says):
        bw.TensorConv2d(bw.tucker2(6, 4, (3, 3), 2), **options)


def test_inputs_that_do_not_fit_are_named():
    layer = bw.TensorConv2d(bw.tucker2(6, 4, (3, 3), 2), dilation=2, padding=1)
    assert layer(torch.zeros(1, 4, 3, 3)).shape == (1, 6, 1, 1)
    for sizes in [(2, 3), (3, 2), (0, 5)]:
        with pytest.raises(ShapeError, match=f"An input of {sizes[0]} x {sizes[1]} came for a ker"):
            layer(torch.zeros(1, 4, *sizes))
    with pytest.raises(ShapeError, match=r"An input of shape \(1, 5, 8, 8\) came; write \(samples"):
        layer(torch.zeros(1, 5, 8, 8))
    with pytest.raises(ShapeError, match="whose columns are no inputs and a kernel of 2 sizes"):
        bw.TensorConv2d(bw.lowrank(6, 36, 2))
    assert bw.TensorConv2d(bw.lowrank(6, (4, 9), 2), kernel_size=3).in_channels == 4
