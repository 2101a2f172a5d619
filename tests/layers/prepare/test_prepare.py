"""Prepared layers compute as built, keep what they are told to, and forget it when they must."""

import copy
import io
import pickle
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from torch import nn
from torch.func import functional_call, vmap
from torch.nn.utils import parametrize, prune

import bondwise as bw
from bondwise.errors import BudgetError, DataError, SelectionError
from bondwise.layers.entries import columns
from bondwise.layers.networks import compacted, network
from bondwise.layers.prepare import contest
from nets import networks, random_cores

CLOSE = {torch.float64: 1e-10, torch.float32: 1e-4, torch.bfloat16: 5e-2}


pytestmark = pytest.mark.usefixtures("briefly")


@pytest.fixture
def only(monkeypatch):
    """Let one way win, whatever it takes: those whose name has some words."""

    def chosen(words: str) -> None:
        took = contest.Entrant.took.fget
        assert took is not None
        monkeypatch.setattr(
            contest.Entrant,
            "took",
            property(lambda own: took(own) * (1e-6 if words in own.name else 1)),
        )

    return chosen


def linear(net=None, dtype=torch.float32, bias=True) -> bw.TensorLinear:
    net = bw.lowrank(24, 16, 3) if net is None else net
    return bw.TensorLinear(net, random_cores(net), bias, dtype=dtype).eval()


def off(y, right) -> float:
    scale = right.double().norm()
    return float((y.double() - right.double()).norm() / scale) if scale else 0.0


@pytest.mark.parametrize("dtype", CLOSE, ids=str)
@pytest.mark.parametrize("net", networks(), ids=str)
def test_outputs_stay(net, dtype):
    layer = linear(net, dtype)
    made = bw.prepare(layer, rows=(1, 40))
    assert [choice.rows for choice in made] == [1, 40]
    weight = np.asarray(bw.dense(net, random_cores(net)))
    for rows in (0, 1, 3, 100):
        x = torch.randn(rows, net.shape[1]).to(dtype)
        with torch.no_grad():
            right = x.double() @ torch.from_numpy(weight).mT + layer.bias.double()
            assert off(layer(x), right) < CLOSE[dtype]
            assert layer(x[None]).shape == (1, rows, net.shape[0])


@pytest.mark.parametrize("words", ["dense", "transposed", "packed", "x ", "rows", "built"])
def test_each_kind_of_way_is_right(only, words):
    only(words)
    net = bw.mpo((4, 6), (4, 4), 3)
    layer = linear(net)
    bw.prepare(layer, rows=(1, 80))
    x = torch.randn(2, 50, 16)
    with torch.no_grad():
        y = layer(x)
        bw.unprepare(layer)
        assert off(y, layer(x)) < 1e-5


@pytest.mark.parametrize("words", ["cast to float32", "in float32"])
def test_short_numbers_in_float32(only, words):
    only(words)
    layer = linear(dtype=torch.bfloat16)
    made = bw.prepare(layer, rows=(8,), room=10**6)
    assert words in made.choices[0].way
    x = torch.randn(8, 16).bfloat16()
    with torch.no_grad():
        y = layer(x)
        assert y.dtype == torch.bfloat16
        bw.unprepare(layer)
        assert off(y, layer(x)) < 5e-2


@pytest.mark.parametrize("form", ["gauge-free", "columns beside"])
def test_other_terms(form):
    net = bw.lowrank(24, 16, 3)
    cores = random_cores(net)
    if form == "gauge-free":
        terms = [compacted(bw.compact(net, cores))]
    else:
        terms = [network(net, cores), columns(torch.tensor([2, 5]), torch.randn(24, 2), (24, 16))]
    layer = bw.TensorLinear.of(terms, True, dtype=torch.float64).eval()
    x = torch.randn(5, 16, dtype=torch.float64)
    with torch.no_grad():
        right = layer(x)
        bw.prepare(layer, rows=(5,))
        assert layer.served is not None
        assert off(layer(x), right) < 1e-12


