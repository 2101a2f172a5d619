"""Plans of a layer: one for each number of rows, weights kept ready and never stale, freezing."""

import copy
import gc
import io

import pytest
import torch
from torch.testing import assert_close
from torch.utils._python_dispatch import TorchDispatchMode

import bondwise as bw
from bondwise.errors import PlanError, ShapeError
from bondwise.gauge.compact import compact, gauge_forms
from bondwise.layers import gathered
from bondwise.layers.storage import share
from nets import layer_of, thorough

SIZES = (0, 1, 3, 40, 300)


def made(net, gauge=False):
    plain = bw.TensorLinear(net, bias=True)
    return layer_of(bw.TensorLinear, net, plain.cores(), gauge, bias=plain.bias).eval()


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


def wanted(layer, x):
    return x @ layer.dense().T + layer.bias


def check(layer, x):
    assert_close(layer(x), wanted(layer, x), atol=1e-4, rtol=1e-4)


@both_forms
@every_net
def test_every_number_of_rows_with_and_without_gradients(net, gauge):
    layer = made(net, gauge)
    for rows in SIZES:
        x = torch.randn(rows, net.shape[1])
        check(layer, x)
        with torch.no_grad():
            for _ in range(2):  # made, then kept
                check(layer, x)
        with torch.inference_mode():
            check(layer, x)


def step(layer):
    layer.core_0.mul_(2)


def optimise(layer):
    layer.core_0.grad = torch.ones_like(layer.core_0)
    torch.optim.SGD([layer.core_0], lr=0.5).step()


def load(layer):
    layer.load_state_dict({k: 2 * v if "core" in k else v for k, v in layer.state_dict().items()})


def new_data(layer):
    layer.core_1.data = 3 * layer.core_1.data


def in_place(layer):
    layer.core_1.data.mul_(3)
    layer.refresh()


def double(layer):
    layer.double().float().core_0.data.mul_(1.0)


@pytest.mark.parametrize("change", [step, optimise, load, new_data, in_place, double])
@both_forms
@pytest.mark.parametrize("net", [NETS[0], *thorough(*NETS[1:3])], ids=str)
def test_what_is_kept_ready_follows_the_parameters(net, gauge, change):
    layer, x = made(net, gauge), torch.randn(3, net.shape[1])
    with torch.no_grad():
        layer(x)
        change(layer)
        check(layer, x)


def test_autocast_leaves_no_rounded_weights_behind():
    layer, x = made(NETS[0], gauge=True), torch.randn(300, 48)
    with torch.no_grad():
        with torch.autocast("cpu", torch.bfloat16):
            assert layer(x).dtype == torch.bfloat16
        check(layer, x)


def ready_bytes(layer):
    return layer._kept_weights.bytes(layer.matrices())


def test_ready_weights_stay_within_their_room_and_are_counted():
    layer = made(bw.mpo((8, 6), (6, 8), 30))
    x = torch.randn(200, 48)
    before = layer.resident_bytes()
    with torch.no_grad():
        layer(x)
    assert 0 < ready_bytes(layer) <= layer.cache_bytes == 4 * 48 * 48
    assert layer.resident_bytes() == before + ready_bytes(layer)
    layer.cache_bytes = 0
    layer.refresh()
    with torch.no_grad():
        check(layer, x)
    assert ready_bytes(layer) == 0


def test_nothing_is_kept_in_training_in_copies_or_on_disk():
    layer = made(bw.mpo((8, 6), (6, 8), 30))
    with torch.no_grad():
        layer(torch.randn(200, 48))
    assert ready_bytes(layer) > 0
    assert not any("ready" in name or "frozen" in name for name in layer.state_dict())
    assert ready_bytes(copy.deepcopy(layer)) == 0
    file = io.BytesIO()
    torch.save(layer, file)
    file.seek(0)
    assert ready_bytes(torch.load(file, weights_only=False)) == 0
    assert ready_bytes(layer.train()) == 0


