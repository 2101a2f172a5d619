"""Networks as stacks of convolutions: what dense convolutions give, at the fewest multiplications.

The weights are numpy's einsums of the cores, and the convolutions torch's own.
"""

from functools import cache
from itertools import combinations, permutations
from math import prod

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.testing import assert_close
from torch.utils._python_dispatch import TorchDispatchMode

from bondwise import cp, lowrank, parse, tucker, tucker2
from bondwise.compute.kernels.convolve import convolution_macs
from bondwise.compute.kernels.geometry import Geometry, batched
from bondwise.compute.kernels.stacks import conv_plan
from bondwise.errors import ShapeError
from bondwise.network.groups import grouped_network, one_group
from bondwise.topology import registry
from convolved import MODES, convolutions, filled, module_of
from nets import random_cores


def check(conv, net, size, batch=2, seed=0):
    """The plan gives what the dense convolution gives; returns the plan."""
    cores = random_cores(net, seed)
    filled(conv, net, cores)
    x = torch.randn(batch, conv.in_channels, *size, dtype=torch.float64)
    made = conv_plan(net, Geometry.of(conv), tuple(size))
    y = conv(x)
    assert_close(made(cores, x, conv.bias), y, rtol=1e-10, atol=1e-10 * float(y.abs().max()))
    assert_close(made(cores, x), y - _columns(conv.bias, y), rtol=1e-9, atol=1e-9)
    assert made(cores, x[:0], conv.bias).shape == (0, *y.shape[1:])
    return made


def _columns(bias, y):
    return 0 if bias is None else bias.reshape(-1, *[1] * (y.ndim - 2))


