"""A stack as SVG: a level for each core, the input below, every index a line that rises."""

from collections.abc import Sequence
from dataclasses import dataclass

from bondwise.draw.picture import BOND, MODE, Picture
from bondwise.draw.placement import RADIUS, Point, label
from bondwise.network.network import Index, Network
from bondwise.network.stack import Level, levels

APART, HEIGHT, TURN, END = 58.0, 108.0, 36.0, 64.0
FLOOR = "fill:var(--bondwise-core,#8db4dd);fill-opacity:.18;stroke:none"


@dataclass(frozen=True)
class _Place:
    """Where everything is: the lane of each index, and the point of each level's core."""

    lanes: dict[Index, float]
    cores: tuple[Point, ...]

    @property
    def ends(self) -> tuple[float, float]:
        """Left and right of all levels."""
        xs = [*self.lanes.values(), *(x for x, _ in self.cores)]
        return min(xs) - 32, max(xs) + 32


def stack_svg(net: Network, order: Sequence[int], title: str | None = None) -> str:
    """The network pulled apart in an order of its cores, as an SVG element that stands alone.

    The input comes from below. A line that meets a core is one of its indices, a line that passes a
    level is an identity beside the core. What lies between two levels is what the data carries
    there. At the right are the shape of each level, out x in, and its entries.

    >>> from bondwise import lowrank
    >>> stack_svg(lowrank(6, 4, 2), (1, 0))[:33]
    '<svg xmlns="http://www.w3.org/200'
    """
    made = levels(net, order)
    lanes = _lanes(net)
    where = _Place(lanes, _points(made, lanes))
    picture = Picture()
    for level, (_, y) in zip(made, where.cores, strict=True):
        _level(picture, level, where.ends, y)
    for index in lanes:
        if any(index in (*level.before, *level.after) for level in made):
            _line(picture, net, made, where, index)
    for level, point in zip(made, where.cores, strict=True):
        picture.core(level.core, point, net.names[level.core])
    return picture.render(title or f"{net}, order {tuple(order)}")


def _lanes(net: Network) -> dict[Index, float]:
    """A column mode and a row mode of one core share a lane; bonds stand between their cores."""
    keys: dict[Index, tuple[float, str]] = {}
    for side in (net.cols, net.rows):
        count: dict[float, int] = {}
        for index in side:
            places = net.places[index.name]
            at = sum(places) / len(places)
            nth = count[at] = count.get(at, -1) + 1
            alone = f"{nth:03}" if len(places) == 1 else index.name
            keys.setdefault(index, (at, alone))
    for name, size in net.bonds.items():
        places = net.places[name]
        keys[Index(name, size)] = (sum(places) / len(places), f"~{name}")
    order = {key: nth for nth, key in enumerate(sorted(set(keys.values())))}
    return {index: APART * order[key] for index, key in keys.items()}


def _points(made: Sequence[Level], lanes: dict[Index, float]) -> tuple[Point, ...]:
    """Each core amid its modes, or its bonds where it has none, and off the lines that pass."""
    points: list[Point] = []
    bonds = {index for level in made for index in level.indices} - {
        *made[0].before,
        *made[-1].after,
    }
    for k, level in enumerate(made):
        own = [lanes[i] for i in level.indices if i not in bonds] or [
            lanes[i] for i in level.indices
        ]
        passing = [lanes[index] for index in level.before if index not in level.indices]
        middle = (min(own) + max(own)) / 2
        tries = (middle + sign * step * APART / 4 for step in range(99) for sign in (1, -1))
        free = (x for x in tries if all(abs(x - lane) > RADIUS + 5 for lane in passing))
        points.append((next(free), HEIGHT * -k))
    return tuple(points)


def _level(picture: Picture, level: Level, ends: tuple[float, float], y: float) -> None:
    left, right = ends
    out, inp = level.shape
    words = f"{out} x {inp}, {level.nnz:,} entries"
    picture.reach(left, y, 24.0)
    picture.reach(right, y, 24.0)
    band = (
        f'<rect x="{left:.1f}" y="{y - 23:.1f}" width="{right - left:.1f}" height="46" rx="8" '
        f'style="{FLOOR}"/>'
    )
    beside = picture.text(words, (right + 10, y + 4.5), "start")
    picture.group("level", band + beside, core=str(level.core), entries=str(level.nnz))


def _line(
    picture: Picture, net: Network, made: Sequence[Level], where: _Place, index: Index
) -> None:
    """An index from where it enters, through the cores that have it, to where it leaves."""
    x = where.lanes[index]
    row, col = index in net.rows, index in net.cols
    meets = [point for f, point in zip(made, where.cores, strict=True) if index in f.indices]
    bottom, top = where.cores[0][1] + END, where.cores[-1][1] - END
    points: list[Point] = [(x, bottom)] if col else []
    for k, (core_x, y) in enumerate(meets):
        if points:
            points.append((x, y + TURN))
        points.append((core_x, y))
        if row or k < len(meets) - 1:
            points.append((x, y - TURN))
    if row:
        points.append((x, top))
    line = picture.path(points, MODE if row or col else BOND, index.size)
    data = {"name": index.name, "size": str(index.size)}
    ends = [(x, top - 7)] * row + [(x, bottom + 17)] * col
    words = "".join(picture.text(label(index), at, "middle") for at in ends)
    if not ends:
        words = picture.text(label(index), (x + 9, meets[0][1] - HEIGHT / 2 + 4.5), "start")
    kind = " ".join(["mode"] * (row or col) + ["row"] * row + ["column"] * col) or "bond"
    picture.group(kind, line + words, **data)
