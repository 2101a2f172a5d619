"""The gauge in which a bond is read: raw, canonical, or chosen by what data carries on it."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from bondwise.compute.stack import inverse
from bondwise.errors import DataError, SelectionError
from bondwise.gauge.bonds import Branch, unfolding
from bondwise.layers.linear import TensorLinear
from bondwise.layers.networks import network
from bondwise.network.network import Network
from bondwise.read.bonds import BLOCKS, Bond, matrices, sides
from bondwise.read.bonds import bond as bond_of
from bondwise.read.contributions import values
from bondwise.read.directions import (
    LEAST_PER_VALUE,
    check_samples,
    ica,
    matched,
    varimax,
    whitening,
)
from bondwise.read.schmidt import term_norms

GAP = 1e-3  # of two Schmidt values, over the larger: below, their directions may mix
LEAST = 2 * LEAST_PER_VALUE  # samples for each value of a bond: for both halves
STABLE = 0.9  # likeness of two halves' features, at which one is taken as identified
ROTATIONS: dict[str, Callable[[Tensor, int], Tensor]] = {"varimax": varimax, "ica": ica}
KINDS = ("raw", "canonical", "whitened", *ROTATIONS)


@dataclass(frozen=True, eq=False)
class Gauge:
    """A bond in a gauge, and how far the gauge is more than a choice.

    Attributes:
        kind: which gauge.
        bond: with the cores in it.
        X: what was put on the bond, (blocks, rank, rank): the first core times X, X^-1 times the
            second, in order of position (`bondwise.insert_gauge`).
        norms: (rank,), the length of each term of the weight, ``||W_b||``: Schmidt values in the
            canonical gauge.
        identified: (rank,), whether each value of the bond is the same one wherever it comes from.
        stability: (rank,), how alike a value is found in two halves of the data with two seeds
            (correlation, 0 to 1); None where the gauge does not depend on data.
        groups: values of the bond whose Schmidt values are so near to each other that any mixture
            is as canonical; empty where there are none.
        why: what the identification rests on.
    """

    kind: str
    bond: Bond
    X: Tensor = field(repr=False)
    norms: Tensor = field(repr=False)
    identified: Tensor = field(repr=False)
    stability: Tensor | None = field(repr=False)
    groups: tuple[tuple[int, ...], ...]
    why: str
    source: TensorLinear | None = field(repr=False, default=None)

    @property
    def layer(self) -> TensorLinear:
        """The layer with the cores in this gauge; it gives what it gave before, to rounding.

        Raises:
            SelectionError: a bond was given and not a layer.
        """
        like = self.source
        if like is None:
            raise SelectionError("A bond came without its layer; give gauge the layer itself.")
        kind = like.like
        own = network(self.bond.network, [core.to(kind.dtype) for core in self.bond.cores])
        terms = [own, *like.beside()]
        made = TensorLinear.of(
            terms, like.bias, host=like.host, device=kind.device, dtype=kind.dtype
        )
        return made.train(like.training)


def gauge(
    layer: TensorLinear | Bond,
    kind: str = "canonical",
    *,
    bond: str | None = None,
    data: Tensor | None = None,
    seed: int = 0,
) -> Gauge:
    """A layer with one bond in another gauge; its outputs stay as they are.

    - "raw": as it is stored. Its coordinates mean nothing by themselves.
    - "canonical": the Schmidt decomposition. Both sides of the bond are orthogonal, their scales
      shared evenly, in descending order (Vidal 2003). Values that are (nearly) equal are in
      `Gauge.groups`: their directions are not fixed.
    - "whitened": what data carries on the bond is white, and the other side is orthogonal: the
      Schmidt decomposition in the data's metric.
    - "varimax", "ica": rotated from there, so that the values are as sparse (Kaiser 1958), or as
      independent (Hyvarinen 1999), as can be. Gaussian values have no such basis; then two halves
      of the data disagree, which `Gauge.stability` tells.

    Each value is oriented so that its distribution leans to the positive side, where there is data.

    Args:
        layer: a tensorized layer; or a bond, where no layer is asked back.
        kind: one of `KINDS`.
        bond: its name; None for the first that cuts the network, or else the first.
        data: inputs of the layer, (*batch, in), for all kinds but the first two.
        seed: of random starts.

    Raises:
        SelectionError: no such kind of gauge, or no such bond (the nearest are named).
        DataError: data is missing where it is needed, is too little, or is not finite.
        NetworkError: the bond does not cut the network: only its raw gauge can be had.
        MissingExtraError: scikit-learn or scipy is not installed.

    >>> from bondwise import lowrank
    >>> layer = TensorLinear(lowrank(6, 4, 2))
    >>> found = gauge(layer, "canonical")
    >>> s = torch.linalg.svdvals(layer.dense())
    >>> torch.allclose(found.norms.float(), s[:2], atol=1e-6)
    True
    >>> x = torch.randn(3, 4)
    >>> torch.allclose(found.layer(x), layer(x), atol=1e-6)
    True
    """
    if kind not in KINDS:
        raise SelectionError(f"Gauge {kind!r} came; write one of {', '.join(KINDS)}.")
    source = None if isinstance(layer, Bond) else layer
    own = layer if isinstance(layer, Bond) else bond_of(layer, "", bond or _first(layer.network))
    if kind == "raw":
        return _raw(own, source)
    if kind == "canonical":
        return _canonical(own, source)
    return _from_data(own, kind, data, seed, source)


def _raw(own: Bond, source: TensorLinear | None) -> Gauge:
    eye = torch.eye(own.size, dtype=torch.float64, device=own.cores[0].device)[None]
    norms = term_norms(own.network, own.cores, own.name)
    hyper = len(own.network.places[own.name]) > 2
    why = (
        "terms on three or more cores have no gauge but their scales"
        if hyper
        else "coordinates as they are stored: any other basis gives the same outputs"
    )
    fixed = torch.full((own.size,), hyper, device=norms.device)
    return Gauge("raw", own, eye, norms, fixed, None, (), why, source)


def _canonical(own: Bond, source: TensorLinear | None) -> Gauge:
    first, second = matrices(own)
    found = [_schmidt(A, B) for A, B in zip(first, second, strict=True)]
    X = torch.stack([each[0] for each in found])
    s = torch.stack([each[1] for each in found])
    groups = _near(s[0]) if len(s) == 1 else ()
    alone = torch.stack([_alone(row) for row in s]).all(0)
    why = f"Schmidt values at least {GAP:g} apart from their neighbours, relative to the larger"
    made = replace(own, cores=_put(own, X), gauge="canonical")
    norms = s.square().sum(0).sqrt()
    return Gauge("canonical", made, X, norms, alone, None, groups, why, source)


def _schmidt(A: Tensor, B: Tensor) -> tuple[Tensor, Tensor]:
    """X that makes ``A X`` and ``B X^-T`` orthogonal with equal lengths, and the Schmidt values."""
    rank = A.shape[1]
    Ra, Rb = (torch.linalg.qr(side, mode="r").R for side in (A, B))
    U, s, V = torch.linalg.svd(Ra @ Rb.T, full_matrices=False)
    held = int((s > 1e-13 * s.max().clamp_min(1e-300)).sum())
    root = s[:held].sqrt()
    X1 = Rb.T @ V.T[:, :held] / root
    Y1 = (U[:, :held] / root).T @ Ra
    found = s.new_zeros(rank)
    found[:held] = s[:held]
    if held == rank:
        return X1, found
    # what carries nothing gets any basis that completes the others: Y1 N = 0
    N = torch.linalg.svd(Y1, full_matrices=True)[2][held:].T
    return torch.cat([X1, N - X1 @ (Y1 @ N)], 1), found


def _from_data(
    own: Bond, kind: str, data: Tensor | None, seed: int, source: TensorLinear | None
) -> Gauge:
    if data is None:
        raise DataError(f"Gauge {kind!r} came without data; add data=, inputs of the layer.")
    if own.kind == BLOCKS:
        raise DataError(
            f"Bond {own.name} of '{own.network}' has a gauge for each block; "
            f"take 'canonical', since {kind!r} is for bonds that cut the whole network."
        )
    first, second = (side[0] for side in matrices(own))
    carried = values(own, data.to(own.cores[0].device))
    h = carried.values.reshape(-1, own.size).double()
    if not bool(h.isfinite().all()):
        raise DataError("Values on the bond are not finite; give finite inputs.")
    check_samples(h, LEAST)
    early = _early(own, carried.order)
    other = second if early == 0 else first
    to = _basis(h, other, kind, seed)
    halves = [h[: len(h) // 2], h[len(h) // 2 :]]  # apart: neighbours are alike
    stability = _stability(
        h, to, [_basis(half, other, kind, seed + 1 + k) for k, half in enumerate(halves)]
    )
    to = _oriented(to, h)
    back = inverse(to, f"bond {own.name}")
    X = (to.T if early == 0 else back)[None]
    made = replace(own, cores=_put(own, X), gauge=kind)
    norms = term_norms(made.network, made.cores, made.name)
    order = norms.argsort(descending=True, stable=True)
    ordered, norms, stability = X[:, :, order], norms[order], stability[order]
    made = replace(own, cores=_put(own, ordered), gauge=kind)
    why = f"found alike in two halves of {len(h):,} samples, with two seeds ({STABLE:g} or more)"
    return Gauge(kind, made, ordered, norms, stability >= STABLE, stability, (), why, source)


def _basis(h: Tensor, other: Tensor, kind: str, seed: int) -> Tensor:
    """``T``, rank x rank: the new values are ``T h``."""
    white = whitening(h.T @ h / len(h))
    if kind in ROTATIONS:
        return ROTATIONS[kind](h @ white.to.T, seed).T @ white.to
    _, vectors = torch.linalg.eigh((other @ white.back).T @ (other @ white.back))
    return vectors.T @ white.to


def _stability(h: Tensor, to: Tensor, halves: list[Tensor]) -> Tensor:
    """For each new value: the correlation of what two halves found in its place."""
    H = h.T @ h / len(h)
    root = whitening(H).back  # correlations are cosines of rows times the root
    own, one, two = (_rows_of_length_one(each @ root) for each in (to, *halves))
    first, second = matched(own, one)[0], matched(own, two)[0]
    return (one[first] * two[second]).sum(1).abs().clamp(max=1.0)


def _oriented(to: Tensor, h: Tensor) -> Tensor:
    lean = (h @ to.T).pow(3).sum(0).sign()
    return to * torch.where(lean == 0, 1.0, lean)[:, None]


def _early(own: Bond, order: tuple[int, ...]) -> int:
    """Which of the bond's two cores, 0 or 1 in order of position, the input meets first."""
    first, second = own.network.places[own.name]
    return 0 if order.index(first) < order.index(second) else 1


