"""Gauge-free storage: exact, bounded, no larger than promised, and differentiable."""

import time

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import bondwise as bw
from bondwise.compute.run import dense
from bondwise.errors import FitError, ShapeError
from bondwise.gauge.compact import (
    GaugeForm,
    compact,
    expand,
    gauge_form,
    gauge_forms,
    pivot_bits,
    stored_numbers,
)
from bondwise.gauge.forms import core_forms
from bondwise.gauge.pivots import BOUND, dominant_rows, pack, unpack
from bondwise.topology import registry
from nets import assert_same, numpy_dense, random_cores, thorough

PARSED = [
    bw.parse(text, **dict(zip(names.split(), map(int, sizes), strict=True)))
    for text, names, sizes in [
        ("o1 a b, i1 a c, o2 b d, c d i2 -> (o1 o2) (i1 i2)", "o1 i1 o2 i2 a b c d", "45672323"),
        ("b o r, r b i -> (b o) (b i)", "b o i r", "3452"),
        ("o1 s, s a i1, a o2 s -> (o1 o2) (i1)", "o1 i1 o2 s a", "46532"),
        ("o a q, a i -> (o) (i)", "o i a q", "4532"),
        ("o1 i1, o2 i2 -> (o1 o2) (i1 i2)", "o1 i1 o2 i2", "2332"),
        (
            "o1 s t, i1 s, i2 s t, o2 t u, u i3 -> (o1 o2) (i1 i2 i3)",
            "o1 i1 i2 o2 i3 s t u",
            "32324232",
        ),
        ("o1 r, r s, s i1 a, a i2 r -> (o1) (i1 i2)", "o1 i1 i2 r s a", "453322"),
        ("o -> (o) ()", "o", "3"),
        ("o r, r, r i -> (o) (i)", "o i r", "543"),
        ("o a, a i -> (o) (i)", "o a i", "111"),
    ]
]
KNOWN = [
    net
    for name in registry.names()
    for net in (registry.find(name).sized(24, 36, 3), registry.find(name).sized(16, 81, 2))
]
FEW = [*KNOWN[::2], *(PARSED[k] for k in (1, 3, 5, 6))]
NETS = [*FEW, *thorough(*(net for net in (*KNOWN, *PARSED) if net not in FEW))]
OVERSIZE = [
    bw.lowrank(4, 6, 5),
    bw.lowrank(4, 6, 9),
    bw.mpo((2, 2, 2), (2, 2, 2), 9),
    bw.cp(3, 4, 20),
]


def assert_compact(net, cores):
    c = compact(net, cores)
    assert_same(net, cores, c.cores())
    assert [tuple(core.shape) for core in c.cores()] == list(net.core_shapes)
    assert c.parameters == stored_numbers(net) == sum(free.numel() for free in c.free)
    assert c.parameters <= net.parameters
    assert c.bits == pivot_bits(net)
    forms = core_forms(net, c.form.pinned)
    assert [tuple(free.shape) for free in c.free] == [form.free for form in forms]
    stored = [None if p is None else (len(p), p.dtype) for p in c.pivots]
    assert stored == [form.pivots for form in forms]
    for free, pin in zip(c.free, c.form.pinned, strict=True):
        assert pin is None or free.numel() == 0 or free.abs().max() <= BOUND + 1e-9
    return c


@pytest.mark.parametrize("net", [*NETS, *OVERSIZE], ids=str)
def test_every_network_is_stored_without_loss(net):
    assert_compact(net, random_cores(net))


@pytest.mark.parametrize("net", NETS, ids=str)
@pytest.mark.parametrize("spoil", ["columns", "rows", *thorough("deficient", "zero"), "one zero"])
def test_bad_cores_pass(net, spoil):
    cores = random_cores(net)
    for k, (core, names) in enumerate(zip(cores, net.names, strict=True)):
        for axis, name in enumerate(names):
            scale = torch.logspace(-6, 6, core.shape[axis], dtype=torch.float64)
            shape = [-1 if a == axis else 1 for a in range(core.ndim)]
            if spoil == "columns" and name in net.bonds:
                core *= (scale if k % 2 else 1 / scale).reshape(shape)
            if spoil == "rows" and name in net.open:
                core *= scale.reshape(shape)
        if spoil == "deficient":
            core.copy_(core.select(0, 0).unsqueeze(0).expand_as(core).clone())
        if spoil == "zero" or (spoil == "one zero" and k == len(cores) - 1):
            core.zero_()
    if "zero" in spoil:
        assert not compact(net, cores).dense().any()
    else:
        assert_compact(net, cores)


@pytest.mark.parametrize(
    "net", [bw.ring((4, 3, 4), (3, 4, 3), 3), bw.cp((4, 6), (5, 4), 4)], ids=str
)
def test_scales_that_cancel_around_a_loop_drown_nothing(net):
    cores, even = random_cores(net), random_cores(net)
    for bond, places in net.places.items():
        if bond in net.bonds:
            powers = torch.linspace(-120, 120, net.sizes[bond]).round()
            for k, sign in zip(places[:2], (1, -1), strict=True):
                axis = net.names[k].index(bond)
                cores[k] = torch.ldexp(cores[k].movedim(axis, -1), sign * powers).movedim(-1, axis)
    assert_same(net, even, cores, 1e-14)  # powers of two: exact
    assert_same(net, even, compact(net, cores).cores())


