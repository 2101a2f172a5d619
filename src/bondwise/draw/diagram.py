"""A network as SVG or text: cores, bonds drawn by size, row modes up, column modes down."""

from collections.abc import Sequence
from math import log2
from textwrap import wrap

from bondwise.draw.picture import BOND, DOT, MODE, Picture, stroke
from bondwise.draw.placement import (
    LEG,
    RADIUS,
    Edge,
    Node,
    Placement,
    Point,
    edges,
    label,
    leg_step,
    legs,
    placement,
    width,
)
from bondwise.network.network import Index, Network

LANE = 26.0


def svg(net: Network, title: str | None = None) -> str:
    """The network as an SVG element that stands alone in any page, light or dark.

    Cores are circles with their position; a bond is as wide as the logarithm of its size. Row modes
    point up, column modes down. An index on three or more cores has a dot where its lines meet,
    and so has a mode on several cores (a block index). Colours follow ``currentColor`` and the CSS
    variables ``--bondwise-core`` and ``--bondwise-bond``.

    >>> from bondwise import lowrank
    >>> svg(lowrank(6, 4, 2))[:33]
    '<svg xmlns="http://www.w3.org/200'
    """
    picture = Picture()
    where = placement(net)
    _bonds(picture, net, where)
    for side, up in ((net.rows, -1), (net.cols, 1)):
        _modes(picture, net, where, side, up)
        _blocks(picture, net, where, side, up)
    for node, point in where.points.items():
        if isinstance(node, int):
            picture.core(node, point, net.names[node])
    return picture.render(title or str(net))


def text(net: Network) -> str:
    """The network in lines of at most 80 columns: every core with its modes, every bond as a bar.

    >>> from bondwise import lowrank
    >>> print(text(lowrank(6, 4, 2)))
    6 x 4 in 2 cores, 20 numbers
    (0) up o 6
    (1) down i 4
    a 2 == (0) (1)
    """
    out, inp = net.shape
    count = len(net.cores)
    lines = [f"{out} x {inp} in {count} core{'s'[: count != 1]}, {net.parameters:,} numbers"]
    for k, names in enumerate(net.names):
        sides = (("up", net.rows), ("down", net.cols))
        found = [
            f"{word} {', '.join(here)}"
            for word, side in sides
            if (here := [label(index) for index in side if index.name in names])
        ]
        lines.append(f"({k}) {'; '.join(found) or 'bonds only'}")
    for bond, size in net.bonds.items():
        bar = "=" * (1 + round(log2(size)))
        lines.append(f"{bond} {size} {bar} {' '.join(f'({k})' for k in net.places[bond])}")
    return "\n".join(part for line in lines for part in wrap(line, 80, subsequent_indent="    "))


def _bonds(picture: Picture, net: Network, where: Placement) -> None:
    below: list[Edge] = []
    beside: dict[tuple[object, ...], list[Edge]] = {}
    for edge in edges(net):
        if _is_led_below(edge, where):
            below.append(edge)
        else:
            beside.setdefault(edge.ends, []).append(edge)
    for group in beside.values():
        for k, edge in enumerate(group):
            _straight(picture, net, where, edge, 24 * (k - (len(group) - 1) / 2))
    for lane, edge in enumerate(sorted(below, key=lambda edge: _span(edge, where))):
        _led_below(picture, net, where, edge, lane)
    for name, size in net.bonds.items():
        if len(net.places[name]) == 1:
            _stub(picture, where.points[net.places[name][0]], name, size)
    _dots(picture, net, where)


def _dots(picture: Picture, net: Network, where: Placement) -> None:
    """Where the lines of an index on three or more cores meet."""
    for name, size in net.bonds.items():
        if name in where.points:
            x, y = where.points[name]
            dot = picture.circle((x, y), DOT, "fill:currentColor")
            flat = any(where.points[core][1] == y for core in net.places[name])
            words = picture.text(f"{name} {size}", (x + 11, y - 11 if flat else y + 5), "start")
            picture.group("bond", dot + words, name=name, size=str(size))


def _span(edge: Edge, where: Placement) -> float:
    one, two = (where.points[end] for end in edge.ends)
    return abs(one[0] - two[0])


def _is_led_below(edge: Edge, where: Placement) -> bool:
    """Whether other cores of a row stand between the two."""
    for row in where.rows:
        if all(end in row for end in edge.ends):
            one, two = (row.index(end) for end in edge.ends if isinstance(end, int))
            return abs(one - two) > 1
    return False


