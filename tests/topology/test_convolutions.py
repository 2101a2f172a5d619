"""Topologies of convolutions: Tucker-2, and what every known one makes of a kernel."""

from math import prod

import pytest

from bondwise import tucker2
from bondwise.errors import ShapeError
from bondwise.topology import registry


@pytest.mark.parametrize("kernel", [(3,), (3, 2), (2, 1, 3)])
@pytest.mark.parametrize("name", registry.names(kernels=True))
def test_the_last_column_modes_are_the_kernel_s(name, kernel):
    net = registry.find(name).convolution(8, 6, kernel, 2)
    assert net.shape == (8, 6 * prod(kernel))
    assert tuple(index.size for index in net.cols[-len(kernel) :]) == kernel
    assert len(net.cols) > len(kernel)
    assert {index.name for index in net.rows}.isdisjoint(index.name for index in net.cols)


def test_tucker2_cuts_the_channels_and_not_the_kernel():
    net = tucker2(8, 4, (3, 2), (6, 2))
    assert str(net) == "o p, p q y x, q i -> (o) (i y x)"
    assert net.core_shapes == ((8, 6), (6, 2, 3, 2), (2, 4))
    assert net.bonds == {"p": 6, "q": 2}
    assert str(tucker2(8, 4, (1, 2, 3), 2)) == "o p, p q z y x, q i -> (o) (i z y x)"
    assert tucker2(8, 4, 5, 2).core_shapes == tucker2(8, 4, (5,), (2, 2)).core_shapes
    assert str(tucker2(8, 4, (), 2)) == "o p, p q, q i -> (o) (i)"


def test_tucker2_is_of_convolutions_alone():
    assert "tucker2" in registry.names(kernels=True)
    assert "tucker2" not in registry.names()
    assert registry.find("tucker2").kernel_only


WRONG = [
    (((4, 2), 4, 3, 2), r"Channels \(4, 2\) came for o; write one size"),
    ((8, (2, 2), 3, 2), r"Channels \(2, 2\) came for i"),
    ((8, 4, (3, 3, 3, 3), 2), "it has one, two or three sizes"),
    ((8, 4, 3, (2, 2, 2)), "2"), ((8, 4, 3, 0), "0"), ((8, 4, 0, 2), "0"), ((0, 4, 3, 2), "0"),
]  # fmt: skip


@pytest.mark.parametrize(("given", "says"), WRONG, ids=str)
def test_what_tucker2_cannot_be_made_of_is_named(given, says):
    with pytest.raises(ShapeError, match=says):
        tucker2(*given)