@pytest.mark.parametrize("net", NETS, ids=str)
def test_every_form_is_without_loss_and_saves_as_much(net):
    cores, scale = random_cores(net), torch.logspace(-3, 3, net.shape[1], dtype=torch.float64)
    forms = gauge_forms(net)
    assert forms[0] == gauge_form(net)
    assert len(set(forms)) == len(forms)
    for form in forms:
        for weighed in (None, scale):
            c = compact(net, cores, scale=weighed, form=form)
            assert_same(net, cores, c.cores())
            assert c.form == form
            assert c.parameters == stored_numbers(net)
            bound = BOUND if weighed is None else 4 * BOUND
            for free, pin in zip(c.free, form.pinned, strict=True):
                assert pin is None or not free.numel() or free.abs().max() <= bound + 1e-9
    plain = GaugeForm((None,) * len(net.cores))
    assert_same(net, cores, compact(net, cores, form=plain).cores())


def test_low_rank_is_pinned_on_either_side_and_a_chain_at_any_site():
    assert {form.pinned for form in gauge_forms(bw.lowrank(6, 4, 2))} == {(None, "a"), ("a", None)}
    assert {form.pinned for form in gauge_forms(bw.mpo((4, 4, 4), (4, 4, 4), 2))} == {
        (None, "a", "b"),
        ("a", None, "b"),
        ("a", "b", None),
    }


@settings(deadline=None, max_examples=15)
@given(out=st.integers(1, 12), inp=st.integers(1, 12), data=st.data())
def test_low_rank_stores_as_many_numbers_as_a_matrix_of_that_rank_has(out, inp, data):
    r = data.draw(st.integers(1, min(out, inp)))
    net = bw.lowrank(out, inp, r)
    c = assert_compact(net, random_cores(net))
    assert c.parameters == r * (out + inp - r) <= out * inp
    if r == min(out, inp):
        assert c.parameters == out * inp


@settings(deadline=None, max_examples=15)
@given(
    kind=st.sampled_from(["mpo", "ring", "tucker", "cp", "tree", "kron", "btt"]),
    sizes=st.tuples(*[st.integers(1, 5)] * 4),
    rank=st.integers(1, 6),
)
def test_any_sizes(kind, sizes, rank):
    net = getattr(bw, kind)(sizes[:2], sizes[2:], rank)
    assert_compact(net, random_cores(net))


def test_how_much_the_gauge_saves():
    def saved(net):
        return net.parameters - stored_numbers(net)

    assert saved(bw.mpo((8, 8, 8), (8, 8, 8), (5, 7))) == 25 + 49
    assert saved(bw.ring((8, 8, 8), (8, 8, 8), (3, 4, 5))) == 16 + 25  # all bonds but the smallest
    assert saved(bw.tucker((8, 8), (8, 8), (2, 3, 4, 5))) == 4 + 9 + 16 + 25
    assert saved(bw.tree((4, 4, 4, 4), (4, 4, 4, 4), (2, 3, 4, 5, 6))) == 4 + 9 + 16 + 25 + 36
    assert saved(bw.cp((8, 8), (8, 8), 5)) == 3 * 5
    assert saved(bw.btt((8, 2), (3, 9), 4)) == 2 * 3 * 16
    assert saved(bw.ring((8, 8), (8, 8), (3, 4))) == 12**2  # two bonds between two cores are one
    assert saved(bw.lowrank(10, 4, 5)) == 25  # the side with room is pinned


def test_the_form_is_decided_by_the_network_alone():
    assert gauge_form(bw.lowrank(6, 4, 2)) == GaugeForm((None, "a"))
    assert gauge_form(bw.lowrank(6, 4, 5)) == GaugeForm(("a", None))
    assert gauge_form(bw.lowrank(4, 6, 9)) == GaugeForm((None, None))
    assert gauge_form(bw.mpo((4, 4, 4), (4, 4, 4), 2)) == GaugeForm((None, "a", "b"))
    assert gauge_form(bw.ring((4, 4), (4, 4), 2)) == GaugeForm((None, "z a"))


