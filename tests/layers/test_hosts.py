"""Every host: its matrix is what its module applies; terms take its place and leave it."""

import sys
from math import prod
from textwrap import dedent

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.testing import assert_close
from transformers.pytorch_utils import Conv1D

import bondwise as bw
from bondwise.errors import SelectionError, ShapeError
from bondwise.layers import entries, hosts
from bondwise.layers.hosts import registry
from bondwise.layers.hosts.registry import find, host_of, own_way, rows_of


def linear():
    return nn.Linear(6, 4).double()


def conv1d():
    made = Conv1D(4, 6).double()
    nn.init.normal_(made.bias)
    return made


def embedding():
    return nn.Embedding(9, 4, padding_idx=2).double()


def convolution(axes, transposed=False):
    """Two groups; three outputs and two inputs of each."""
    kind = getattr(nn, f"Conv{'Transpose' * transposed}{axes}d")
    return lambda: kind(4, 6, (3, 2, 2)[:axes], stride=2, padding=1, groups=2).double()


CONVOLUTIONS = {
    f"{'transposed ' * transposed}convolution {axes}d": convolution(axes, transposed)
    for transposed in (False, True)
    for axes in (1, 2, 3)
}
MODULES = {"linear": linear, "conv1d": conv1d, "embedding": embedding} | CONVOLUTIONS
every_host = pytest.mark.parametrize("name", MODULES)


def called(module):
    if isinstance(module, nn.Embedding):
        return torch.tensor([[1, 2], [8, 0]])
    if hasattr(module, "kernel_size"):
        return torch.randn(2, 4, *(5, 4, 3)[: len(module.kernel_size)], dtype=torch.float64)
    return torch.randn(3, 5, 6, dtype=torch.float64)


def test_every_host_is_tried_here():
    assert set(registry.hosts()) == set(MODULES)


@every_host
def test_the_matrix_is_what_the_module_applies_to_its_inputs(name):
    module = MODULES[name]()
    host, x = find(module), called(module)
    assert host.name == name
    W = host.matrix(module)
    rows = host.inputs(module, (x,), {})
    assert not W.requires_grad
    if rows is None:
        assert_close(module(x), F.embedding(x, W))
    elif name in CONVOLUTIONS:
        assert rows is not x  # its patches are other ones than another module's
        padding = 1 if module.transposed else 0  # what it pads with is part of its patches
        moved = {"stride": 2, "padding": padding, "groups": 2}
        blocks = W.reshape(2, 3, 2, *module.kernel_size)
        blocks = blocks.transpose(1, 2) if module.transposed else blocks
        run = getattr(F, f"conv{'_transpose' * module.transposed}{len(module.kernel_size)}d")
        assert_close(module(x), run(rows, blocks.flatten(0, 1), module.bias, **moved))
    else:
        assert_close(module(x), F.linear(rows, W, module.bias))
        assert rows_of(module)((), {"given": x}) is x
    groups, taps = getattr(module, "groups", 1), getattr(module, "kernel_size", ())
    (out,), (inp, *kernel) = host.modes(module)
    assert (out * groups, tuple(kernel)) == (W.shape[0], taps)
    assert inp * prod(kernel) == W.shape[1]


@every_host
@pytest.mark.parametrize("frozen", [False, True])
def test_terms_take_its_place_and_leave_it(name, frozen):
    module = MODULES[name]().requires_grad_(not frozen)
    host, x = find(module), called(module)
    layer = host.build(module, [entries.dense(host.matrix(module))])
    assert_close(layer(x), module(x))
    assert isinstance(layer, host.layer)
    assert layer.host == name
    again = host.dense(layer)
    assert type(again) is type(module)
    assert_close(again(x), module(x))
    ours = {p.untyped_storage().data_ptr() for p in layer.parameters()}
    for other in (module, again):
        assert not ours & {p.untyped_storage().data_ptr() for p in other.parameters()}
    bias = getattr(layer, "bias", None)
    assert bias is None or bias.requires_grad is not frozen


class Renamed(nn.Linear):
    """A subclass that computes as its parent."""


class Scaled(nn.Linear):
    def forward(self, x):
        return 2 * super().forward(x)


class Gated(nn.Linear):
    def __init__(self, *sizes):
        super().__init__(*sizes)
        self.gate = nn.Parameter(torch.ones(1))


def test_a_subclass_that_computes_in_its_own_way_has_no_host():
    assert find(Renamed(3, 2)).name == "linear"
    assert find(Scaled(3, 2)) is find(Gated(3, 2)) is find(nn.Bilinear(1, 1, 1)) is None
    assert own_way(Scaled(3, 2)) == "a Scaled with a forward of its own"
    assert own_way(Gated(3, 2)) == "a Gated, which is more than a Linear"
    changed = nn.Linear(3, 2)
    changed.forward = lambda x: x
    assert find(changed) is None
    with pytest.raises(SelectionError, match=r"A Scaled came.*write a .*Linear"):
        host_of(Scaled(3, 2))
    with pytest.raises(SelectionError, match="A int came"):
        host_of(3)


