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
from draw.test_diagram import NETS as DRAWN
from draw.test_diagram import SPACE, assert_inside, groups, words

NETS = [
    *DRAWN,
    bw.parse("o i z, q, b b2 -> (o b) (i b2)", o=2, i=3, z=4, q=5, b=2, b2=3),
    bw.parse("z -> () ()", z=3),
]


def points(group):
    path = group.find(f"{SPACE}path").get("d")
    return [(float(x), float(y)) for x, y in re.findall(r"[ML]([-\d.]+) ([-\d.]+)", path)]


@pytest.mark.parametrize("net", NETS, ids=str)
def test_every_level_and_line_is_there_and_cores_stand_off_lines_that_pass(net):
    for order in islice(permutations(range(len(net.cores))), 0, 120, 7):
        root, made = ElementTree.fromstring(stack_svg(net, order)), levels(net, order)
        assert_inside(root)
        cores = groups(root, "core")
        assert [g.get("data-name") for g in cores] == [str(k) for k in order]
        assert [words(g) for g in groups(root, "level")] == [
            [f"{f.shape[0]} x {f.shape[1]}, {f.nnz:,} entries"] for f in made
        ]
        circles = [group.find(f"{SPACE}circle") for group in cores]
        at = [(float(c.get("cx")), float(c.get("cy"))) for c in circles]
        heights = [y for _, y in at]
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
        lines = {}
        for group in (*groups(root, "mode"), *bonds.values()):
            name, line = group.get("data-name"), group.find(f"{SPACE}path").get("d")
            lines[name] = points(group)
            ys = [y for _, y in lines[name]]
            assert ys == sorted(ys, reverse=True)
            for k in net.places[name]:
                x, y = at[order.index(k)]
                assert f"{x:.1f} {y:.1f}" in line
        for level, (x, y) in zip(made, at, strict=True):
            for index in set(level.before) - set(level.indices):
                below = [p for p in lines[index.name] if p[1] > y]
                assert abs(below[-1][0] - x) > RADIUS


def test_it_is_accessible_and_the_same_each_time():
    net = bw.lowrank(4, 3, 2)
    assert stack_svg(net, (1, 0)) == stack_svg(bw.parse(str(net), **net.sizes), [1, 0])
    root = ElementTree.fromstring(stack_svg(net, (1, 0)))
    assert root.get("role") == "img"
    assert root[0].text == "o a, a i -> (o) (i), order (1, 0)"
    assert ElementTree.fromstring(stack_svg(net, (1, 0), title="q & k"))[0].text == "q & k"
