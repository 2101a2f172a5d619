"""What each value of a bond adds to a layer's output, and what data carries on the bond."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from math import prod

import opt_einsum
import torch
from torch import Tensor

from bondwise.compute.plan import plan
from bondwise.compute.run import apply
from bondwise.compute.stack import checked_order
from bondwise.errors import ShapeError
from bondwise.network.network import Network
from bondwise.network.stack import state
from bondwise.read.bonds import Bond, matrices, opened, part, sides
from bondwise.read.schmidt import term_norms

NUMBERS = 2**24  # of contributions that are there at once
STEPS = 100  # of power iteration, at most; one is enough where terms have rank one
STILL = 1e-6  # largest change of a direction, after which it is taken as found


def contributions(bond: Bond, x: Tensor, indices: Iterable[int] | None = None) -> Tensor:
    """What each value of the bond adds to the output: ``y_b = W_b x``, (*batch, rank, out).

    They add up to the layer's output, its bias and its remainder aside, and do not depend on the
    order in which the cores are met: for a bond that cuts the network in two ``W_b`` is the product
    of both sides at b. For any other bond the terms add up likewise, but are not all that can be
    said of it: on a loop, other bonds run beside this one.

    Args:
        bond: in the gauge that its values are to be read in.
        x: inputs of the layer, (*batch, in).
        indices: which values; None for all.

    Raises:
        ShapeError: x is not as wide as the weight, or there is no such value.

    >>> from bondwise import TensorLinear, mpo
    >>> from bondwise.read import bond
    >>> layer = TensorLinear(mpo((2, 3), (4, 5), 6))
    >>> x = torch.randn(7, 20)
    >>> y = contributions(bond(layer), x)
    >>> y.shape, torch.allclose(y.sum(-2), layer(x), atol=1e-5)
    (torch.Size([7, 6, 6]), True)
    """
    net, cores = part(bond, range(bond.size) if indices is None else indices)
    flat = _flat(bond, x)
    rank, out = net.sizes[bond.name], net.shape[0]
    chunk = max(1, NUMBERS // (rank * out))
    way = plan(opened(net, bond.name), batch=min(chunk, max(1, len(flat))))
    parts = [apply(way, cores, some.to(cores[0].dtype)) for some in flat.split(chunk)]
    return torch.cat(parts).reshape(*x.shape[:-1], rank, out)


def added(bond: Bond, x: Tensor, indices: Iterable[int]) -> Tensor:
    """What some values of the bond add to the output together, (*batch, out).

    Args:
        bond: in some gauge.
        x: inputs of the layer, (*batch, in).
        indices: which values.

    Raises:
        ShapeError: x is not as wide as the weight, or there is no such value.

    >>> from bondwise import TensorLinear, lowrank
    >>> from bondwise.read import bond
    >>> layer, x = TensorLinear(lowrank(6, 4, 2)), torch.randn(3, 4)
    >>> torch.allclose(added(bond(layer), x, [0, 1]), layer(x), atol=1e-5)
    True
    """
    net, cores = part(bond, indices)
    flat = _flat(bond, x)
    found = apply(plan(net, batch=max(1, len(flat))), cores, flat.to(cores[0].dtype))
    return found.reshape(*x.shape[:-1], net.shape[0])


@dataclass(frozen=True)
class Values:
    """What data carries when it has met the bond and the bond is not summed yet.

    Attributes:
        values: (*batch, *rest, rank).
        rest: names of what else the data carries there, in the order of its axes.
        order: of the cores as the input meets them: the sweep.
        met: how many of them it has met.
    """

    values: Tensor
    rest: tuple[str, ...]
    order: tuple[int, ...]
    met: int


def values(bond: Bond, x: Tensor, order: Sequence[int] | None = None) -> Values:
    """What the input carries on the bond in a sweep through the stack.

    Where all columns lie on the side that is met first (low rank), these are ``rank`` numbers a
    token. Else the data also carries columns that it has not met and rows that it has.

    Args:
        bond: in some gauge.
        x: inputs of the layer, (*batch, in).
        order: of the cores; None for that of the cheapest stack.

    Raises:
        ShapeError: x is not as wide as the weight.
        PlanError: the order is none.

    >>> from bondwise import TensorLinear, lowrank
    >>> from bondwise.read import bond
    >>> layer = TensorLinear(lowrank(6, 4, 2))
    >>> x = torch.randn(3, 4)
    >>> found = values(bond(layer), x)
    >>> found.rest, torch.allclose(found.values, x @ layer.core_1.T)
    ((), True)
    """
    net = bond.network
    sweep = checked_order(net, order)
    met = max(sweep.index(k) for k in net.places[bond.name])
    met = max(1, met)  # a bond on one core alone is on the data once that core is met
    left = [i for i in state(net, frozenset(sweep[:met])) if i.name != bond.name]
    flat = _flat(bond, x).to(bond.cores[0].dtype)
    grid = flat.reshape(-1, *(i.size for i in net.cols))
    operands: list[Tensor | list[str]] = [grid, [" ", *(i.name for i in net.cols)]]
    for k in sweep[:met]:
        operands += [bond.cores[k], list(net.names[k])]
    rest = tuple(i.name for i in left)
    found: Tensor = opt_einsum.contract(*operands, [" ", *rest, bond.name])
    return Values(found.reshape(*x.shape[:-1], *found.shape[1:]), rest, sweep, met)


@dataclass(frozen=True)
class Readout:
    """Each term's best single feature: ``W_b ~ direction reader^T``, its leading singular pair.

    Where a term has rank one (low rank, or one side of the bond has no columns and the other no
    rows) nothing is left out: the output is ``sum_b direction_b (reader_b . x)``.

    Attributes:
        readers: (rank, in); a token's feature values are ``x @ readers.T``.
        directions: (rank, out), of length one.
        pure: (rank,), the share of ``||W_b||^2`` that the pair holds, 0 to 1.
    """

    readers: Tensor
    directions: Tensor
    pure: Tensor


def readout(bond: Bond, seed: int = 0) -> Readout:
    """A signed number for each value of the bond and each token, and where it points.

    By power iteration on all terms at once, on the network itself; no term is built.

    >>> from bondwise import TensorLinear, lowrank
    >>> from bondwise.read import bond
    >>> layer = TensorLinear(lowrank(6, 4, 2))
    >>> found = readout(bond(layer))
    >>> torch.allclose(found.directions.T @ found.readers, layer.dense(), atol=1e-5)
    True
    """
    net, rank = bond.network, bond.size
    cores = tuple(core.double() for core in bond.cores)
    forth = opened(net, bond.name, both=True)
    back = Network(forth.cores, forth.cols, forth.rows)
    there, again = plan(forth, batch=1), plan(back, batch=1)
    generator = torch.Generator().manual_seed(seed)
    start = torch.randn(rank, net.shape[0], generator=generator, dtype=torch.float64)
    u = _unit(start.to(cores[0].device))
    v = u.new_zeros(rank, net.shape[1])
    for _ in range(STEPS):
        v = apply(again, cores, u.reshape(1, -1)).reshape(rank, -1)
        new = _unit(apply(there, cores, _unit(v).reshape(1, -1)).reshape(rank, -1))
        moved = (new - u).norm(dim=1).max()
        u = new
        if moved < STILL:
            break
    v = apply(again, cores, u.reshape(1, -1)).reshape(rank, -1)
    whole = term_norms(net, cores, bond.name).square()
    pure = torch.where(whole > 0, v.square().sum(1) / whole.clamp_min(1e-300), 1.0)
    return Readout(v.to(bond.cores[0].dtype), u.to(bond.cores[0].dtype), pure.clamp(max=1.0))


def gram(bond: Bond, moments: Tensor | None = None) -> Tensor:
    """How the terms' outputs overlap: ``G_bc = E[y_b . y_c] = tr W_b C W_c^T``, in float64.

    What dropping a set S of values costs follows exactly: ``E ||sum over S of y_b||^2`` is the sum
    of G over S x S, and all of G adds up to the squared length of the whole output.

    Args:
        bond: in some gauge.
        moments: ``C = E[x x^T]`` of the inputs, (in, in); None for the identity, which weighs the
            weight itself.

    Raises:
        ShapeError: moments of another size.

    >>> from bondwise import TensorLinear, lowrank
    >>> from bondwise.read import bond
    >>> layer = TensorLinear(lowrank(6, 4, 2))
    >>> torch.allclose(gram(bond(layer)).sum(), layer.dense().double().square().sum())
    True
    """
    net = bond.network
    inp = net.shape[1]
    if moments is not None and tuple(moments.shape) != (inp, inp):
        raise ShapeError(
            f"Moments of shape {tuple(moments.shape)} came; "
            f"layer {bond.layer!r} takes ({inp}, {inp})."
        )
    found = sides(net, bond.name)
    if found is not None and moments is None:
        first, second = matrices(bond)
        return ((first.mT @ first) * (second.mT @ second)).sum(0)
    if found is not None and not found.blocks and moments is not None:
        closed = _one_sided(bond, found.first, found.second, moments)
        if closed is not None:
            return closed
    wide = Bond(bond.layer, net, tuple(c.double() for c in bond.cores), bond.name, bond.gauge)
    total = wide.cores[0].new_zeros(bond.size, bond.size)
    for columns in _roots(wide, moments):
        y = contributions(wide, columns)
        total += torch.einsum("nbo,nco->bc", y, y)
    return total


def dropped(G: Tensor, indices: Iterable[int]) -> float:
    """What the output loses, relative and squared, where some values of a bond are dropped.

    Exact, from the Gram matrix of the terms (`gram`): 0 for nothing, 1 for all of them.

    Args:
        G: the Gram matrix, (rank, rank).
        indices: which values.

    >>> dropped(torch.diag(torch.tensor([3.0, 1.0])), [1])
    0.25
    """
    at = torch.tensor(list(indices), dtype=torch.long)
    return float(G[at][:, at].sum() / G.sum())


def _one_sided(
    bond: Bond, first: Sequence[int], second: Sequence[int], moments: Tensor
) -> Tensor | None:
    """The Gram matrix where all columns lie on one side, in closed form; None where they do not."""
    net = bond.network
    cols = {i.name for i in net.cols}
    one, two = matrices(bond)
    for side, own, other in ((first, one, two), (second, two, one)):
        names = {name for k in side for name in net.names[k]}
        rest = [n for n in net.sizes if n in names & net.open]
        if rest == [i.name for i in net.cols] and not cols & (net.open - set(rest)):
            B, A = own[0], other[0]
            return (A.T @ A) * (B.T @ moments.double().to(B.device) @ B)
    return None


def _roots(bond: Bond, moments: Tensor | None) -> Iterator[Tensor]:
    """Columns of a square root of the moments, as inputs, a few at a time."""
    inp = bond.network.shape[1]
    if moments is None:
        root = torch.eye(inp, dtype=torch.float64, device=bond.cores[0].device)
    else:
        own, vectors = torch.linalg.eigh(moments.double().to(bond.cores[0].device))
        root = (vectors * own.clamp_min(0).sqrt()).T
    yield from root.split(max(1, NUMBERS // (bond.size * bond.network.shape[0])))


def _flat(bond: Bond, x: Tensor) -> Tensor:
    inp = bond.network.shape[1]
    if x.shape[-1:] != (inp,):
        raise ShapeError(
            f"x of shape {tuple(x.shape)} came for bond {bond.name} of layer {bond.layer!r}; "
            f"write it as (.., {inp})."
        )
    return x.reshape(prod(x.shape[:-1]), inp)


def _unit(rows: Tensor) -> Tensor:
    return rows / rows.norm(dim=1, keepdim=True).clamp_min(1e-300)
