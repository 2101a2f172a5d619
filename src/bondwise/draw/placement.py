"""Where the cores of a network stand in a picture: in a chain, as a star or as a tree."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from bondwise.network.network import Index, Network

Node = int | str
"""A core by its position, or the dot of an index on three or more cores by its name."""

Point = tuple[float, float]

RADIUS, LEG, GAP, FLOOR = 17.0, 42.0, 44.0, 170.0


@dataclass(frozen=True)
class Edge:
    """A bond, or one arm of an index on three or more cores."""

    name: str
    ends: tuple[Node, Node]


@dataclass(frozen=True)
class Placement:
    """Points of all nodes, and the chains of cores that stand side by side, from left to right."""

    points: dict[Node, Point] = field(default_factory=dict[Node, Point])
    chains: tuple[tuple[int, ...], ...] = ()


def label(index: Index) -> str:
    """What is written beside a line: name and size."""
    return f"{index.name} {index.size}"


def width(text: str) -> float:
    """About how wide a label is."""
    return 7.0 * len(text)


def legs(net: Network, core: Node, side: Sequence[Index]) -> list[Index]:
    """Modes of one side that sit on this core alone."""
    return [i for i in side if net.places[i.name] == (core,)]


def edges(net: Network) -> list[Edge]:
    """All lines between nodes, in order of first use of their index."""
    found: list[Edge] = []
    for bond in net.bonds:
        places = net.places[bond]
        if len(places) == 2:
            found.append(Edge(bond, (places[0], places[1])))
        elif len(places) > 2:
            found.extend(Edge(bond, (k, bond)) for k in places)
    return found


def placement(net: Network) -> Placement:
    """A point for every core and dot; pieces that no bond joins stand side by side."""
    near = _neighbours(net)
    left = list(near)
    points: dict[Node, Point] = {}
    chains: list[tuple[int, ...]] = []
    shift = 0.0
    while left:
        piece = _reached(near, left[0])
        left = [node for node in left if node not in piece]
        made = _piece(net, {node: near[node] for node in near if node in piece})
        start = min(x - _room(net, node) / 2 for node, (x, _) in made.points.items())
        moved = {node: (x - start + shift, y) for node, (x, y) in made.points.items()}
        shift = max(x + _room(net, node) / 2 for node, (x, _) in moved.items()) + GAP
        points |= moved
        chains.extend(made.chains)
    return Placement(points, tuple(chains))


Near = dict[Node, list[Node]]


def _neighbours(net: Network) -> Near:
    near: Near = {k: [] for k in range(len(net.cores))}
    for edge in edges(net):
        one, two = edge.ends
        near.setdefault(two, [])
        near[one].append(two)
        near[two].append(one)
    return near


def _reached(near: Near, start: Node) -> list[Node]:
    found = [start]
    for node in found:
        found.extend(n for n in dict.fromkeys(near[node]) if n not in found)
    return found


def _piece(net: Network, near: Near) -> Placement:
    lines = sum(len(around) for around in near.values()) // 2
    centre = max(near, key=lambda node: len(near[node]))
    degree = len(near[centre])
    if lines == len(near) - 1 and degree > 2:
        star = _star(net, near, centre) if degree == len(near) - 1 else None
        return star or _tree(net, near)
    return _chain(net, near)


def _room(net: Network, node: Node) -> float:
    """Width that a node and its legs take."""
    sides = [legs(net, node, side) for side in (net.rows, net.cols)]
    return max(2 * RADIUS, *(leg_step(side) * len(side) for side in sides))


def leg_step(side: Sequence[Index]) -> float:
    """Distance between the legs on one side of a core."""
    return max((width(label(index)) for index in side), default=0.0) + 12


def _spread(net: Network, nodes: Sequence[Node], y: float, gap: float) -> dict[Node, Point]:
    """Nodes side by side around x = 0."""
    rooms = [_room(net, node) + gap for node in nodes]
    starts = [sum(rooms[:k]) - sum(rooms) / 2 for k in range(len(rooms))]
    return {n: (s + r / 2, y) for n, s, r in zip(nodes, starts, rooms, strict=True)}


def _star(net: Network, near: Near, centre: Node) -> Placement | None:
    """Row factors above the centre, column factors below, at most two cores beside it."""
    rows, cols = ({index.name for index in side} for side in (net.rows, net.cols))

    def has(node: Node, side: set[str]) -> bool:
        return isinstance(node, int) and not side.isdisjoint(net.names[node])

    arms = [node for node in near if node != centre]
    above = [node for node in arms if has(node, rows) and not has(node, cols)]
    below = [node for node in arms if has(node, cols) and not has(node, rows)]
    beside = [node for node in arms if node not in above and node not in below]
    if len(beside) > 2:
        return None
    points = _spread(net, above, -0.7 * FLOOR, 56.0) | _spread(net, below, 0.7 * FLOOR, 56.0)
    reach = max((abs(x) for x, _ in points.values()), default=0.0) / 2 + 2 * GAP + RADIUS
    for node, sign in zip(beside, (-1, 1), strict=False):
        points[node] = (sign * (reach + _room(net, node) / 2), 0.0)
    return Placement({**points, centre: (0.0, 0.0)})


def _tree(net: Network, near: Near) -> Placement:
    """The middle in the middle, its subtrees to the left and right, leaves stacked at the ends."""
    path = _longest_path(near)
    half = len(path) // 2
    step = max(_room(net, node) for node in near) + GAP + 28
    if len(path) % 2:
        middle, arms = path[half], near[path[half]]
        cut = (len(arms) + 1) // 2
        left = _stack(near, arms[:cut], middle, -1.0)
        right = _stack(near, arms[cut:], middle, 1.0)
        points = left | right | {middle: (0.0, 0.0)}
    else:
        one, two = path[half - 1], path[half]
        points = _stack(near, [one], two, -0.5) | _stack(near, [two], one, 0.5)
    return Placement({node: (x * step, y) for node, (x, y) in points.items()})


def _stack(near: Near, roots: Sequence[Node], parent: Node, column: float) -> dict[Node, Point]:
    """Subtrees one below the other, in the column given and those further out, centred on y = 0."""
    points: dict[Node, Point] = {}
    for root in roots:
        below = _stack(near, [n for n in near[root] if n != parent], root, column + _sign(column))
        ys = [y for _, y in points.values()]
        inner = [y for _, y in below.values()]
        shift = max(ys) + FLOOR - min(inner, default=0.0) if ys else 0.0
        points |= {node: (x, y + shift) for node, (x, y) in below.items()}
        points[root] = (column, shift)
    ys = [y for _, y in points.values()]
    middle = (max(ys) + min(ys)) / 2 if ys else 0.0
    return {node: (x, y - middle) for node, (x, y) in points.items()}


def _sign(x: float) -> int:
    return 1 if x > 0 else -1


def _longest_path(near: Near) -> list[Node]:
    far = _reached(near, next(iter(near)))[-1]
    paths = [[far]]
    for path in paths:
        paths.extend([*path, n] for n in near[path[-1]] if n not in path)
    return min(paths[-1], paths[-1][::-1], key=lambda path: str(path[0]).zfill(9))


def _chain(net: Network, near: Near) -> Placement:
    """Cores from left to right, along the chain or around the ring if there is one; dots below."""
    cores = [node for node in near if isinstance(node, int)]
    ends = [node for node in cores if len(set(near[node])) == 1]
    order = [ends[0] if ends else cores[0]]
    while len(order) < len(cores):
        rest = [node for node in cores if node not in order]
        order.append(min([n for n in rest if n in near[order[-1]]] or rest))
    labels = [width(f"{name} {size}") for name, size in net.bonds.items()]
    points = _spread(net, order, 0.0, max(labels, default=0.0) + GAP)
    for k, dot in enumerate(node for node in near if isinstance(node, str)):
        xs = [points[core][0] for core in net.places[dot]]
        middle = sum(xs) / len(xs)
        aside = 40 if any(abs(points[core][0] - middle) < 20 for core in order) else 0
        points[dot] = (middle + aside, 0.8 * FLOOR + 30 * k)
    return Placement(points, (tuple(order),))
