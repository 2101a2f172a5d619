"""The networks that every promise is tested on, and the numpy einsum it is tested against."""

from functools import cache

import pytest

import bondwise as bw
import nets
from bondwise.topology import registry

SIZES = [(12, 18, 3), (24, 16, 2), (7, 5, 3), (1, 6, 2)]

ODD = [
    ("i2 o2 i1 o1 -> (o1 o2) (i1 i2)", {"o1": 2, "o2": 3, "i1": 4, "i2": 5}),
    ("b o i -> (b o) (b i)", {"b": 3, "o": 2, "i": 4}),
    ("b o a, b a i -> (b o) (b i)", {"b": 3, "o": 2, "a": 2, "i": 4}),
    ("o a b, c a i -> (o c b) (b i c)", {"b": 3, "o": 2, "a": 2, "i": 4, "c": 2}),
    ("o i z -> (o) (i)", {"o": 2, "i": 3, "z": 4}),
    ("o i z, q, b b2 -> (o b) (i b2)", {"o": 2, "i": 3, "z": 4, "q": 5, "b": 2, "b2": 3}),
    ("o, i -> (o) (i)", {"o": 4, "i": 3}),
    ("i -> () (i)", {"i": 3}),
    ("o -> (o) ()", {"o": 3}),
    ("z -> () ()", {"z": 3}),
    ("o r, i r, r -> (o) (i)", {"o": 4, "i": 3, "r": 5}),
    ("o i, o, i, i -> (o) (i)", {"o": 4, "i": 3}),
    ("b i, o b, b -> (o b) (i b)", {"o": 4, "i": 3, "b": 2}),
    (
        "o1 a, a b i1, b i2 o2 -> (o2 o1) (i2 i1)",
        {"o1": 2, "a": 3, "b": 2, "i1": 3, "i2": 2, "o2": 3},
    ),
    ("z a o, a b i, b z -> (o) (i)", {"z": 2, "a": 3, "b": 2, "o": 4, "i": 3}),
    ("o a, a i -> (o) (i)", {"o": 1, "a": 1, "i": 1}),
    ("o1 o2 a, i2 a i1 -> (o1 o2) (i1 i2)", {"o1": 1, "o2": 6, "a": 5, "i1": 1, "i2": 4}),
]


@cache
def networks():
    return tuple(_networks())


def _networks():
    for name in registry.names():
        for out, inp, rank in SIZES:
            yield registry.find(name).sized(out, inp, rank)
    yield bw.ring((2, 3), (3, 2), (2, 3))
    yield bw.mpo((2, 1, 3), (3, 2), 2)
    yield bw.kron((2, 3), (4, 5), 1)
    for text, sizes in ODD:
        yield bw.parse(text, **sizes)


def is_canonical(net):
    """Those of the quick set: every topology once, and one network of each odd kind."""
    return any(
        net == one
        for one in (
            *(registry.find(name).sized(*SIZES[0]) for name in registry.names()),
            bw.ring((2, 3), (3, 2), (2, 3)),
            *(bw.parse(ODD[k][0], **ODD[k][1]) for k in (2, 3, 5, 7, 9, 10)),
        )
    )


def pytest_generate_tests(metafunc):
    if "net" in metafunc.fixturenames:
        marks = {True: (), False: pytest.mark.thorough}
        metafunc.parametrize(
            "net",
            [
                pytest.param(net, marks=marks[is_canonical(net)], id=f"{net}, {net.parameters}")
                for net in networks()
            ],
        )


@pytest.fixture(scope="session")
def reference():
    """Network and cores -> the weight, by code that shares nothing with ours."""
    return nets.reference


@pytest.fixture(scope="session")
def make_cores():
    """Network -> random float64 cores."""
    return nets.random_cores