@both_forms
@every_net
def test_a_frozen_layer_runs_one_plan(net, gauge):
    layer = made(net, gauge)
    exact = {rows: wanted(layer, torch.ones(rows, net.shape[1])) for rows in (1, 5)}
    names = set(layer.state_dict())
    assert layer.freeze(batch=4) is layer
    assert set(layer.state_dict()) == names
    with torch.no_grad():
        layer.core_0.zero_()  # what is frozen stays
        for rows, y in exact.items():
            assert_close(layer(torch.ones(rows, net.shape[1])), y, atol=1e-4, rtol=1e-4)
    x = torch.ones(5, net.shape[1])
    layer.freeze(None)
    check(layer, x)
    assert not any("frozen" in name for name, _ in layer.named_buffers())
    y = layer.freeze(4).train()(x)  # training thaws
    assert torch.autograd.grad(y.sum(), layer.core_0)[0].any()


@pytest.mark.parametrize("batch", [0, -1, True])
def test_a_batch_that_is_none_cannot_be_frozen(batch):
    with pytest.raises(PlanError, match="came"):
        made(NETS[0]).freeze(batch)


@both_forms
@every_net
def test_a_wrong_width_names_both(net, gauge):
    for layer in (made(net, gauge), made(net, gauge).freeze(1)):
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


@pytest.mark.parametrize("room", [0, 2**20])
@both_forms
@every_net
def test_macs_are_those_of_the_plan_that_runs(net, gauge, room):
    layer = made(net, gauge)
    layer.cache_bytes = room
    for rows in (1, 7, 100):
        x = torch.randn(rows, net.shape[1])
        with torch.no_grad():
            layer(x)  # what is kept ready is made
            with Multiplications() as found:
                layer(x)
        assert layer.macs(rows) == found.count


def test_low_rank_runs_as_it_is_stored_where_no_plan_is_faster():
    layer = made(bw.lowrank(1024, 1024, 500), gauge=True)  # made whole: a third more products
    x = torch.randn(10, 1024)
    with torch.no_grad():
        check(layer, x)
    assert layer.macs(10) == 10 * 500 * (1024 + 1024 - 500)
    assert ready_bytes(layer) == 0


def shared_layers(count=3):
    net = bw.lowrank(24, 32, 8)
    form = next(f for f in gauge_forms(net) if f.pinned == (None, "a"))
    layers = []
    for _ in range(count):
        own = compact(net, [torch.randn(24, 8), torch.randn(8, 32)], form=form)
        layers.append(bw.TensorLinear(net, own.free, form=own.form, pivots=own.pivots).eval())
    share(layers)
    return layers


def test_layers_with_a_common_core_multiply_by_it_once(monkeypatch):
    layers, calls, inner = shared_layers(), [], gathered.inner
    monkeypatch.setattr(gathered, "inner", lambda *args: calls.append(1) or inner(*args))
    x, z = torch.randn(2, 5, 32)
    with torch.no_grad():
        for value in (x, z, x):
            for layer in layers:
                assert_close(layer(value), value @ layer.dense().T, atol=1e-5, rtol=1e-5)
    assert len(calls) == 3
    assert layers[0].once._value is None  # taken by all: nothing is left in memory


def test_nothing_stale_is_shared():
    layers, x = shared_layers(2), torch.randn(5, 32) / 10
    q, k = layers
    with torch.no_grad():
        q(x)
        q.core_1.mul_(2)
        assert_close(k(x), x @ k.dense().T, atol=1e-5, rtol=1e-5)
        q(x)
        x.mul_(3)
        assert_close(k(x), x @ k.dense().T, atol=1e-5, rtol=1e-5)
        q(x)
        assert_close(q(x), x @ q.dense().T, atol=1e-5, rtol=1e-5)
    twins = copy.deepcopy(torch.nn.ModuleList(layers))
    assert twins[0].once is twins[1].once is not q.once
    both = torch.randn(5, 32, requires_grad=True)
    (q(both).sum() + k(both).sum()).backward()
    assert_close(
        both.grad, (q.dense().sum(0) + k.dense().sum(0)).expand(5, 32), atol=1e-4, rtol=1e-4
    )


def test_a_layer_does_not_hold_on_to_its_input():
    layers, x = shared_layers(2), torch.randn(5, 32)
    with torch.no_grad():
        layers[0](x)
    once = layers[0].once
    assert once._input() is x
    del x
    gc.collect()
    assert once._input() is None
