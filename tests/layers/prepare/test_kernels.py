"""Prepared convolutions: torch's own outputs, lying as they lay, for the sizes that were met."""

import copy

import pytest
import torch
from torch import nn
from torch.testing import assert_close

import bondwise as bw
from bondwise.compute.kernels.lay import as_last, lies_last
from bondwise.errors import ShapeError
from bondwise.gauge.compact import compact
from bondwise.layers.hosts.registry import built
from bondwise.layers.networks import compacted, network
from bondwise.layers.prepare import contest, formats
from convolved import filled, module_of
from nets import BESIDE, beside_of, passes_alone, random_cores, thorough

NETS = [
    bw.tucker2(8, 6, (3, 2), (4, 3)), bw.cp(8, (6, 3, 2), 5), bw.lowrank(8, (6, 3, 2), 3),
    bw.parse("o1 a, a o2 i1 b, b i2 y x -> (o1 o2) (i1 i2 y x)",
             o1=4, a=3, o2=2, i1=3, b=4, i2=2, y=3, x=2),
]  # fmt: skip
SIZES = {1: (9,), 2: (9, 8), 3: (5, 6, 4)}


@pytest.fixture(autouse=True)
def every(monkeypatch, briefly):
    """Every way runs to the end, whatever it takes."""
    monkeypatch.setattr(contest, "HOPELESS", 1e9)
    monkeypatch.setattr(contest, "SURELY", 1e9)
    monkeypatch.setattr(contest, "CLOSE", 1e9)
    monkeypatch.setattr(contest, "FINALISTS", 100)
    monkeypatch.setattr(
        contest, "_finer", lambda own: [w for way in own.ways.values() for w in way.finer()]
    )


@pytest.fixture
def only(monkeypatch):
    """Let ways whose name ends so win, whatever they take."""
    took = contest.Entrant.took.fget
    assert took is not None

    def chosen(end: str) -> None:
        monkeypatch.setattr(
            contest.Entrant,
            "took",
            property(lambda own: took(own) * (1e-6 if own.name.endswith(end) else 1)),
        )

    return chosen


@pytest.fixture
def turned(monkeypatch):
    """Let the channels be last between the layers, wherever that is right."""
    compared, seen = formats.compared, list[bool]()

    def second(*args):
        seen.append(compared(*args) is not None)
        return [2.0, 1.0] if seen[-1] else None

    monkeypatch.setattr(formats, "compared", second)
    return seen


def pair(net, transposed=False, **options):
    """torch's convolution in float64 and ours of the same weight."""
    axes = len(net.cols) - 1 if len(net.cols) < 4 else 2
    kernel = tuple(index.size for index in net.cols[-axes:])
    out, inp = net.shape
    inp //= torch.Size(kernel).numel()
    conv = module_of(axes, inp, out, kernel, transposed, **options)
    cores = random_cores(net)
    return filled(conv, net, cores).eval(), built(conv, [network(net, cores)]).eval()


@torch.no_grad()
def same(layer, conv, *inputs, tol=1e-10):
    """The first lies as those that were met, and so its output does."""
    for at, x in enumerate(inputs):
        y, right = layer(x), conv(x)
        assert y.stride() == right.stride() or at
        assert_close(y, right, rtol=0, atol=tol * max([1.0, *right.abs().flatten().tolist()]))


WAYS = ["built", "dense", "dense, channels last", "1 0", "0, channels last"]


@pytest.mark.parametrize("end", WAYS)
@pytest.mark.parametrize("net", NETS, ids=str)
def test_each_way_is_torch_s_own(only, net, end):
    """At the size that was met, lying so or so, alone and none; at others as built."""
    only(end)
    for transposed in (False, True):
        conv, layer = pair(net, transposed, stride=2, padding=1)
        x = torch.randn(3, 6, 9, 8, dtype=torch.float64)
        made = bw.prepare(layer, x)
        assert [choice.rows for choice in made] == [3]
        same(layer, conv, x, as_last(x), x[:1], x[:0], x[0], x[..., :7, :7], torch.cat([x, x]))
        bw.prepare(layer, as_last(x))
        same(layer, conv, as_last(x), x, as_last(x)[:1], x[:0], x[0], x[..., :7, :7])