def test_room(only):
    layers = nn.Sequential(*(linear(bw.mpo((4, 6), (6, 4), 3)) for _ in range(3)))
    dense = 3 * 24 * 24 * 4
    only("dense")
    assert bw.prepare(layers).bytes <= dense
    assert bw.prepare(layers, room=0).bytes == 0
    for room in (24 * 24 * 4, dense - 1, dense):
        made = bw.prepare(layers, room=room)
        assert made.bytes <= room
        assert made.bytes == sum(choice.bytes for choice in made if choice.rows == 1)
    assert bw.prepare(layers, room=dense).bytes == dense


def rejoined(layer):
    layer.load_state_dict(linear().state_dict())


def weighed(layer):
    layer.weight = torch.randn(24, 16)


def cored(layer):
    layer.core_0 = nn.Parameter(torch.randn(24, 3))


def written(layer):
    with torch.no_grad():
        layer.core_0.mul_(2)


def biased(layer):
    with torch.no_grad():
        layer.bias.add_(1)


def added(layer):
    layer.add(columns(torch.tensor([1]), torch.ones(24, 1), (24, 16)))


def stepped(layer):
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)
    layer(torch.ones(2, 16)).sum().backward()
    optimizer.step()


CHANGES = [rejoined, weighed, cored, written, biased, added, stepped]


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
def test_changed_parameters_are_used(change):
    layer = linear()
    bw.prepare(layer)
    change(layer)
    x = torch.randn(3, 16)
    with torch.no_grad():
        right = x @ layer.dense().mT + layer.bias
        assert off(layer(x), right) < 1e-5


@pytest.mark.parametrize("change", ["train", "half", "to", "load", "add"])
def test_what_drops_it(change):
    layer = linear()
    bw.prepare(layer)
    assert layer.served is not None
    steps = {
        "train": layer.train,
        "half": layer.bfloat16,
        "to": lambda: layer.to("cpu"),
        "load": lambda: rejoined(layer),
        "add": lambda: added(layer),
    }
    steps[change]()
    assert layer.served is None


def test_eval_keeps_it():
    model = nn.Sequential(linear())
    bw.prepare(model)
    model.eval()
    assert model[0].served is not None
    assert bw.unprepare(model) == 1
    assert bw.unprepare(model) == 0


def test_it_is_in_no_copy_and_no_file():
    layer = linear()
    before = {name: tuple(t.shape) for name, t in layer.state_dict().items()}
    bw.prepare(layer)
    assert {name: tuple(t.shape) for name, t in layer.state_dict().items()} == before
    file = io.BytesIO()
    torch.save(layer, file)
    file.seek(0)
    others = [
        copy.deepcopy(layer),
        copy.copy(layer),
        pickle.loads(pickle.dumps(layer)),
        torch.load(file, weights_only=False),
        layer._replicate_for_data_parallel(),
    ]
    assert all(other.served is None for other in others)
    assert layer.served is not None
    assert len(list(layer.buffers())) == 0


def test_other_parameters_for_a_call():
    layer = linear()
    bw.prepare(layer)
    other = {name: 2 * p.detach() for name, p in layer.named_parameters()}
    x = torch.randn(3, 16)
    with torch.no_grad():
        assert (
            off(functional_call(layer, other, (x,)), 4 * x @ layer.dense().mT + 2 * layer.bias)
            < 1e-5
        )


