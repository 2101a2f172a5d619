"""The ways to store a weight: what each of them costs, and its error on held-out tokens."""

from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from math import prod

import torch
from torch import Tensor, nn

from bondwise.choose import cost
from bondwise.choose.by_rank import STEP
from bondwise.choose.cost import Cost
from bondwise.choose.curves import curve
from bondwise.choose.kinds.columns import SHARE, loudest, regression, rest
from bondwise.choose.kinds.kernels import Moves, dense_cost, options
from bondwise.compute.kernels.convolve import SIZE
from bondwise.fit.kernels.patches import Weighing
from bondwise.fit.metric import Kronecker, Metric, second_moment
from bondwise.flow.calibrate import Inputs
from bondwise.layers.entries import Columns, Dense
from bondwise.layers.hosts.convolution import geometry_of
from bondwise.layers.hosts.registry import matrix_of
from bondwise.layers.terms import Kind
from bondwise.network.network import Network
from bondwise.topology.lowrank import lowrank

COLUMNS = "lowrank + columns"
EXACT = ("dense", "lowrank")  # the formats whose curves are in closed form
EVERY_RANK = 512  # a weight with at most so many ranks gets a candidate for each of them


Terms = tuple[Network | Kind, ...]
"""What a weight may become the sum of; a network stands for itself without its gauge."""


def network_of(terms: Terms) -> Network | None:
    """The network among some terms, if there is one."""
    return next((term for term in terms if isinstance(term, Network)), None)


@dataclass(frozen=True, slots=True)
class Candidate:
    """One way to store one weight.

    Attributes:
        weight: its name.
        format: "dense", "lowrank", "mpo", ..
        terms: what it becomes the sum of: a network, and entries beside it; or dense.
        numbers: stored numbers; pivots and positions as the numbers whose bits they take.
        bytes: on disk.
        macs: multiplications for one token; for one sample in a model with convolutions.
        resident: bytes in memory.
        error: ``||(W - W~) X||^2 / ||W X||^2`` on held-out tokens.
        seconds: measured, for each number of rows (`bondwise.choose.seconds.clock`); empty where
            nothing was.
    """

    weight: str
    format: str
    terms: Terms
    numbers: int
    bytes: int
    macs: int
    resident: int
    error: float
    seconds: tuple[float, ...] = ()

    @classmethod
    def of(cls, weight: str, form: str, terms: Terms, price: Cost, error: float) -> "Candidate":
        """The candidate of a cost."""
        return cls(
            weight,
            form,
            terms,
            price.numbers,
            price.bytes,
            price.macs,
            price.resident,
            error,
        )

    @property
    def network(self) -> Network | None:
        """The network among its terms; None where it stays dense."""
        return network_of(self.terms)

    @property
    def aligned(self) -> bool:
        """Whether all ranks are multiples of 8, which run at the speed of their multiplications.

        Small ranks, below 16, are left as they are.
        """
        ranks = () if self.network is None else self.network.bonds.values()
        return all(rank % STEP == 0 or rank < 2 * STEP for rank in ranks)


@dataclass(frozen=True, eq=False)
class Group:
    """Weights that get one and the same input.

    Attributes:
        weights: out x in each, by name.
        metric: of the tokens that they are fitted on; None where no token came.
        held_out: of other tokens, never shrunk; the fitting metric where there are none.
        moves: of each that is a convolution, how it moves; its metric is that of its patches.
        rows: that meet each matrix for a sample, where multiplications are counted for a sample;
            1 where they are counted for a token.
    """

    weights: Mapping[str, Tensor]
    metric: Weighing | Tensor | None = None
    held_out: Weighing | Tensor | None = None
    moves: Mapping[str, Moves] = field(default_factory=dict[str, Moves])
    rows: int = 1

    def moments(self) -> tuple[Tensor, Tensor]:
        """Both second moments in float64; the identity where no token came."""
        like = next(iter(self.weights.values()))
        inp = like.shape[1]
        assert not isinstance(self.metric, tuple | Kronecker)
        assert not isinstance(self.held_out, tuple | Kronecker)
        if self.metric is None:
            fitting = torch.eye(inp, dtype=torch.float64, device=like.device)
        else:
            fitting = second_moment(self.metric, inp).to(like.device)
        held = self.held_out
        if isinstance(held, Metric):
            held = held.second_moment / held.tokens
        return fitting, fitting if held is None else held.to(fitting)