@pytest.mark.parametrize("end", [", packed", ", packed kernels", "dense, packed"])
@pytest.mark.parametrize("net", NETS[:3], ids=str)
def test_packed_kernels(only, net, end):
    only(end)
    for transposed in (False, True):
        conv, layer = pair(net, transposed, stride=2, padding=1)
        conv, layer = conv.float(), layer.float()
        x = torch.randn(3, 6, 9, 8)
        made = bw.prepare(layer, x, room=10**6)
        assert made.choices[0].way.endswith(end)
        assert made.bytes
        same(layer, conv, x, as_last(x), x[:1], x[:0], x[0], x[..., :7, :7], tol=1e-4)


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("axes", [1, *thorough(2), 3])
def test_any_number_of_axes(axes, transposed, only):
    only("0, channels last")
    net = bw.tucker2(8, 6, (3, 2, 2)[:axes], (4, 3))
    conv = module_of(axes, 6, 8, (3, 2, 2)[:axes], transposed, stride=2)
    cores = random_cores(net)
    layer = built(filled(conv, net, cores), [network(net, cores)]).eval()
    x = torch.randn(2, 6, *SIZES[axes], dtype=torch.float64)
    made = bw.prepare(layer, x)
    assert made.choices[0].way.startswith("stack")
    with torch.no_grad():
        for own in (x, x[:1], x[0], x[..., 1:]):
            assert_close(layer(own), conv(own), rtol=0, atol=1e-9)


def test_columns_of_width_one_are_turned(only):
    only("0, channels last")
    conv = module_of(2, 6, 8, (5, 1), padding=(2, 0), stride=(2, 1))
    net = bw.cp(8, (6, 5, 1), 4)
    cores = random_cores(net)
    layer = built(filled(conv, net, cores), [network(net, cores)]).eval()
    x = torch.randn(3, 6, 20, 1, dtype=torch.float64)
    bw.prepare(layer, x)
    same(layer, conv, x, as_last(x), x[0], torch.randn(3, 6, 20, 2).double())


@pytest.mark.parametrize("form", ["gauge-free", *BESIDE[:-1]])
def test_other_terms(only, form):
    net = NETS[0]
    conv, _ = pair(net)
    cores = random_cores(net)
    if form == "gauge-free":
        terms = [compacted(compact(net, cores))]
    else:
        term, more = beside_of(form, net.shape)
        terms = [network(net, cores), term]
        conv.weight.data += more.reshape(conv.weight.shape)
    layer = built(conv, terms).eval()
    x = torch.randn(3, 6, 9, 8, dtype=torch.float64)
    for end in ("built", "dense", "0, channels last"):
        only(end)
        made = bw.prepare(layer, x)
        assert made.choices[0].way.endswith(end)
        same(layer, conv, x, as_last(x))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_short_numbers(dtype, only):
    conv, layer = pair(NETS[0], padding=1)
    layer, x = layer.to(dtype), torch.randn(3, 6, 9, 8)
    right = conv(x.double())
    for end in ("in float32", "cast to float32", "built"):
        only(end)
        made = bw.prepare(layer, x.to(dtype), room=10**6)
        assert made.choices[0].way.endswith(end)
        with torch.no_grad():
            y = layer(x.to(dtype))
        assert y.dtype == dtype
        assert (y.double() - right).norm() <= 8 * torch.finfo(dtype).eps * right.norm()


def test_another_size_of_output_is_as_built():
    conv, layer = pair(NETS[0], transposed=True, stride=2)
    x = torch.randn(2, 6, 5, 5, dtype=torch.float64)
    bw.prepare(layer, x)
    with torch.no_grad():
        assert_close(layer(x, output_size=(12, 10)), conv(x, output_size=(12, 10)))


def test_inputs_that_do_not_fit_are_named_as_ever():
    _, layer = pair(NETS[0])
    bw.prepare(layer, torch.randn(2, 6, 5, 5).double())
    with torch.no_grad():
        for shape in ((2, 5, 5, 5), (2, 6, 5), (6,), (2, 6, 1, 5)):
            with pytest.raises(ShapeError, match="came"):
                layer(torch.randn(shape).double())


def test_what_was_not_met_is_as_built_and_says_so():
    _, layer = pair(NETS[0])
    made = bw.prepare(nn.Sequential(layer))
    assert made.skipped == {"0": "give an example"}
    assert layer.served is None


def test_room(only):
    _, layer = pair(NETS[0])
    x = torch.randn(2, 6, 9, 8).double()
    dense = layer.weight.numel() * 8
    only("dense")
    assert bw.prepare(layer, x).bytes == dense
    assert bw.prepare(layer, x, room=0).bytes == 0
    assert bw.prepare(layer, x, room=dense - 1).choices[0].way != "dense"


def test_several_sizes_of_one_layer():
    class Twice(nn.Module):
        def __init__(self, layer):
            super().__init__()
            self.layer = layer

        def forward(self, x):
            return self.layer(x), self.layer(x[..., 1:])

    conv, layer = pair(NETS[1], padding=1)
    x = torch.randn(2, 6, 9, 8, dtype=torch.float64)
    made = bw.prepare(Twice(layer), x, room=10**6)
    assert {choice.input for choice in made} == {(2, 6, 9, 8), (2, 6, 9, 7)}
    same(layer, conv, x, x[..., 1:], x[..., 2:])


