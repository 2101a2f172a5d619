"""Candidates that need a fit of their own: other networks, each in several shapes."""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from math import prod

from torch import Tensor

from bondwise.choose import cost
from bondwise.choose.by_rank import Build, ByRank
from bondwise.choose.candidates import Candidate, Group
from bondwise.choose.select import Weight
from bondwise.compute.run import dense
from bondwise.fit.fit import fit
from bondwise.fit.whitened import metric_norm
from bondwise.network.network import Network
from bondwise.topology import registry
from bondwise.topology.registry import Modes, Split

SWEEPS = 3  # of a fit that is only compared; the one that is chosen is fitted to its end


@dataclass(frozen=True)
class Shape:
    """A format, and how it splits the rows and the columns of a weight."""

    format: str
    rows: Modes
    cols: Modes

    @property
    def whole(self) -> tuple[int, int]:
        """Rows and columns of the weight."""
        return prod(self.rows), prod(self.cols)


def shape(candidate: Candidate) -> Shape:
    """The shape of a candidate that is a network."""
    assert candidate.network is not None
    return _shape_of(candidate.format, candidate.network)


def fitted(
    group: Group,
    fractions: Sequence[float] = (0.6,),
    *,
    bits: int = 32,
    prefer: str = "speed",
    formats: Sequence[str] | None = None,
    heads: Mapping[str, int] | None = None,
    among: Collection[Shape] | None = None,
) -> Iterator[Candidate]:
    """Networks fitted in the metric, at some fractions of the dense numbers; seconds each.

    Args:
        group: the weights and what their inputs look like.
        fractions: of the dense numbers, at which every shape is fitted once.
        bits: of one stored number.
        prefer: "speed" leaves out, before it is fitted, what needs as many multiplications as dense
            or more; "size" and "quality" do not.
        formats: names of topologies; by default all that are scouted.
        heads: how many heads the rows of a weight are, for those that have heads.
        among: the only shapes to look at; all that there are by default.

    >>> import torch
    >>> group = Group({"q": torch.eye(16)})
    >>> [c.error < 1e-9 for c in fitted(group, formats=["mpo"], prefer="size")]
    [True, False, False, True]
    """
    if group.moves:
        return
    fitting, held = group.moments()
    metric = None if group.metric is None else fitting
    for name, weight in group.weights.items():
        out, inp = weight.shape
        for form in registry.scouted("best") if formats is None else formats:
            found = series(name, out, inp, form, bits, among, (heads or {}).get(name))
            for net in _networks(found, fractions):
                price = cost.network(net, bits)
                if prefer == "speed" and price.macs >= out * inp:
                    continue
                error = _error(weight, net, metric, held)
                yield Candidate.of(name, form, (net,), price, error)


def shapes(form: str, out: int, inp: int, heads: int | None = None) -> list[Build]:
    """Ways to write an out x in weight in a format, as functions of (out, in, kernel, rank).

    They are those that the topology names as worth a try, where the weight splits so.

    >>> [build(16, 16, (), 2).core_shapes for build in shapes("mpo", 16, 16)][1]
    ((16, 2, 2), (2, 1, 8))
    """
    known = registry.find(form)
    found = dict.fromkeys(known.shapes(out, inp, heads or 0))
    whole = [split for split in found if tuple(map(prod, split)) == (out, inp)]
    return [partial(_built, known.build, split) for split in whole]


def series(
    name: str,
    out: int,
    inp: int,
    form: str,
    bits: int,
    among: Collection[Shape] | None = None,
    heads: int | None = None,
) -> list[ByRank]:
    """The ranks of every shape of a format, or of some shapes."""
    whole = Weight(name, "Linear", (out, inp))
    found = [ByRank(whole, build, bits) for build in shapes(form, out, inp, heads)]
    return [x for x in found if among is None or _shape_of(form, x.at(1)) in among]


def _shape_of(form: str, net: Network) -> Shape:
    return Shape(form, tuple(i.size for i in net.rows), tuple(i.size for i in net.cols))


def _built(
    build: Callable[..., Network], split: Split, _out: int, _inp: int, _kernel: Modes, rank: int
) -> Network:
    return build(*split, rank)


def _networks(series: Sequence[ByRank], fractions: Sequence[float]) -> Iterator[Network]:
    for nets in series:
        ranks = [nets.best(fraction * nets.weight.numbers) for fraction in fractions]
        yield from (nets.at(rank) for rank in dict.fromkeys(ranks) if rank)


def _error(weight: Tensor, net: Network, fitting: Tensor | None, held: Tensor) -> float:
    """Share of ``||W X||^2`` on held-out tokens that a short fit loses."""
    wide = weight.detach().to(held)
    done = fit(wide, net, fitting, sweeps=SWEEPS)
    norm = metric_norm(wide, held)
    off = metric_norm(wide - dense(done.network, done.cores), held)
    return (off / norm) ** 2 if norm else 0.0
