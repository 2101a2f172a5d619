"""Which network, other than low rank, is worth a fit: all are tried in a few blocks first.

Blocks of a model are alike: what wins at a weight of one block mostly wins at the same weight of
the others. So every shape is fitted in two blocks only, the best of each kind of weight is fitted
once at every weight of that kind, and its errors at other ranks are those of low rank with as many
numbers, times what it gained there.
"""

from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import mean

from torch import nn

from bondwise.choose import cost
from bondwise.choose.by_rank import STEP
from bondwise.choose.candidates import Candidate, Group, candidates, grouped
from bondwise.choose.fitted import Shape, fitted, series, shape
from bondwise.flow.chains.chain import Chain, inside
from bondwise.layers.hosts.registry import matrix_of

PLACES = (1 / 3, 2 / 3)  # of the chain: the blocks in which every shape is fitted
HEAD_SIZES = ("head_dim", "attention_head_size", "key_value_proj_dim")  # what models call it
MOST = 0.7  # of the dense numbers: above it most networks need more multiplications than dense
WORTH = 0.97  # a squared error above this part of low rank's is not worth fits of its own


@dataclass(frozen=True)
class Scout:
    """The shape that won in some blocks, for each kind of weight that has one.

    Attributes:
        best: by the weight's path inside its block.
        blocks: paths of the blocks.
        keep: fraction of the dense numbers at which shapes are fitted.
        bits: of a stored number.
    """

    best: Mapping[str, Shape]
    blocks: Sequence[str]
    keep: float
    bits: int

    def more(self, group: Group, exact: Sequence[Candidate]) -> Iterator[Candidate]:
        """Further candidates of a group, given those of low rank."""
        for name, weight in group.weights.items():
            won = self.best.get(inside(self.blocks, name))
            low = _curve(exact, name)
            if won is None or not low:
                continue
            one = replace(group, weights={name: weight})
            heads = {name: won.rows[0]}  # of a Tucker network; others don't look
            for tried in fitted(
                one, (self.keep,), bits=self.bits, prefer="size", heads=heads, among={won}
            ):
                gain = tried.error / (_at(low, tried.numbers) or 1.0)
                if gain <= WORTH:
                    found = self._ranks(name, won, gain, low)
                    yield from (replace(c, macs=c.macs * group.rows) for c in found)

    def _ranks(
        self, name: str, won: Shape, gain: float, low: Sequence[tuple[int, float]]
    ) -> Iterator[Candidate]:
        out, inp = won.whole
        (nets,) = series(name, out, inp, won.format, self.bits, {won}, won.rows[0])
        for rank in range(STEP, nets.top + 1, STEP):
            net = nets.at(rank)
            price = cost.network(net, self.bits)
            if price.numbers < out * inp:
                error = gain * _at(low, price.numbers)
                yield Candidate.of(name, won.format, (net,), price, error)


def scout(
    model: nn.Module, chain: Chain, *, keep: float, bits: int, prefer: str, formats: Sequence[str]
) -> Scout:
    """Fit every shape of some formats at the weights of two blocks, and take what wins.

    Args:
        model: the dense model; it is not changed.
        chain: its blocks, the weights to look at, and what enters the first block.
        keep: fraction of the dense numbers; shapes are fitted there, or at `MOST` of them.
        bits: of a stored number.
        prefer: "speed" leaves out what needs as many multiplications as dense or more.
        formats: names of topologies; none for no scouting.
    """
    keep = min(keep, MOST)  # what a shape gains on low rank changes little with the rank
    gains: dict[str, dict[Shape, list[float]]] = {}
    stops = {int(place * len(chain.blocks)) for place in PLACES} if formats else set[int]()
    for stop in chain.walk(model, stops):
        for group in grouped(stop.layers, stop.seen, stop.unseen):
            exact = candidates(group, bits=bits, formats=("lowrank",))
            lows = {w: _curve(exact, w) for w in group.weights}
            heads = {w: count for w in group.weights if (count := heads_of(model, w))}
            for tried in fitted(
                group, (keep,), bits=bits, prefer=prefer, formats=formats, heads=heads
            ):
                low = _at(lows[tried.weight], tried.numbers)
                if low > 0:
                    kind = gains.setdefault(inside(chain.blocks, tried.weight), {})
                    kind.setdefault(shape(tried), []).append(tried.error / low)
    best: dict[str, Shape] = {}
    for kind, ratios in gains.items():
        won = min(ratios, key=lambda s: mean(ratios[s]))
        if mean(ratios[won]) <= WORTH:
            best[kind] = won
    return Scout(best, chain.blocks, keep, bits)


def heads_of(model: nn.Module, name: str) -> int:
    """How many heads the outputs of a weight are, by what its module's parent says; 0 for none."""
    parent = model.get_submodule(name.rpartition(".")[0])
    size = next((s for key in HEAD_SIZES if isinstance(s := getattr(parent, key, None), int)), 0)
    out = len(matrix_of(model.get_submodule(name)))
    return out // size if size and out % size == 0 and out > size else 0


def _curve(exact: Sequence[Candidate], name: str) -> list[tuple[int, float]]:
    """Stored numbers and error of low rank of one weight, by rising numbers."""
    rows = (c for c in exact if c.weight == name and c.format == "lowrank")
    return sorted((c.numbers, c.error) for c in rows)


def _at(low: Sequence[tuple[int, float]], numbers: int) -> float:
    """The error of low rank with at most so many numbers; 1 where there is none."""
    k = bisect_right(low, numbers, key=lambda row: row[0])
    return low[k - 1][1] if k else 1.0