class Images(nn.Module):
    """Two convolutions, what goes between them, and what may go wrong afterwards."""

    def __init__(self, end, inp=6):
        super().__init__()
        first = bw.tucker2(8, inp, (3, 3), (4, min(inp, 3)))
        self.one = bw.TensorConv2d(first, bias=True, padding=1, dtype=torch.float64)
        second = bw.cp(8, (8, 3, 3), 5)
        self.two = bw.TensorConv2d(second, bias=True, padding=1, dtype=torch.float64)
        self.between = nn.Sequential(nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2)).double()
        self.end, self.met = end, list[bool]()

    def forward(self, x):
        x = self.between(self.one(x))
        self.met.append(lies_last(x))
        return self.end(self.two(x))


FINE = [lambda x: x.flatten(1), lambda x: x.mean((2, 3)), lambda x: {"y": [x.sum()], "n": 3}]
WRONG = [lambda x: x, lambda x: x.view(len(x), -1), lambda _: 3, lambda x: torch.rand_like(x[0])]


@torch.no_grad()
@pytest.mark.parametrize("inp", [6])
@pytest.mark.parametrize("end", range(len(FINE)))
def test_channels_are_last_all_along_where_that_is_right(turned, end, inp):
    model = Images(FINE[end], inp).eval()
    x = torch.randn(2, inp, 8, 8, dtype=torch.float64)
    right, as_it_was = model(x), copy.deepcopy(model)
    bw.prepare(model, x)
    assert turned == [True]
    model.met.clear()
    for given in (x, as_last(x), x[:1]):
        assert_close(model(given), as_it_was(given))
    assert model.met == [True] * 3
    assert_close(model(x), right)
    other = torch.randn(2, inp, 6, 6, dtype=torch.float64)  # not met: as built
    assert_close(model(other), as_it_was(other))
    assert not model.met[-1]
    bw.prepare(model, x)  # again, from what it gives as built
    assert_close(model(x), right)
    bw.unprepare(model)
    model.met.clear()
    assert_close(model(x), right)
    assert model.met == [False]


@torch.no_grad()
@pytest.mark.parametrize("end", range(len(WRONG)))
def test_where_it_is_not_they_stay(turned, end):
    model = Images(WRONG[end]).eval()
    x = torch.randn(2, 6, 8, 8, dtype=torch.float64)
    right = model(x)
    bw.prepare(model, x)
    assert turned == [False]
    y = model(x)
    assert not model.met[-1]
    if end < 2:  # the others give nothing that could be compared
        assert_close(y, right)
        assert y.stride() == right.stride()


@torch.no_grad()
def test_a_model_whose_images_come_last_has_one_way(turned):
    model = Images(FINE[0]).eval()
    x = as_last(torch.randn(2, 6, 8, 8, dtype=torch.float64))
    right = model(x)
    bw.prepare(model, x)
    assert turned == []
    assert_close(model(x), right)
    assert model.met == [True] * 3


COMPILED = """
import torch
import bondwise as bw
from torch import nn
from bondwise.layers.prepare import contest, formats

compared = formats.compared  # channels stay where they are for the one way that needs it
formats.compared = lambda *given: [1.0, 2.0] if END == "0" else compared(*given)
contest.LEAST, contest.FEWEST, contest.HOPELESS, contest.SURELY = 0.0, 1, 1e9, 1e9
took = contest.Entrant.took.fget
contest.Entrant.took = property(
    lambda own: took(own) * (1e-6 if own.name.endswith(END) else 1)
)
model = nn.Sequential(
    bw.TensorConv2d(bw.tucker2(16, 4, (3, 3), 4), bias=True, padding=1), nn.ReLU(),
    bw.TensorConv2d(bw.cp(8, (16, 3, 3), 4), stride=2), nn.Flatten(1),
).eval()
x = torch.randn(3, 4, 9, 9)
with torch.no_grad():
    right = model(x)
    made = bw.prepare(model, x, room=10**6)
    assert any(choice.way.endswith(END) for choice in made), made
    run = torch.compile(model, fullgraph=True)
    for given in (x, x.to(memory_format=torch.channels_last), x[:2]):
        y = model(given)
        torch.testing.assert_close(run(given), y, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(y, right[: len(given)], rtol=1e-4, atol=1e-4)
    other = torch.randn(3, 4, 7, 8)
    torch.testing.assert_close(run(other), model(other), rtol=1e-4, atol=1e-4)
"""


@pytest.mark.compile
@pytest.mark.parametrize("end", [", packed", *thorough("0", "dense", "channels last", "built")])
def test_compiled_without_a_break(end):
    passes_alone(COMPILED, END=end)
