"""The forward of a layer: right for every number of rows, as cheap as its plan, keeping little."""

from math import prod

import pytest
import torch
from torch.testing import assert_close
from torch.utils._python_dispatch import TorchDispatchMode

import bondwise as bw
from bondwise.errors import ShapeError
from nets import BESIDE, beside_of, kept_bytes, layer_of, thorough

SIZES = (0, 1, 3, 40, 300)
NETS = [
    bw.mpo((8, 6), (6, 8), 4),
    bw.mpo((4, 3, 4), (3, 4, 4), 3),
    bw.btt((4, 12), (3, 16), 2),
    bw.cp((8, 6), (6, 8), 5),
    bw.tucker((8, 6), (6, 8), 3),
    bw.lowrank(48, 48, 12),
    bw.ring((8, 6), (6, 8), 2),
    bw.tree((4, 3, 4), (3, 4, 4), 2),
]
FEW = (NETS[0], NETS[2], NETS[5])
every_net = pytest.mark.parametrize(
    "net", [*FEW, *thorough(*(net for net in NETS if net not in FEW))], ids=str
)
both_forms = pytest.mark.parametrize("gauge", [False, True], ids=["plain", "gauge"])
every_rest = pytest.mark.parametrize("rest", [None, *BESIDE])


def made(net, gauge=False, rest=None):
    plain = bw.TensorLinear(net, bias=True)
    beside = [beside_of(rest, net.shape)[0]] if rest else []
    cores = [core.detach() for core in plain.cores()]
    return layer_of(bw.TensorLinear, net, cores, gauge, beside, bias=plain.bias).float()


def check(layer, x):
    W = layer.dense()
    assert_close(layer(x), x @ W.T + layer.bias, atol=1e-4, rtol=1e-4)


@both_forms
@every_net
@every_rest
def test_every_number_of_rows_with_and_without_gradients(net, gauge, rest):
    layer = made(net, gauge, rest)
    for rows in SIZES:
        x = torch.randn(rows, net.shape[1])
        check(layer, x)
        with torch.no_grad():
            check(layer, x)
        with torch.inference_mode():
            check(layer, x)


@both_forms
@every_net
def test_gradients_are_those_of_dense_for_every_number_of_rows(net, gauge):
    layer = made(net, gauge)
    for rows in SIZES:
        x = torch.randn(rows, net.shape[1], requires_grad=True)
        towards = torch.randn(rows, net.shape[0])
        leaves = [x, *layer.parameters()]
        wanted = torch.autograd.grad(x @ layer.dense().T + layer.bias, leaves, towards)
        found = torch.autograd.grad(layer(x), leaves, towards)
        assert_close(found, wanted, atol=1e-3, rtol=1e-3)  # sums of up to 300 rows in float32


def test_a_weight_in_place_is_seen_at_once():
    """Also where nothing that torch counts says so: outputs depend on the numbers alone."""
    layer, x = made(NETS[0], gauge=True), torch.randn(3, 48)
    with torch.no_grad():
        layer(x)
        layer.core_1.data.mul_(3)
        check(layer, x)
        with torch.autocast("cpu", torch.bfloat16):
            assert layer(x).dtype == torch.bfloat16
        check(layer, x)


@both_forms
@every_net
def test_a_wrong_width_names_both(net, gauge):
    layer = made(net, gauge)
    for shape in ((3, 47), (3, 49), (49,), (0, 5)):
        with pytest.raises(ShapeError, match=rf"{shape[-1]}.*48"):
            layer(torch.ones(shape))


class Multiplications(TorchDispatchMode):
    """Counts what torch is asked to multiply."""

    count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out, name = func(*args, **(kwargs or {})), func.overloadpacket.__name__
        if name in ("mm", "bmm", "addmm"):
            self.count += out.numel() * args[name == "addmm"].shape[-1]
        elif name.startswith("mul"):
            self.count += out.numel()
        return out


@every_rest
@both_forms
@every_net
def test_macs_are_those_that_run(net, gauge, rest):
    layer = made(net, gauge, rest)
    for rows in (1, 7, 100):
        x = torch.randn(rows, net.shape[1])
        with torch.no_grad(), Multiplications() as found:
            layer(x)
        assert layer.macs(rows) == found.count


def test_low_rank_runs_as_it_is_stored():
    layer = made(bw.lowrank(1024, 1024, 500), gauge=True)  # made whole: a third more products
    x = torch.randn(10, 1024)
    with torch.no_grad():
        check(layer, x)
    assert layer.macs(10) == 10 * 500 * (1024 + 1024 - 500)


@both_forms
@every_net
def test_training_keeps_no_more_than_dense_does(net, gauge):
    """With what it holds, at most the bytes of the dense weight; or its own once more."""
    layer = made(net, gauge)
    own = sum(4 * p.numel() for p in layer.parameters())
    room = max(own, 4 * prod(net.shape) - own)
    for rows in (64, 1000):
        x = torch.randn(rows, net.shape[1], requires_grad=True)
        kept = kept_bytes(lambda x=x: layer(x), x, *layer.parameters())
        assert kept <= room + 8 * sum(net.shape), (rows, kept)
