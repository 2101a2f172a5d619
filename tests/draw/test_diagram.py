"""Pictures hold everything that the network has, are XML, and draw bonds by size."""

import re
from itertools import combinations
from xml.etree import ElementTree

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import bondwise as bw
from bondwise.draw.diagram import stroke, svg, text
from bondwise.draw.placement import RADIUS, placement
from bondwise.topology import registry

SPACE = "{http://www.w3.org/2000/svg}"
NETS = [
    *(registry.find(name).sized(24, 36, 3) for name in registry.names()),
    *(bw.tree((2,) * n, (2,) * n, 3) for n in (1, 2, 3, 5, 7)),
    bw.ring((2, 2), (3, 3), 2),
    bw.kron((2, 2, 2), (3, 3, 3), 2),
    bw.kron((2, 2, 2, 2, 2), (3, 3, 3, 3, 3), 2),
    bw.tucker((2, 2, 2), (3, 3, 3), 2),
    bw.lowrank((8, 9, 8), (4, 4, 4, 4), 100),
    bw.parse("a b c o, a d e, b d f, c e f i -> (o) (i)", a=2, b=3, c=4, d=5, e=6, f=7, o=8, i=9),
    bw.parse("b o r, r b i -> (b o) (b i)", b=3, o=4, i=5, r=2),
    bw.parse("o1 s, s a i1, a o2 s -> (o1 o2) (i1)", o1=4, i1=6, o2=5, s=3, a=2),
    bw.parse("o a q, a i -> (o) (i)", o=4, i=5, a=3, q=2),
    bw.parse("o1 i1, o2 i2 -> (o1 o2) (i1 i2)", o1=2, i1=3, o2=3, i2=2),
    bw.parse("o -> (o) ()", o=3),
]


def groups(root, kind):
    return [g for g in root.iter(f"{SPACE}g") if kind in g.get("class").split()]


def words(group):
    return ["".join(t.itertext()) for t in group.iter(f"{SPACE}text")]


def assert_inside(root):
    x, y, w, h = map(float, root.get("viewBox").split())
    for tag, across, down in (("circle", "cx", "cy"), ("text", "x", "y")):
        for found in root.iter(f"{SPACE}{tag}"):
            assert x <= float(found.get(across)) <= x + w
            assert y <= float(found.get(down)) <= y + h


every_net = pytest.mark.parametrize("net", NETS, ids=str)


@every_net
def test_everything_is_in_the_picture_and_no_cores_overlap(net):
    root, points = ElementTree.fromstring(svg(net)), placement(net).points
    assert [g.get("data-name") for g in groups(root, "core")] == [
        str(k) for k in points if isinstance(k, int)
    ]
    labels = [label for g in groups(root, "bond") for label in words(g)]
    assert sorted(labels) == sorted(f"{name} {size}" for name, size in net.bonds.items())
    for kind, side in (("row", net.rows), ("column", net.cols)):
        labels = [label for g in groups(root, kind) for label in words(g)]
        assert sorted(labels) == sorted(f"{index.name} {index.size}" for index in side)
    assert_inside(root)
    for one, two in combinations(points.values(), 2):
        assert (one[0] - two[0]) ** 2 + (one[1] - two[1]) ** 2 > (2 * RADIUS) ** 2


def test_it_is_accessible_and_stands_alone():
    root = ElementTree.fromstring(svg(bw.lowrank(4, 3, 2), title="q & k <projection>"))
    assert (root.tag, root.get("role")) == (f"{SPACE}svg", "img")
    assert (root[0].tag, root[0].text) == (f"{SPACE}title", "q & k <projection>")
    assert ElementTree.fromstring(svg(bw.lowrank(4, 3, 2)))[0].text == "o a, a i -> (o) (i)"
    assert "currentColor" in svg(bw.lowrank(4, 3, 2))


@settings(deadline=None, max_examples=40)
@given(one=st.integers(1, 4096), two=st.integers(1, 4096))
def test_a_larger_bond_is_wider(one, two):
    root = ElementTree.fromstring(svg(bw.mpo((2, 2, 2), (2, 2, 2), (one, two))))
    lines = [g.find(f"{SPACE}path") for g in groups(root, "bond")]
    first, second = (float(line.get("stroke-width")) for line in lines)
    assert (first, second) == (stroke(one), stroke(two))
    if two >= 1.05 * one:
        assert second > first


def test_row_modes_point_up_and_column_modes_down():
    root = ElementTree.fromstring(svg(bw.mpo((2, 3), (4, 5), 6)))
    for kind, sign in (("row", -1), ("column", 1)):
        for group in groups(root, kind):
            ys = [float(y) for _, y in re.findall(r"([-\d.]+) ([-\d.]+)", group[0].get("d"))]
            assert sign * (ys[-1] - ys[0]) > 0


def test_a_chain_goes_from_left_to_right_and_tucker_stands_around_its_core():
    points = placement(bw.mpo((2,) * 5, (3,) * 5, 4)).points
    xs = [points[k][0] for k in range(5)]
    assert xs == sorted(xs)
    assert {y for _, y in points.values()} == {0.0}
    points = placement(bw.tucker((2, 3), (4, 5), 2)).points
    assert max(points[1][1], points[3][1]) < points[0][1] < min(points[2][1], points[4][1])


@every_net
def test_the_text_form_names_everything_within_80_columns_and_pictures_repeat(net):
    again, lines = bw.parse(str(net), **net.sizes), text(net).splitlines()
    assert (svg(again), text(again)) == (svg(net), text(net))
    assert max(map(len, lines)) <= 80
    assert all(line == line.rstrip() for line in lines)
    for name, size in net.sizes.items():
        assert re.search(rf"\b{name} {size}\b", text(net))
    for k in range(len(net.cores)):
        assert f"({k}) " in text(net)


def said(html):
    root = ElementTree.fromstring(html.replace("<br>", "<br/>"))
    return " ".join("".join(root.itertext()).split())


@pytest.mark.parametrize("net", [NETS[0], bw.parse("o i -> (o) (i)", o=2, i=3)], ids=str)
def test_in_a_notebook_networks_and_layers_draw_themselves(net):
    html = net._repr_html_()
    assert svg(net) in html
    assert f"{net.parameters} numbers" in said(html)
    layer = bw.TensorLinear(bw.lowrank(6, 4, 2))
    html = layer._repr_html_()
    assert svg(layer.network) in html
    assert said(html).endswith("TensorLinear, 6 x 4, 20 numbers stored")
    assert "TensorEmbedding" in bw.TensorEmbedding(bw.lowrank(6, 4, 2))._repr_html_()