@pytest.mark.filterwarnings("ignore:Using padding='same'")
@given(convolutions(), st.integers(0, 99))
def test_any_topology_is_the_dense_convolution(drawn, seed):
    name, (axes, inp, out, kernel, transposed), options, size = drawn
    groups = options["groups"]
    net = registry.find(name).convolution(out // groups, inp // groups, kernel, 3)
    conv = module_of(axes, inp, out, kernel, transposed, **options)
    check(conv, grouped_network(net, groups), size, seed=seed)


KERNEL = {"y": 3, "x": 2}
# (network, axes, multiplications of a 9 x 8 input without padding: by hand, output 7 x 7)
BY_HAND = [
    # separable: the columns 3 x 1 first on 9 x 8 -> 7 x 8, then 1 x 2 on 7 x 7
    (parse("o x a, a i y -> (o) (i y x)", o=5, i=4, a=2, **KERNEL),
     7 * 8 * 4 * 2 * 3 + 7 * 7 * 2 * 5 * 2),
    # k x k then 1 x 1, and 1 x 1 then k x k
    (lowrank(5, (4, 3, 2), 2), 7 * 7 * (4 * 2 * 6 + 2 * 5)),
    (parse("o y x a, a i -> (o) (i y x)", o=5, i=4, a=2, **KERNEL), 9 * 8 * 4 * 2 + 49 * 2 * 5 * 6),
    # depthwise, then 1 x 1
    (parse("o i, i y x -> (o) (i y x)", o=5, i=4, **KERNEL), 7 * 7 * (4 * 6 + 4 * 5)),
    # one core: the convolution itself
    (parse("o i y x -> (o) (i y x)", o=5, i=4, **KERNEL), 7 * 7 * 4 * 5 * 6),
    # one mode for all of the kernel
    (parse("o a, a i k -> (o) (i k)", o=5, i=4, a=2, k=6), 7 * 7 * (4 * 2 * 6 + 2 * 5)),
    # 1 x 1, k x k, 1 x 1
    (tucker2(5, 4, (3, 2), 2), 9 * 8 * 4 * 2 + 7 * 7 * (2 * 2 * 6 + 2 * 5)),
    # 1 x 1, both depthwise, 1 x 1
    (cp(5, (4, 3, 2), 2), 9 * 8 * 4 * 2 + 7 * 8 * 2 * 3 + 7 * 7 * 2 * 2 + 7 * 7 * 2 * 5),
]  # fmt: skip


@pytest.mark.parametrize(("stack", "macs"), BY_HAND, ids=str)
def test_stacks_known_by_hand(stack, macs):
    net = stack
    conv = module_of(2, 4, 5, (3, 2))
    made = check(conv, net, (9, 8))
    assert made.macs <= macs  # several cores may be joined where that takes less
    assert made.macs == counted(made, net, conv)


class Count(TorchDispatchMode):
    """Multiplications of every convolution and product that torch runs."""

    macs = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        y = func(*args, **(kwargs or {}))
        if func is torch.ops.aten.convolution.default:
            x, weight, transposed = args[0], args[1], args[6]
            each = weight[0].numel()  # of a transposed one: for every input, of all its outputs
            self.macs += (x if transposed else y).numel() * each
        elif func in (torch.ops.aten.mm.default, torch.ops.aten.bmm.default):
            self.macs += y.numel() * args[0].shape[-1]
        elif func is torch.ops.aten.mul.Tensor:
            self.macs += y.numel()
        return y


def counted(made, net, conv):
    """For one sample, by what torch is called with."""
    x = torch.randn(1, conv.in_channels, *made.size, dtype=torch.float64)
    with Count() as count:
        made(random_cores(net), x, conv.bias)
    return count.macs


def ways(cores):
    """Every order of every way to join some cores."""
    if not cores:
        yield ()
    for count in range(1, len(cores) + 1):
        for some in combinations(sorted(cores), count):
            for rest in ways(cores - set(some)):
                yield (some, *rest)


def cheapest(net, geometry, size, most=None):
    """Fewest multiplications of all ways that torch's convolutions can run, by index sets.

    Args:
        most: cores that are joined, at most.
    """
    axes = {index.name: (a,) for a, index in enumerate(net.cols[-geometry.axes :])}
    if net.cols[-1].size == geometry.taps:
        axes = {net.cols[-1].name: tuple(range(geometry.axes))}
    holders = [set(net.places[name]) for name in axes]
    return min(
        cost(net, geometry, size, axes, way)
        for way in ways(frozenset(range(len(net.cores))))
        if all(sum(bool(own & set(some)) for some in way) == 1 for own in holders)
        and max(map(len, way)) <= (most or len(net.cores))
    )


def cost(net, geometry, size, axes, way):
    """Of one way: channels that are there, that come and that go, at each of the outputs."""
    total, at, done = 0, list(size), set()
    live = {index.name for index in net.cols} - set(axes)
    rows = {index.name for index in net.rows}
    for some in way:
        own = set().union(*(net.names[k] for k in some))
        others = {
            n for k in range(len(net.cores)) if k not in done | set(some) for n in net.names[k]
        }
        before = list(at)
        for name in own & set(axes):
            for a in axes[name]:
                at[a] = geometry.extent(a, at[a])
        where = before if geometry.transposed else at
        apart = {n for k in range(len(net.cores)) if k not in some for n in net.names[k]}
        seen = live | {n for n in own if n in net.open or n in apart}
        total += prod(net.sizes[n] for n in seen) * prod(where)
        total += joined(net, some)
        done |= set(some)
        live = {n for n in (live | own) - set(axes) if n in rows or n in others}
    return total


def joined(net, some):
    """Fewest multiplications that make one weight of some cores, one core after another."""
    return min(chained(net, order) for order in permutations(some))


@cache
def chained(net, order):
    total, own = 0, set(net.names[order[0]])
    for at, k in enumerate(order[1:], start=1):
        apart = {n for j in range(len(net.cores)) if j not in order[:at] for n in net.names[j]}
        own = {n for n in own if n in net.open or n in apart} | set(net.names[k])
        total += prod(net.sizes[n] for n in own)
    return total


PRICED = [
    *[(net, 2, (3, 2), {}) for net, _ in BY_HAND[:4]],
    (tucker2(8, 6, (3, 3), 5), 2, (3, 3), {"stride": 2, "padding": 1}),
    (tucker(8, (6, 3, 3), (3, 3, 2, 2)), 2, (3, 3), {"stride": (1, 2)}),
    (cp(9, (2, 5), 4), 1, (5,), {"stride": 3}),
    (grouped_network(tucker2(4, 3, (3, 3), 2), 2), 2, (3, 3), {"groups": 2, "stride": 2}),
    *(
        pytest.param(
            registry.find(name).convolution(8, 6, kernel, rank),
            len(kernel),
            kernel,
            more,
            marks=pytest.mark.thorough,
        )
        for name, kernel, rank, more in [
            ("mpo", (3, 3), 3, {"padding": 1}),
            ("btt", (3, 3), 3, {"stride": 2}),
            ("ring", (4,), 2, {"stride": 4}),
        ]
    ),
]


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize(("stack", "axes", "kernel", "options"), PRICED, ids=str)
def test_the_plan_is_the_cheapest_of_all(stack, axes, kernel, options, transposed):
    """By brute force; so it is never dearer than the dense convolution, nor than any one order."""
    net = stack
    groups, size = options.get("groups", 1), (9, 12)[:axes]
    out, inp = net.shape[0], net.shape[1] // prod(kernel)
    given = {k: v for k, v in options.items() if k != "padding" or not transposed}
    conv = module_of(axes, inp, out, kernel, transposed, **given)
    geometry = Geometry.of(conv)
    made = check(conv, net, size)
    assert made.macs <= cheapest(net, geometry, size) <= cheapest(net, geometry, size, 1)
    assert made.macs == counted(made, net, conv)
    dense = Count()
    with dense:
        conv(torch.randn(1, inp, *size, dtype=torch.float64))
    assert convolution_macs(geometry, out, inp, size) == dense.macs
    alone = one_group(net)
    assert made.macs <= dense.macs + groups * joined(alone, range(len(alone.cores)))


def test_many_cores_are_never_dearer_than_dense():
    net = registry.find("mpo").convolution(64, 64, (3, 3), 64)
    wide = parse(
        "a o1, a b o2, b c o3, c d i1, d e i2, e f y, f x -> (o1 o2 o3) (i1 i2 y x)",
        o1=2, o2=2, o3=2, i1=2, i2=2, y=3, x=3, a=9, b=9, c=9, d=9, e=9, f=9,
    )  # fmt: skip
    for own in (net, wide):
        out, inp = own.shape[0], own.shape[1] // 9
        conv = module_of(2, inp, out, 3)
        made = check(conv, own, (20, 20), batch=1)
        whole = chained(own, tuple(range(len(own.cores))))
        assert made.macs <= convolution_macs(made.geometry, out, inp, (20, 20)) + whole


def test_the_size_of_the_input_decides_what_comes_first():
    """Few outputs and many inputs: where the stride leaves little, less is worth doing before."""
    net = tucker2(64, 64, 4, 48)
    geometry = Geometry((4,), (4,), ((0, 0),), (1,))
    orders = {size: [step.cores for step in conv_plan(net, geometry, (size,)).steps]
              for size in (4, 4096)}  # fmt: skip
    assert orders[4] != orders[4096]
    for size in orders:
        assert conv_plan(net, geometry, (size,)).macs == cheapest(net, geometry, (size,))
    conv = module_of(1, 64, 64, 4, stride=4)
    for size in ((4,), (4096,)):
        check(conv, net, size, batch=1)


@pytest.mark.parametrize("padding", [0, 2])
@pytest.mark.parametrize("mode", MODES)
def test_a_kernel_of_one_tap_moves_and_pads_once(mode, padding):
    conv = module_of(2, 6, 4, 1, stride=(2, 3), padding=padding, padding_mode=mode)
    for net in (
        lowrank(4, 6, 2),
        lowrank(4, (6, 1, 1), 2),
        tucker2(4, 6, (1, 1), 2),
        parse("o1 a, a o2 i1 b, b i2 -> (o1 o2) (i1 i2)", o1=2, a=2, o2=2, i1=3, b=2, i2=2),
    ):
        made = check(conv, net, (7, 8))
        assert sum(step.axes == (0, 1) for step in made.steps) == 1
        assert made.macs <= convolution_macs(made.geometry, 4, 6, (7, 8)) + 4 * 6 * 4


def test_cp_is_tucker_with_a_delta_core():
    conv, R = module_of(2, 6, 8, (3, 2), stride=2, padding=1), 4
    net, other = cp(8, (6, 3, 2), R), tucker(8, (6, 3, 2), R)
    cores = random_cores(net)
    delta = torch.zeros(R, R, R, R, dtype=torch.float64)
    delta[(torch.arange(R),) * 4] = 1
    x = torch.randn(2, 6, 9, 8, dtype=torch.float64)
    ours = conv_plan(net, Geometry.of(conv), (9, 8))
    theirs = conv_plan(other, Geometry.of(conv), (9, 8))
    assert_close(ours(cores, x), theirs([delta, *cores], x), rtol=1e-10, atol=1e-10)
    assert_close(ours(cores, x, conv.bias), filled(conv, net, cores)(x), rtol=1e-10, atol=1e-10)
    assert ours.macs < theirs.macs


@pytest.mark.parametrize("transposed", [False, True])
def test_gradients_are_those_of_the_dense_convolution(transposed):
    options = {"stride": 2, "padding": 1, "groups": 2}
    conv = module_of(2, 8, 6, (3, 2), transposed, **options).requires_grad_()
    net = grouped_network(tucker2(3, 4, (3, 2), (2, 3)), 2)
    cores = [core.requires_grad_() for core in random_cores(net)]
    made = conv_plan(net, Geometry.of(conv), (3, 4))
    x = torch.randn(1, 8, 3, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x, b, *own: made(own, x, b), (x, conv.bias, *cores))


def test_geometry_follows_torch():
    """Output sizes, and weights as matrices and back, of the six kinds."""
    for axes, transposed in [(a, t) for a in (1, 2, 3) for t in (False, True)]:
        more = {"output_padding": 1} if transposed else {}
        conv = module_of(
            axes, 4, 6, (2, 3, 1)[:axes], transposed, stride=2, padding=1, groups=2, **more
        )
        geometry = Geometry.of(conv)
        x = torch.randn(1, 4, *(5, 6, 7)[:axes], dtype=torch.float64)
        assert geometry.extents(tuple(x.shape[2:])) == conv(x).shape[2:]
        matrix = geometry.matrix(conv.weight)
        assert matrix.shape == (6, 2 * geometry.taps)
        assert torch.equal(geometry.weight(matrix), conv.weight)
        # of group 1: its last output reads input channel 2 by the first row of the first group
        last = conv.weight[2, 2] if transposed else conv.weight[5, 0]
        assert torch.equal(matrix[5, : geometry.taps], last.flatten())
        assert_close(geometry.convolve(x, conv.weight, conv.bias), conv(x))


WRONG = [
    (lowrank(4, (3, 3, 6), 2), {}, "its last column modes are the kernel's"),
    (lowrank(4, (54,), 2), {}, "its last column modes are the kernel's"),
    (lowrank(4, (6, 9), 2), {"groups": 2}, "of 1 groups came for a convolution of 2"),
    (grouped_network(lowrank(4, (6, 3, 3), 2), 2), {}, "of 2 groups came for a convolution of 1"),
]


@pytest.mark.parametrize(("wrong", "options", "says"), WRONG, ids=str)
def test_networks_of_another_convolution_are_refused(wrong, options, says):
    with pytest.raises(ShapeError, match=says):
        conv_plan(wrong, Geometry.of(module_of(2, 12, 8, 3, **options)))


def test_an_input_has_channels_and_axes():
    x, alone = batched(torch.zeros(6, 5, 5), 2, 6)
    assert (x.shape, alone) == ((1, 6, 5, 5), True)
    for shape in [(6,), (5, 5), (2, 5, 5), (1, 5, 6, 6), (1, 1, 6, 5, 5)]:
        with pytest.raises(ShapeError, match=r"write \(samples, 6, height, width\)"):
            batched(torch.zeros(shape), 2, 6)
