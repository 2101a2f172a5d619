"""What the cells say: ratios, their means and their worst."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from math import exp, log
from typing import Any

from speed.grid import FORMATS
from speed.subjects import DENSE, OURS, PEERS

Entry = dict[str, Any]
Ratio = Callable[[Entry], float | None]
SLOWER = 0.9  # below this share of another's speed a cell is listed
FASTER = 0.95  # share of dense's speed that every cell should have


@dataclass(frozen=True)
class Ask:
    """A figure that is asked for, over some cells; ``at_least`` says on which side it must lie."""

    what: str
    asked: float
    cells: Sequence[Entry]
    ratio: Ratio
    worst: bool  # the worst cell counts; otherwise the geometric mean
    at_least: bool = True

    @property
    def values(self) -> list[tuple[float, Entry]]:
        """Cells that have the ratio, worst first."""
        found = [(r, cell) for cell in self.cells if (r := self.ratio(cell)) is not None]
        return sorted(found, key=lambda pair: pair[0], reverse=not self.at_least)

    @property
    def value(self) -> float | None:
        """The figure, or None where no cell has it."""
        values = self.values
        if not values:
            return None
        return values[0][0] if self.worst else geometric(value for value, _ in values)

    @property
    def missed(self) -> list[tuple[float, Entry]]:
        """Cells on the wrong side, worst first."""
        return [pair for pair in self.values if (pair[0] >= self.asked) != self.at_least]

    @property
    def met(self) -> bool:
        """Whether the figure is on the right side."""
        value = self.value
        return value is not None and (value == self.asked or (value > self.asked) == self.at_least)


def asks(cells: Sequence[Entry]) -> list[Ask]:
    """Every figure asked for, those without cells left out."""
    forward, training, overhead = (of_kind(cells, k) for k in ("forward", "training", "overhead"))
    steps = of_kind(cells, "memory")
    half, bonds = at_most_half(forward), [c for c in forward if len(c["bonds"]) > 1]
    two, more = ([c for c in half if (c["cores"] == 2) == is_two] for is_two in (True, False))
    few = "networks of two and more bonds"
    listed = [
        Ask("forward, against dense, worst cell", FASTER, forward, over_dense, worst=True),
        Ask("forward, against the fastest peer, worst cell", SLOWER, forward, over_best, True),
        Ask(f"forward, against the best peer, mean, {few}", 1.6, bonds, over_best, worst=False),
        Ask("share of the ideal, two cores, worst cell", 0.85, two, share, worst=True),
        Ask("share of the ideal, more cores, worst cell", 0.55, more, share, worst=True),
        Ask("forward + backward, against the best peer, mean", 1.15, training, over_best, False),
        Ask("peak memory of training over dense's, worst cell", 1.0, steps, memory, True, False),
        Ask("64 x 64 at batch 1, over `F.linear`, worst network", 2.5, overhead, bare, True, False),
    ]
    return [ask for ask in listed if ask.values]


def of_kind(cells: Iterable[Entry], kind: str) -> list[Entry]:
    return [cell for cell in cells if cell["kind"] == kind]


def at_most_half(cells: Iterable[Entry]) -> list[Entry]:
    """Batches of at least 256 where the network needs at most half of dense's multiplications."""
    return [c for c in cells if c["batch"] >= 256 and 2 * c["macs"] <= c["dense_macs"]]


def over(*names: str, own: str = OURS) -> Ratio:
    """How many times faster ours is than the quickest mode of the quickest of some subjects."""

    def ratio(cell: Entry) -> float | None:
        times = [t for who, t in cell["seconds"].items() if who.split(",")[0] in names]
        return min(times) / cell["seconds"][own] if times and own in cell["seconds"] else None

    return ratio


over_dense, over_best = over(DENSE), over(*PEERS)


def share(cell: Entry) -> float:
    """Ideal time (dense's, times the least ratio of multiplications) over ours."""
    ideal = cell["seconds"][DENSE] * cell["macs"] / cell["dense_macs"]
    return ideal / cell["seconds"][OURS]


def memory(cell: Entry) -> float:
    """Peak bytes of a step of training, over dense's."""
    return cell["peak_bytes"][OURS] / cell["peak_bytes"][DENSE]


def bare(cell: Entry) -> float:
    """Seconds over those of the bare function on the dense weight."""
    return cell["seconds"][OURS] / cell["seconds"]["F.linear"]


def geometric(values: Iterable[float]) -> float:
    logs = [log(value) for value in values]
    return exp(sum(logs) / len(logs))


def mean(cells: Iterable[Entry], ratio: Ratio) -> float | None:
    """Geometric mean over the cells that have the ratio."""
    found = [value for cell in cells if (value := ratio(cell)) is not None]
    return geometric(found) if found else None


def networks(cells: Iterable[Entry]) -> list[str]:
    """Names in the order of the grid, then others."""
    found = dict.fromkeys(cell["network"] for cell in cells)
    return [name for name in FORMATS if name in found] + [n for n in found if n not in FORMATS]


def batches(cells: Iterable[Entry]) -> list[int]:
    return sorted({cell["batch"] for cell in cells})


def place(cell: Entry) -> str:
    """A cell in words."""
    out, inp = cell["weight"]
    return f"{cell['network']}, {out} x {inp}, batch {cell['batch']}"