def test_gradients_go_through_the_layer_as_built():
    layer = linear(dtype=torch.float64)
    bw.prepare(layer)
    x = torch.randn(3, 16, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(layer, (x,))
    layer(x).sum().backward()
    assert all(p.grad is not None for p in layer.parameters())
    layer.requires_grad_(False)
    (dx,) = torch.autograd.grad(layer(x).sum(), x)
    assert off(dx, layer.dense().sum(0).expand(3, -1)) < 1e-12
    assert not layer(x.detach()).requires_grad


def test_transforms_and_autocast():
    layer = linear().requires_grad_(False)
    x = torch.randn(5, 16)
    right = layer(x)
    bw.prepare(layer)
    assert off(vmap(layer)(x), right) < 1e-5
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        assert layer(x).dtype == torch.bfloat16
    with torch.inference_mode():
        assert off(layer(x), right) < 1e-5


def test_other_dtypes_and_widths_are_as_built():
    layer = linear()
    bw.prepare(layer)
    with torch.no_grad():
        with pytest.raises(RuntimeError, match="dtype"):
            layer(torch.randn(3, 16).double())
        with pytest.raises(ValueError, match="16 columns"):
            layer(torch.randn(2, 8))
        with pytest.raises(ValueError, match="16 columns"):
            layer(torch.randn(4, 4))


def test_a_dtype_without_kernels(monkeypatch):
    layer = linear(bias=False)
    ways = layer.ways

    def none(x):
        def fail():
            raise NotImplementedError("no kernel")

        return [replace(way, make=fail) for way in ways(x)]

    monkeypatch.setattr(layer, "ways", none)
    made = bw.prepare(nn.Sequential(layer))
    assert len(made) == 0
    assert made.skipped == {"0": "no kernel for float32"}
    x = torch.randn(2, 16)
    with torch.no_grad():
        assert off(layer(x), x @ layer.dense().mT) < 1e-5


def test_float8_is_prepared_or_named():
    layer = linear(bias=False).to(torch.float8_e4m3fn)
    made = bw.prepare(layer)
    assert len(made) + len(made.skipped) > 0


@pytest.mark.parametrize("rows", [(), 0, (0,), (1, -1), (1.5,), ("a",), "12", None, (True,), {"a"}])
def test_bad_rows(rows):
    with pytest.raises(BudgetError, match="came; write whole numbers from 1 on"):
        bw.prepare(linear(), rows=rows)


@pytest.mark.parametrize("room", [-1, 0.5, "1GB", True])
def test_bad_room(room):
    with pytest.raises(BudgetError, match="came; write a whole number of bytes"):
        bw.prepare(linear(), room=room)


def test_bad_models_and_examples():
    for call in (bw.prepare, bw.unprepare):
        with pytest.raises(SelectionError, match=r"give a torch\.nn\.Module"):
            call(42)
    with pytest.raises(DataError, match="does not run on the example"):
        bw.prepare(nn.Sequential(linear()), torch.randn(2, 5))
    assert len(bw.prepare(nn.Sequential(nn.Linear(2, 3)))) == 0


def test_a_refused_call_leaves_what_was_prepared():
    model = nn.Sequential(linear())
    bw.prepare(model)
    for bad in (
        partial(bw.prepare, model, rows=(0,)),
        partial(bw.prepare, model, torch.ones(1, 3)),
    ):
        with pytest.raises(ValueError, match=r"came|example"):
            bad()
        assert model[0].served is not None


def test_an_example_says_for_how_many_rows():
    model = nn.Sequential(linear()).train()
    made = bw.prepare(model, {"input": torch.randn(7, 3, 16)}, rows=2)
    assert [choice.rows for choice in made] == [2, 21]
    assert model.training
    assert model[0].training


def test_equal_layers_are_measured_once(monkeypatch):
    seen = []
    decide = contest.decide
    monkeypatch.setattr(
        "bondwise.layers.prepare.prepare.decide", lambda all_: (seen.extend(all_), decide(all_))
    )
    model = nn.Sequential(*(linear(bw.lowrank(16, 16, 3)) for _ in range(4)))
    x = torch.randn(9, 16)
    with torch.no_grad():
        right = model(x)
        made = bw.prepare(model)
        assert off(model(x), right) < 1e-5
    assert len(seen) == 2
    assert len(made) == 8


def test_its_table_fits():
    model = nn.Sequential(linear(bw.tree((4, 4, 4), (4, 4, 4), 3)), linear(bw.lowrank(64, 64, 8)))
    shown = str(bw.prepare(model))
    assert max(map(len, shown.splitlines())) <= 80
    assert "64 x 64" in shown


def halved(layer):
    parametrize.register_parametrization(layer, "core_0", nn.Hardtanh())


def pruned(layer):
    prune.l1_unstructured(layer, "core_0", amount=0.5)


def biased_by_another(layer):
    parametrize.register_parametrization(layer, "bias", nn.Hardtanh())


@pytest.mark.parametrize("change", [halved, pruned, biased_by_another], ids=lambda c: c.__name__)
def test_numbers_made_of_others_are_left_as_built(change):
    model = nn.Sequential(linear(), nn.ReLU(), linear(bw.mpo((4, 6), (4, 6), 3)))
    change(model[0])
    x = torch.randn(3, 16)
    with torch.no_grad():
        right = model(x)
        made = bw.prepare(model)
        assert made.skipped == {"0": "its numbers are made of others"}
        assert {choice.name for choice in made} == {"2"}
        assert off(model(x), right) < 1e-5
    assert "as built: 1 layer, such as 0 (its numbers are made of others)" in str(made)


def test_what_dense_cannot_do_is_a_dash():
    layer = bw.TensorLinear(bw.lowrank(24, 16, 3), dtype=torch.float32)
    made = bw.prepare(layer, rows=(2,))
    shown = replace(made, choices=tuple(replace(c, dense=0.0, share=0.0) for c in made))
    weight, times, inp, layers, rows, dense, *_ = (words := str(shown).splitlines()[3].split())
    assert (weight, times, inp, layers, rows, dense) == ("24", "x", "16", "1", "2", "-")
    assert words.count("-") == 2


@pytest.mark.parametrize("rows", [{1, 16}, range(1, 3), 5, frozenset({2})])
def test_rows_in_any_form(rows):
    wanted = sorted(rows) if not isinstance(rows, int) else [rows]
    assert [choice.rows for choice in bw.prepare(linear(), rows=rows)] == wanted


@pytest.mark.parametrize("example", ["x", 3, np.ones((2, 16))], ids=str)
def test_an_example_that_is_none(example):
    with pytest.raises(DataError, match=f"A {type(example).__name__} came as the example; give"):
        bw.prepare(linear(), example)


def test_more_rows_than_memory_holds():
    with pytest.raises(BudgetError, match="do not fit in memory; write fewer"):
        bw.prepare(linear(), rows=10**13)


def test_an_empty_example():
    model = nn.Sequential(bw.TensorConv2d(bw.tucker2(8, 4, (3, 3), 3)))
    assert bw.prepare(model, torch.randn(0, 4, 9, 9)).skipped == {"0": "the example is empty"}
    assert bw.prepare(model).skipped == {"0": "give an example"}


@pytest.mark.parametrize("mode", [torch.inference_mode, torch.no_grad, torch.enable_grad])
@pytest.mark.parametrize("kind", ["linear", "convolution"])
def test_prepared_inside_a_mode(mode, kind):
    """What was prepared in one mode runs in all others."""
    model = nn.Sequential(linear(), linear(bw.mpo((4, 4), (4, 6), 3)))
    x = torch.randn(3, 16)
    if kind == "convolution":
        model = nn.Sequential(bw.TensorConv2d(bw.tucker2(8, 4, (3, 3), 3), bias=True))
        x = torch.randn(2, 4, 7, 7)
    with torch.no_grad():
        right = model(x)
    with mode():
        bw.prepare(model, x)
        assert off(model(x).detach(), right) < 1e-5
    for other in (torch.inference_mode, torch.no_grad, torch.enable_grad):
        with other():
            assert off(model(x).detach(), right) < 1e-5
    model(x).sum().backward()