@pytest.mark.parametrize("net", NETS, ids=str)
@pytest.mark.parametrize("which", [0, -1])
def test_gradients_are_those_of_the_plain_cores_at_the_free_entries(net, which):
    c = compact(net, random_cores(net), form=gauge_forms(net)[which])
    target = torch.randn(net.shape, dtype=torch.float64)
    plain = [core.clone().requires_grad_() for core in c.cores()]
    (dense(net, plain) * target).sum().backward()
    free = [f.clone().requires_grad_() for f in c.free]
    (dense(net, expand(net, c.form, free, c.pivots)) * target).sum().backward()
    # number the free entries from 2 and expand the numbers: so each shows where in a core it stands
    first = np.cumsum([0, *(f.numel() for f in free)])
    numbers = [
        torch.arange(start + 2, start + 2 + f.numel(), dtype=torch.float64).view(f.shape)
        for start, f in zip(first, free, strict=False)
    ]
    for k, core in enumerate(expand(net, c.form, numbers, c.pivots)):
        where = {int(n): at for at, n in enumerate(core.reshape(-1).tolist()) if n >= 2}
        assert len(where) == free[k].numel()
        at = [where[int(n)] for n in numbers[k].reshape(-1)]
        expected = plain[k].grad.reshape(-1)[at]
        torch.testing.assert_close(free[k].grad.reshape(-1), expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("net", NETS, ids=str)
def test_compact_twice_is_compact_once(net):
    once = compact(net, random_cores(net))
    twice = compact(net, once.cores())
    assert twice.form == once.form
    assert twice.parameters == once.parameters
    assert_same(net, once.cores(), twice.cores())


@pytest.mark.parametrize("net", NETS, ids=str)
def test_bfloat16_in_bfloat16_out(net):
    cores = random_cores(net)
    c = compact(net, [core.bfloat16() for core in cores])
    assert all(free.dtype == torch.bfloat16 for free in c.free)
    error = numpy_dense(net, c.cores()) - numpy_dense(net, cores)
    assert np.linalg.norm(error) <= 0.05 * np.linalg.norm(numpy_dense(net, cores))
    assert all(f.dtype == torch.float32 for f in compact(net, cores, torch.float32).free)


@settings(deadline=None, max_examples=15)
@given(count=st.integers(1, 300), data=st.data())
def test_positions_are_packed_and_unpacked(count, data):
    chosen = sorted(data.draw(st.sets(st.integers(0, count - 1), min_size=1)))
    stored = pack(torch.tensor(chosen), count)
    mask = unpack(stored, count).numpy()
    assert np.flatnonzero(mask).tolist() == chosen
    if stored.dtype == torch.uint8:
        assert (np.packbits(mask) == stored.numpy()).all()
    assert stored.numel() * stored.element_size() <= min(-(-count // 8), 4 * len(chosen))


@settings(deadline=None, max_examples=15)
@given(rows=st.integers(1, 40), seed=st.integers(0, 99), data=st.data())
def test_dominant_rows_bound_all_entries(rows, seed, data):
    rank = data.draw(st.integers(1, rows))
    Q = np.linalg.qr(np.random.default_rng(seed).standard_normal((rows, rank)) ** 5)[0]
    p = dominant_rows(torch.from_numpy(Q)).numpy()
    assert (np.diff(p) > 0).all()
    assert np.abs(Q @ np.linalg.inv(Q[p])).max() <= BOUND + 1e-9


def test_a_large_weight_is_quick():
    net = bw.lowrank(576, 1536, 330)
    cores = random_cores(net)
    compact(net, cores)
    start = time.perf_counter()
    c = compact(net, cores)
    assert time.perf_counter() - start < 2.0  # 0.1 s alone; the machine may be shared
    assert c.parameters == 330 * (576 + 1536 - 330)
    assert c.bits == 1536
    product = cores[0] @ cores[1]
    assert (c.free[0] @ c.cores()[1] - product).abs().max() <= 1e-10 * product.abs().max()


def test_errors_say_what_came():
    net = bw.lowrank(4, 6, 2)
    good = compact(net, random_cores(net))
    with pytest.raises(ShapeError, match="1 cores"):
        compact(net, random_cores(net)[:1])
    with pytest.raises(FitError, match="Core 1 holds values that are not finite"):
        compact(net, [torch.ones(4, 2), torch.full((2, 6), float("nan"))])
    with pytest.raises(ShapeError, match="1 pins came"):
        expand(net, GaugeForm(("a",)), good.free, good.pivots)
    with pytest.raises(ShapeError, match="pinned on 'o'"):
        expand(net, GaugeForm(("o", None)), good.free, good.pivots)
    with pytest.raises(ShapeError, match="without its pivots"):
        expand(net, good.form, good.free, (None, None))
    with pytest.raises(ShapeError, match=r"write one of \[\[None, 'a'\], \['a', None\]\]"):
        compact(net, random_cores(net), form=GaugeForm(("a", "a")))
    with pytest.raises(FitError, match=r"Scales of shape \(5,\) came for 6 inputs"):
        compact(net, random_cores(net), scale=torch.ones(5))
    with pytest.raises(FitError, match="Scales"):
        compact(net, random_cores(net), scale=torch.zeros(6))
    with pytest.raises(ShapeError, match="larger than its rest"):
        stored_numbers(bw.lowrank(4, 6, 5), GaugeForm(("a", None)))


def test_stored_numbers_of_a_form_given():
    net = bw.lowrank(6, 8, 3)
    assert stored_numbers(net, GaugeForm((None, None))) == net.parameters
    assert pivot_bits(net, GaugeForm((None, None))) == 0
    assert stored_numbers(net, GaugeForm(("a", None))) == net.parameters - 9