def _straight(picture: Picture, net: Network, where: Placement, edge: Edge, aside: float) -> None:
    (x1, y1), (x2, y2) = (where.points[end] for end in edge.ends)
    size = net.sizes[edge.name]
    bent = [(x1, y1), (x1 + 24, y1 + aside), (x2 - 24, y2 + aside), (x2, y2)]
    line = picture.path(bent if aside else [(x1, y1), (x2, y2)], BOND, size)
    words = (
        ""
        if isinstance(edge.ends[1], str)
        else _beside(picture, net, edge, (x1, y1), (x2, y2), aside)
    )
    picture.group("bond", line + words, name=edge.name, size=str(size))


def _beside(
    picture: Picture, net: Network, edge: Edge, one: Point, two: Point, aside: float
) -> str:
    """The label of a straight bond: above a flat line, outside a steep one."""
    size = net.sizes[edge.name]
    words = f"{edge.name} {size}"
    x, y = (one[0] + two[0]) / 2, (one[1] + two[1]) / 2 + aside
    dx, dy = abs(one[0] - two[0]), abs(one[1] - two[1])
    if dx >= dy:
        rise = dy / (dx or 1) * width(words) / 2
        return picture.text(words, (x, y - 6 - stroke(size) / 2 - rise), "middle")
    outside = 1 if two[0] >= one[0] else -1
    anchor = "start" if outside > 0 else "end"
    return picture.text(words, (x + outside * (9 + stroke(size) / 2), y + 4), anchor)


def _led_below(picture: Picture, net: Network, where: Placement, edge: Edge, lane: int) -> None:
    """From the one core down, under all legs, and up to the other; around the ends of the row."""
    row = next(row for row in where.rows if edge.ends[0] in row)
    one, two = sorted(edge.ends, key=lambda end: where.points[end])
    (x1, y), (x2, _) = where.points[one], where.points[two]
    size = net.sizes[edge.name]
    left = -1 if one == row[0] else 1
    right = 1 if two == row[-1] else -1
    room = RADIUS + 22 + 7 * lane
    floor = y + RADIUS + LEG + LANE * (lane + 1.9)
    down, up = x1 + left * _clear(net, one, room), x2 + right * _clear(net, two, room)
    start, end = y + 9 * (left > 0), y + 9 * (right < 0)
    line = [(x1, start), (down, start), (down, floor), (up, floor), (up, end), (x2, end)]
    words = picture.text(
        f"{edge.name} {size}", ((down + up) / 2, floor - 5 - stroke(size) / 2), "middle"
    )
    picture.group("bond", picture.path(line, BOND, size) + words, name=edge.name, size=str(size))


def _clear(net: Network, core: Node, room: float) -> float:
    """How far from a core a line can pass its legs."""
    sides = [legs(net, core, side) for side in (net.rows, net.cols)]
    return max(room, *(leg_step(side) * len(side) / 2 + room - RADIUS - 12 for side in sides))


def _stub(picture: Picture, at: Point, name: str, size: int) -> None:
    """A summed index on one core: a short line that ends in a dot."""
    end = (at[0] + 32, at[1] + 32)
    inside = picture.path([at, end], BOND, size) + picture.circle(end, DOT, "fill:currentColor")
    words = picture.text(f"{name} {size}", (end[0] + 9, end[1] + 5), "start")
    picture.group("bond", inside + words, name=name, size=str(size))


def _modes(
    picture: Picture, net: Network, where: Placement, side: Sequence[Index], up: int
) -> None:
    for core in range(len(net.cores)):
        x, y = where.points[core]
        own = legs(net, core, side)
        for k, index in enumerate(own):
            tip = (x + leg_step(own) * (k - (len(own) - 1) / 2), y + up * (RADIUS + LEG))
            _leg(picture, [(x, y), tip], index, up)


def _leg(picture: Picture, points: Sequence[Point], index: Index, up: int, more: str = "") -> None:
    x, y = points[-1]
    line = picture.path(points, MODE, index.size)
    words = picture.text(label(index), (x, y - 7 if up < 0 else y + 17), "middle")
    kind = "row" if up < 0 else "column"
    picture.group(f"mode {kind}", more + line + words, name=index.name, size=str(index.size))


def _blocks(
    picture: Picture, net: Network, where: Placement, side: Sequence[Index], up: int
) -> None:
    """Modes on several cores: their lines meet in a dot, and one leg goes on."""
    shared = [index for index in side if len(net.places[index.name]) > 1]
    for k, index in enumerate(shared):
        at = [where.points[core] for core in net.places[index.name]]
        x = sum(x for x, _ in at) / len(at) + leg_step(shared) * (k - (len(shared) - 1) / 2)
        y = (min if up < 0 else max)(y for _, y in at) + up * (RADIUS + LEG)
        arms = "".join(picture.path([point, (x, y)], MODE, index.size) for point in at)
        dot = picture.circle((x, y), DOT, "fill:currentColor")
        _leg(picture, [(x, y), (x, y + up * LEG * 0.7)], index, up, arms + dot)