def candidates(
    group: Group,
    *,
    bits: int = 32,
    formats: Sequence[str] = EXACT,
) -> list[Candidate]:
    """Every candidate of each weight of a group.

    The errors of low rank are exact and cost one decomposition for all ranks
    (`bondwise.choose.curves.curve`). A weight whose outputs are zero has no error in any format.

    Args:
        group: the weights and what their inputs look like.
        bits: of one stored number.
        formats: those to look at; "dense" cannot be left out, and "lowrank + columns" adds a
            term of one dense column in a hundred to each weight that tokens reached.

    >>> found = candidates(Group({"q": torch.ones(32, 64), "k": torch.eye(32, 64)}))
    >>> sorted({c.format for c in found}), max(c.numbers for c in found)
    (['dense', 'lowrank'], 2048)
    """
    if group.moves:
        return [c for name in group.weights for c in _convolution(name, group, bits)]
    wide = {name: weight.detach().to(torch.float64) for name, weight in group.weights.items()}
    fitting, held = group.moments()
    norms = {name: float(((w @ held) * w).sum()) for name, w in wide.items()}
    found = [_dense(name, weight, bits) for name, weight in wide.items()]
    for name, weight in wide.items():
        if "lowrank" in formats:
            found += _low_rank(name, weight, norms[name], (fitting, held), bits)
        if COLUMNS in formats and group.metric is not None:  # the loudest inputs are not known else
            found += _with_columns(name, weight, norms[name], (fitting, held), bits)
    return found if group.rows == 1 else [replace(c, macs=c.macs * group.rows) for c in found]


def grouped(layers: Mapping[str, nn.Module], seen: Inputs, unseen: Inputs) -> list[Group]:
    """Layers grouped by the input that they share; every convolution is alone."""
    found: dict[str, list[str]] = {}
    for name in layers:
        found.setdefault(seen.group.get(name, name), []).append(name)
    return [
        Group(
            {name: matrix_of(layers[name]) for name in names},
            seen.of(names[0]),
            unseen.of(names[0]),
            {name: moves for name in names if (moves := _moves(name, layers, seen)) is not None},
            prod(seen.sizes.get(names[0], ())) if seen.by_sample else 1,
        )
        for names in found.values()
    ]


def _moves(name: str, layers: Mapping[str, nn.Module], seen: Inputs) -> Moves | None:
    geometry = geometry_of(layers[name])
    if geometry is None:
        return None
    return Moves(geometry, seen.sizes.get(name, (SIZE,) * geometry.axes))


def _convolution(name: str, group: Group, bits: int) -> Iterator[Candidate]:
    """Dense, and what its patches' metric says of networks."""
    weight, moves = group.weights[name].detach(), group.moves[name]
    out, columns = weight.shape
    whole = (Dense((out, columns)),)
    price = dense_cost(out, columns // moves.taps, moves, bits)
    yield Candidate.of(name, "dense", whole, price, 0.0)
    for form, net, own, error in options(weight, moves, group.metric, group.held_out, bits):
        yield Candidate.of(name, form, (net,), own, error)


def _with_columns(
    name: str, weight: Tensor, norm: float, moments: tuple[Tensor, Tensor], bits: int
) -> Iterator[Candidate]:
    """Low rank beside one dense column in a hundred, at the ranks that still store less."""
    out, inp = weight.shape
    count = inp // SHARE
    if not count:
        return
    positions = loudest(weight, moments[0], count)
    predicted = regression(moments[0], positions)
    fitting, held = (rest(moment, positions, predicted) for moment in moments)
    errors = _relative(curve(weight, fitting, held).held_out, norm)
    kept = Columns(count, (out, inp))
    beside = cost.entries(kept, bits)
    for rank in grid(out, inp, bits):
        price = cost.low_rank(out, inp, rank, bits) + beside
        if price.numbers < out * inp:
            net = _network(out, inp, rank)
            yield Candidate.of(name, COLUMNS, (net, kept), price, errors[rank])


def _dense(name: str, weight: Tensor, bits: int) -> Candidate:
    out, inp = weight.shape
    return Candidate.of(name, "dense", (Dense((out, inp)),), cost.dense(out, inp, bits), 0.0)


def _low_rank(
    name: str, weight: Tensor, norm: float, moments: tuple[Tensor, Tensor], bits: int
) -> Iterator[Candidate]:
    """Low rank at a grid of ranks."""
    out, inp = weight.shape
    ranks = grid(out, inp, bits)
    if not ranks:
        return
    errors = _relative(curve(weight, *moments).held_out, norm)
    for rank in ranks:
        price = cost.low_rank(out, inp, rank, bits)
        yield Candidate.of(name, "lowrank", (_network(out, inp, rank),), price, errors[rank])


@cache
def grid(out: int, inp: int, bits: int) -> tuple[int, ...]:
    """Ranks worth a look: all up to the last that stores less than dense, or multiples of 8.

    >>> grid(64, 64, 32)[-1], len(grid(2048, 2048, 32))
    (62, 257)
    """
    most = bisect_right(
        range(1, min(out, inp) + 1),
        out * inp - 1,
        key=lambda r: cost.low_rank(out, inp, r, bits).numbers,
    )
    if most <= EVERY_RANK:
        return tuple(range(1, most + 1))
    return (1, 2, 4, *range(STEP, most + 1, STEP))


@cache
def _network(out: int, inp: int, rank: int) -> Network:
    return lowrank(out, inp, rank)


def _relative(errors: Tensor, norm: float) -> list[float]:
    return (errors / norm if norm > 0 else torch.zeros_like(errors)).tolist()
