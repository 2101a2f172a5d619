"""The networks that every promise is tested on."""

from functools import cache

import bondwise as bw
from bondwise.topology import registry
from nets import thorough

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
    """All of them; without a mark every topology once, and one network of each odd kind."""
    sized = [registry.find(name).sized(*size) for name in registry.names() for size in SIZES]
    odd = [bw.parse(text, **sizes) for text, sizes in ODD]
    ring = bw.ring((2, 3), (3, 2), (2, 3))
    every = [*sized, ring, bw.mpo((2, 1, 3), (3, 2), 2), bw.kron((2, 3), (4, 5), 1), *odd]
    quick = [*sized[:: len(SIZES)], ring, *(odd[k] for k in (2, 3, 5, 7, 9, 10))]
    return [net if net in quick else thorough(net)[0] for net in every]


def pytest_generate_tests(metafunc):
    if "net" in metafunc.fixturenames:
        metafunc.parametrize("net", networks(), ids=lambda net: f"{net}, {net.parameters}")