def _put(own: Bond, X: Tensor) -> tuple[Tensor, ...]:
    """The cores with X and its inverse on the bond, for each block its own."""
    net = own.network
    first, second = net.places[own.name]
    backs = torch.stack([inverse(each, f"bond {own.name} of size {own.size}") for each in X])
    cores = [core.double() for core in own.cores]
    for k, factor in ((first, X), (second, backs.mT)):
        ends = unfolding(net, Branch(first, second, (own.name,)), k)
        cores[k] = ends.core(ends.matrix(cores[k]) @ factor.to(cores[k].device))
    return tuple(c.to(was.dtype).contiguous() for c, was in zip(cores, own.cores, strict=True))


def _near(s: Tensor) -> tuple[tuple[int, ...], ...]:
    """Runs of descending values, each within the gap of the one before it."""
    groups, run = list[tuple[int, ...]](), [0]
    for k in range(1, len(s)):
        if float(s[k - 1] - s[k]) > GAP * float(s[k - 1]):
            groups.append(tuple(run))
            run = []
        run.append(k)
    return tuple(group for group in (*groups, tuple(run)) if len(group) > 1)


def _alone(s: Tensor) -> Tensor:
    mixed = {k for group in _near(s) for k in group}
    return torch.tensor([k not in mixed for k in range(len(s))], device=s.device)


def _first(net: Network) -> str | None:
    return next((name for name in net.bonds if sides(net, name) is not None), None)


def _rows_of_length_one(rows: Tensor) -> Tensor:
    return rows / rows.norm(dim=1, keepdim=True).clamp_min(1e-300)
