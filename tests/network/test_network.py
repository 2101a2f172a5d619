import pytest

import bondwise as bw
from bondwise.errors import NetworkError
from bondwise.network.ranks import capped, layouts, useful_ranks


def test_public_properties():
    net = bw.parse("o1 i1 a, a o2 i2 -> (o1 o2) (i1 i2)", o1=8, i1=4, a=16, o2=3, i2=5)
    assert net.shape == (24, 20)
    assert net.parameters == 8 * 4 * 16 + 16 * 3 * 5
    assert net.bonds == {"a": 16}
    assert [[index.name for index in core] for core in net.cores] == [
        ["o1", "i1", "a"],
        ["a", "o2", "i2"],
    ]


@pytest.mark.parametrize(
    ("net", "text"),
    [
        (bw.lowrank(8, 6, 3), "o a, a i -> (o) (i)"),
        (bw.lowrank((2, 4), 6, 3), "o1 o2 a, a i -> (o1 o2) (i)"),
        (bw.mpo((2, 4, 3), (3, 2, 5), 3), "o1 i1 a, a o2 i2 b, b o3 i3 -> (o1 o2 o3) (i1 i2 i3)"),
        (bw.mpo((2, 4), (3, 2, 5), 3), "o1 i1 a, a o2 i2 b, b i3 -> (o1 o2) (i1 i2 i3)"),
        (bw.mpo(8, 6, 3), "o1 i1 -> (o1) (i1)"),
        (bw.ring((2, 4), (3, 2), 3), "z o1 i1 a, a o2 i2 z -> (o1 o2) (i1 i2)"),
        (
            bw.tucker((2, 4), (3, 2), 3),
            "p1 p2 q1 q2, o1 p1, i1 q1, o2 p2, i2 q2 -> (o1 o2) (i1 i2)",
        ),
        (bw.cp((2, 4), (3, 2), 3), "o1 r, i1 r, o2 r, i2 r -> (o1 o2) (i1 i2)"),
        (bw.kron((2, 4), (3, 2), 3), "s o1 i1, s o2 i2 -> (o1 o2) (i1 i2)"),
        (bw.btt((2, 4), (3, 2), 3), "o2 i1 o1 a, i1 o2 a i2 -> (o1 o2) (i1 i2)"),
        (bw.btt(8, 6, 3), "o2 i1 o1 a, i1 o2 a i2 -> (o1 o2) (i1 i2)"),
        (bw.tree((2, 4), (3, 2), 3), "o1 i1 a, o2 i2 a -> (o1 o2) (i1 i2)"),
        (
            bw.tree((2, 4, 2), (3, 2, 2), 3),
            "o1 i1 a, o2 i2 b, a b c, o3 i3 c -> (o1 o2 o3) (i1 i2 i3)",
        ),
    ],
)
def test_topologies_are_written_as_promised_and_read_back(net, text):
    assert str(net) == text
    assert bw.parse(text, **net.sizes) == net
    assert eval(repr(net), {"parse": bw.parse}) == net


@pytest.mark.parametrize(
    ("text", "sizes", "says"),
    [
        ("o a a i -> (o) (i)", {"o": 2, "a": 2, "i": 2}, "a stands 2 times in core 0"),
        ("o a, a i -> (o) (i)", {"o": 2, "a": 2}, "Index i .* has no size"),
        ("o i -> (o) (i)", {"o": 2, "i": 2, "q": 3}, "q=3 has no index"),
        ("o i -> (o) (i j)", {"o": 2, "i": 2, "j": 3}, "j sits on no core"),
        ("o i", {"o": 2, "i": 2}, "is no network"),
        ("o i, -> (o) (i)", {"o": 2, "i": 2}, "empty core"),
        ("o i -> (o o) (i)", {"o": 2, "i": 2}, "o stands 2 times in rows"),
        ("o i -> (o) (i)", {"o": 0, "i": 2}, "has size 0"),
    ],
)
def test_a_bad_network_is_refused_in_one_sentence(text, sizes, says):
    with pytest.raises(NetworkError, match=says):
        bw.parse(text, **sizes)


def test_useful_ranks():
    assert useful_ranks(bw.lowrank(4, 6, 100)) == {"a": 4}
    assert useful_ranks(bw.mpo((2, 2, 2), (2, 2, 2), 100)) == {"a": 4, "b": 4}
    assert useful_ranks(bw.btt((2, 8), (8, 3), 100)) == {"a": 2}
    assert capped(bw.kron((2, 8), (3, 8), 100)).bonds == {"s": 6}
    assert capped(bw.cp((2, 3), (5, 2), 1000)).bonds == {"r": 12}


def test_layouts_follow_from_the_network_alone():
    def matrices(net):
        return [lay.shape(sizes) for lay, sizes in zip(layouts(net), net.core_shapes, strict=True)]

    assert matrices(bw.lowrank(8, 6, 3)) == [(8, 3), (3, 6)]
    assert matrices(bw.mpo((2, 4), (3, 5), 7)) == [(2, 21), (28, 5)]
    assert matrices(bw.ring((2, 4), (3, 5), 7)) == [(2, 7 * 3 * 7), (7 * 4 * 7, 5)]
    assert matrices(bw.btt((2, 4), (3, 5), 7)) == [(8, 21), (28, 15)]
    assert matrices(bw.cp((2, 4), (3, 5), 7)) == [(2, 7), (7, 3), (28, 1), (7, 5)]