HOST = '''
    """A linear layer without bias that keeps its weight as in x out."""

    from torch import nn

    from bondwise.layers.hosts.registry import Host, first
    from bondwise.layers.linear import TensorLinear
    from one_file import Turned


    def dense(layer):
        made = Turned(layer.in_features, layer.out_features)
        made.weight = nn.Parameter(layer.dense().detach().T.contiguous())
        return made


    HOST = Host(
        "turned", "linear", "one_file.Turned", TensorLinear,
        lambda module: module.weight.detach().T,
        lambda module: ((module.weight.shape[1],), (module.weight.shape[0],)),
        first,
        lambda module, terms: TensorLinear.of(terms, host="turned"),
        dense,
        lambda module, matrix: matrix.T,
    )
'''
MODULE = """
    import torch
    from torch import nn


    class Turned(nn.Module):
        def __init__(self, inp, out):
            super().__init__()
            self.weight = nn.Parameter(torch.randn(inp, out))

        def forward(self, x):
            return x @ self.weight
"""


def test_a_host_is_one_file(tmp_path, monkeypatch):
    """Found by looking into the folder; selection, fitting, saving, loading and merging follow."""
    (tmp_path / "hosts").mkdir()
    (tmp_path / "hosts" / "turned.py").write_text(dedent(HOST), encoding="utf-8")
    (tmp_path / "one_file.py").write_text(dedent(MODULE), encoding="utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(hosts, "__path__", [*hosts.__path__, str(tmp_path / "hosts")])
    registry.hosts.cache_clear()
    try:
        from one_file import Turned

        torch.manual_seed(0)
        model = nn.Sequential(Turned(24, 16), nn.ReLU(), Turned(16, 24))
        x = torch.randn(200, 24)
        result = bw.tensorize(model, keep=0.9, data=x, prefer="size")
        assert [row.name for row in result.table if row.changes] == ["0", "2"]
        small = result.model
        off = (small(x) - model(x)).norm() / model(x).norm()
        assert off < 0.5
        again = bw.load(bw.save(small, tmp_path / "small"), model=model)
        assert torch.equal(again(x), small(x))
        merged = bw.merge(small)
        assert type(merged[0]) is Turned
        assert_close(merged(x), small(x), rtol=1e-4, atol=1e-4)
    finally:
        registry.hosts.cache_clear()
        sys.modules.pop("one_file", None)
        sys.modules.pop("bondwise.layers.hosts.turned", None)


@pytest.mark.parametrize("data", [None, torch.randn(300, 24)])
def test_hooks_go_along_in_and_out(data):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(24, 20), nn.GELU(), nn.Linear(20, 24))
    model[0].register_forward_pre_hook(lambda _, args: (3 * args[0],))
    model[2].register_forward_hook(lambda _, _args, _named, y: y + 1, with_kwargs=True)
    small = bw.tensorize(model, keep=0.95, data=data, format="lowrank", prefer="size").model
    x = torch.randn(50, 24)
    bare = small[2].dense() @ F.gelu(small[0].dense() @ (3 * x.T) + small[0].bias[:, None])
    assert_close(small(x), bare.T + small[2].bias + 1, rtol=1e-4, atol=1e-4)
    assert_close(bw.merge(small)(x), small(x), rtol=1e-4, atol=1e-4)
    for module in (*small.modules(), *bw.merge(small).modules()):
        assert len(module._forward_pre_hooks) + len(module._forward_hooks) <= 1


class Doubled(bw.TensorLinear):
    def forward(self, x):
        return 2 * super().forward(x)


def test_a_layer_with_a_forward_of_its_own_is_not_merged():
    changed = bw.TensorLinear(bw.lowrank(6, 4, 2))
    changed.forward = lambda x: x
    for layer in (Doubled(bw.lowrank(6, 4, 2)), changed):
        with pytest.raises(SelectionError, match=r"0 is a \w+ with a forward of its own"):
            bw.merge(nn.Sequential(layer))


def test_numbers_that_are_not_finite_are_not_merged():
    layer = bw.TensorLinear(bw.lowrank(6, 4, 2))
    with torch.no_grad():
        layer.core_0[0] = float("nan")
    with pytest.raises(SelectionError, match="0 has numbers that are not finite"):
        bw.merge(nn.Sequential(layer))


def test_what_is_no_term_or_no_bias_is_named():
    net = bw.lowrank(6, 4, 2)
    for value in (net, torch.ones(6, 4), bw.TensorLinear(net)):
        with pytest.raises(ShapeError, match=r"A \w+ came as a term; write one such as"):
            bw.TensorLinear(net).add(value)
    with pytest.raises(SelectionError, match="on meta came"):
        bw.TensorLinear.from_linear(nn.Linear(4, 6, device="meta"), net)
    assert entries.columns([1], [[1.0]] * 6, (6, 4)).dense()[:, 1].sum() == 6
