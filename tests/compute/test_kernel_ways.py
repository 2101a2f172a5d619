"""Every way to run a convolution: what the dense one gives, lying as the dense one's output lies.

The weights are numpy's einsums of the cores, and the convolutions torch's own.
"""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.testing import assert_close

from bondwise.compute.kernels.geometry import Geometry
from bondwise.compute.kernels.lay import as_last, lies_last
from bondwise.compute.kernels.ways import Call, stack_ways, whole_ways
from bondwise.network.groups import grouped_network
from bondwise.topology import registry
from convolved import convolutions, filled, module_of
from nets import random_cores


def ways(conv, net, cores, x):
    """All of them, those that are only tried where others are fast too."""
    call = Call.of(Geometry.of(conv), x)
    numbers = [core.to(x.dtype) for core in cores]
    yield from whole_ways(lambda: conv.weight.to(x.dtype), x, call)
    for way in stack_ways(net, lambda: numbers, x, call):
        yield from (way, *way.finer())


def right(y, conv, x, tol=1e-10):
    """As torch's own, in the numbers and in memory."""
    dense = conv(x)
    if x.ndim == 5:  # without oneDNN, as in float64, torch forgets it
        dense = as_last(dense) if lies_last(x) else dense.contiguous()
    assert y.shape == dense.shape
    assert y.dtype == dense.dtype
    strides = zip(
        y.stride(), dense.stride(), y.shape, strict=True
    )  # of an axis of 1 it says nothing
    padded = conv.padding_mode != "zeros"  # torch's own padding may lie in another order
    assert padded or not y.numel() or all(a == b for a, b, size in strides if size > 1)
    assert_close(y, dense, rtol=0, atol=tol * max([1.0, *dense.abs().flatten().tolist()]))


@pytest.mark.filterwarnings("ignore:Using padding='same'")
@given(convolutions(), st.booleans(), st.integers(0, 99))
def test_any_topology_by_any_way_is_the_dense_convolution(drawn, turned_last, seed):
    """At the size that it was made for and another, at no samples and at more."""
    name, (axes, inp, out, kernel, transposed), options, size = drawn
    groups = options["groups"]
    own = registry.find(name).convolution(out // groups, inp // groups, kernel, 3)
    net = grouped_network(own, groups)
    cores = random_cores(net, seed)
    conv = filled(module_of(axes, inp, out, kernel, transposed, **options), net, cores)
    x = torch.randn(2, inp, *size, dtype=torch.float64)
    larger = torch.randn(3, inp, *(n + 1 for n in size), dtype=torch.float64)
    given_as = as_last if turned_last else torch.Tensor.contiguous
    x, larger = given_as(x), given_as(larger)
    names = set[str]()
    for way in ways(conv, net, cores, x):
        assert way.name not in names
        names.add(way.name)
        ready = way.make()
        assert ready.name == way.name
        for own in (x, larger, x[:0]):
            right(ready.run(own, conv.bias), conv, own)
        assert all(not own.requires_grad for own in ready.kept)
    assert "dense" in names


@pytest.mark.filterwarnings("ignore:Using padding='same'")
@given(convolutions(), st.booleans(), st.sampled_from([torch.float32, torch.bfloat16]))
def test_packed_and_short_numbers_are_right_too(drawn, turned_last, dtype):
    """To what so many products of rounded numbers are off; `test_any_topology..` is exact."""
    name, (axes, inp, out, kernel, transposed), options, size = drawn
    groups = options["groups"]
    own = registry.find(name).convolution(out // groups, inp // groups, kernel, 3)
    net = grouped_network(own, groups)
    cores = random_cores(net)
    conv = filled(module_of(axes, inp, out, kernel, transposed, **options), net, cores)
    x = torch.randn(2, inp, *size)
    x = (as_last(x) if turned_last else x).to(dtype)
    bias = None if conv.bias is None else conv.bias.to(dtype)
    dense = conv(x.double())
    for way in ways(conv, net, cores, x):
        ready = way.make()
        for given_as in (x, x[1:], x[:0]):
            y = ready.run(given_as, bias)
            assert y.dtype == dtype
            assert y.shape == (len(given_as), *dense.shape[1:])
            assert (y.double() - conv(given_as.double())).norm() <= 0.1**5 * dense.norm() + (
                64 * torch.finfo(dtype).eps * dense.norm()
            ), way.name
            if y.numel() and axes != 1:
                assert lies_last(y) == lies_last(x)
