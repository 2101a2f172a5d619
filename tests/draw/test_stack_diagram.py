"""Pictures of stacks hold every level and every line, and cores stand off lines that only pass."""

import re
from itertools import islice, permutations
from xml.etree import ElementTree

import pytest

import bondwise as bw
from bondwise.draw.picture import stroke
from bondwise.draw.placement import RADIUS
from bondwise.draw.stack_diagram import stack_svg
from bondwise.network.stack import levels
from bondwise.topology import registry

SPACE = "{http://www.w3.org/2000/svg}"
NETS = [
    *(registry.find(name).sized(24, 36, 3) for name in registry.names()),
    bw.ring((2, 2), (3, 3), 2),
    bw.parse("b o r, r b i -> (b o) (b i)", b=3, o=4, i=5, r=2),
    bw.parse("o a q, a i -> (o) (i)", o=4, i=5, a=3, q=2),
    bw.parse("o i z, q, b b2 -> (o b) (i b2)", o=2, i=3, z=4, q=5, b=2, b2=3),
    bw.parse("o -> (o) ()", o=3),
    bw.parse("z -> () ()", z=3),
]
every_net = pytest.mark.parametrize("net", NETS, ids=str)


def some_orders(net):
    return list(islice(permutations(range(len(net.cores))), 0, 120, 7))


def groups(root, kind):
    return [g for g in root.iter(f"{SPACE}g") if kind in g.get("class").split()]


def words(group):
    return ["".join(text.itertext()) for text in group.iter(f"{SPACE}text")]


def points(group):
    path = group.find(f"{SPACE}path").get("d")
    return [(float(x), float(y)) for x, y in re.findall(r"[ML]([-\d.]+) ([-\d.]+)", path)]


@every_net
def test_every_level_and_every_line_is_there(net):
    for order in some_orders(net):
        root, made = ElementTree.fromstring(stack_svg(net, order)), levels(net, order)
        assert [g.get("data-name") for g in groups(root, "core")] == [str(k) for k in order]
        assert [words(g) for g in groups(root, "level")] == [
            [f"{f.shape[0]} x {f.shape[1]}, {f.nnz:,} entries"] for f in made
        ]
        heights = [float(g.find(f"{SPACE}circle").get("cy")) for g in groups(root, "core")]
        assert heights == sorted(heights, reverse=True)  # y falls as the levels rise
        for kind, side in (("row", net.rows), ("column", net.cols)):
            labels = {label for g in groups(root, kind) for label in words(g)}
            assert labels == {f"{index.name} {index.size}" for index in side}
        carried = {i.name for f in made for i in (*f.before, *f.after)}
        bonds = {g.get("data-name"): g for g in groups(root, "bond")}
        assert set(bonds) == {name for name in net.bonds if name in carried}
        for name, group in bonds.items():
            assert words(group) == [f"{name} {net.sizes[name]}"]
            width = float(group.find(f"{SPACE}path").get("stroke-width"))
            assert width == stroke(net.sizes[name])


@every_net
def test_lines_rise_through_their_cores(net):
    for order in some_orders(net):
        root = ElementTree.fromstring(stack_svg(net, order))
        cores = [group.find(f"{SPACE}circle") for group in groups(root, "core")]
        at = [f"{float(c.get('cx')):.1f} {float(c.get('cy')):.1f}" for c in cores]
        for group in (*groups(root, "mode"), *groups(root, "bond")):
            ys = [y for _, y in points(group)]
            assert ys == sorted(ys, reverse=True)
            line = group.find(f"{SPACE}path").get("d")
            for k in net.places[group.get("data-name")]:
                assert at[order.index(k)] in line


@every_net
def test_everything_is_inside_and_cores_stand_off_lines_that_pass(net):
    for order in some_orders(net):
        root, made = ElementTree.fromstring(stack_svg(net, order)), levels(net, order)
        x, y, w, h = map(float, root.get("viewBox").split())
        for label in root.iter(f"{SPACE}text"):
            assert x <= float(label.get("x")) <= x + w
            assert y <= float(label.get("y")) <= y + h
        lines = {
            g.get("data-name"): points(g) for g in (*groups(root, "mode"), *groups(root, "bond"))
        }
        for level, group in zip(made, groups(root, "core"), strict=True):
            circle = group.find(f"{SPACE}circle")
            assert x <= float(circle.get("cx")) <= x + w
            for index in set(level.before) - set(level.indices):
                below = [p for p in lines[index.name] if p[1] > float(circle.get("cy"))]
                assert abs(below[-1][0] - float(circle.get("cx"))) > RADIUS


def test_it_is_accessible_and_the_same_each_time():
    net = bw.lowrank(4, 3, 2)
    assert stack_svg(net, (1, 0)) == stack_svg(bw.parse(str(net), **net.sizes), [1, 0])
    root = ElementTree.fromstring(stack_svg(net, (1, 0)))
    assert root.get("role") == "img"
    assert root[0].text == "o a, a i -> (o) (i), order (1, 0)"
    assert ElementTree.fromstring(stack_svg(net, (1, 0), title="q & k"))[0].text == "q & k"
