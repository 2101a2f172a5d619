"""Networks with loops, or with an index on many cores: alternating least squares with restarts.

Each half-step is the exact least squares for one core given the others. With ``E`` the environment
(all other cores contracted), ``G = E^T E`` and ``R = E^T T``, it solves

    min_X ||T - E X||^2 + lambda ||X - X_old||^2,   lambda = 1e-12 mean diag G,

whose pull towards the core it had keeps singular ``G`` harmless and biases no fixed point (Navasca
et al. 2008). Between sweeps a step along the last change is tried (Harshman 1970; Bro 1998) and
kept where it helps. So the error never rises.

Where terms on one index grow and cancel (CP), it goes on with a penalty on their norms, falling to
the least that keeps them within a bound.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from math import prod

import torch
from torch import Tensor

from bondwise.fit.alternating.solvers import solve
from bondwise.fit.alternating.terms import LIMIT, NONE, Penalty, squared_norms, term_bonds
from bondwise.fit.named import Named, balance, contract, prime, twin
from bondwise.fit.sweep import fit_tree, tree_of
from bondwise.fit.target import BLOCK, Target, core_names
from bondwise.network.network import Network

_ROUNDING = 1e-26  # a relative squared error that is rounding
_PROGRESS = 2e-5  # relative gain in squared error per sweep, below which sweeping stops
_FACTOR = 4.0  # by which a penalty on the norms of terms falls, until one is too large
_LEAST = 1e-10  # of such a penalty
_EACH = 30  # sweeps under one penalty
_WIDE = 2**18  # entries of a target above which products with it are in float32
_DEAR = 2e9  # multiplications of a sweep above which every sweep counts
_NOISE = 1e-2  # of the size of a core, on the numbers that a start leaves open


@dataclass(frozen=True, eq=False)
class State:
    """Parts and their squared error, any penalty included."""

    parts: list[Named]
    error: float


def fit_plain(
    net: Network, goal: Target, seed: int, brief: bool = False, limit: float = LIMIT
) -> list[Named]:
    """The parts of any network without a metric: along the tree that it is, or alternating.

    ``brief`` is for a start from which others go on: what alternates then has few sweeps. No term
    of a sum (`term_bonds`) has a norm above ``limit`` times that of the goal.
    """
    tree = tree_of(net, goal)
    if tree is None:
        return fit_alternating(net, goal, seed, brief, limit)
    return fit_tree(tree, goal, net.bonds)


@torch.no_grad()
def fit_alternating(
    net: Network, goal: Target, seed: int, brief: bool = False, limit: float = LIMIT
) -> list[Named]:
    """The parts of any network, by alternating least squares from several starts."""
    effort = _BRIEF if brief else _effort(net, goal)
    if goal.values.tensor.numel() > _WIDE:  # products with it in float32, all small ones in float64
        goal = Target(Named(goal.values.tensor.float(), goal.values.names), goal.blocks)
    tried = [
        sweep_many(goal, _state(goal, parts), effort.try_out)[-1]
        for parts in _starts(net, goal, effort.random_starts, seed)
    ]
    finalists = sorted(tried, key=lambda state: state.error)[: effort.finalists]
    ends = [sweep_many(goal, state, effort.sweeps)[-1] for state in finalists]
    bonds = tuple(bond for bond in term_bonds(net) if net.bonds[bond] > 1)
    if bonds:
        return _bounded_best(goal, bonds, ends, effort.sweeps, limit).parts
    return min(ends, key=lambda state: state.error).parts


@torch.no_grad()
def glance(net: Network, goal: Target, sweeps: int) -> float:
    """The relative squared error after some sweeps from one start, for a first comparison."""
    random = torch.Generator().manual_seed(0)
    state = sweep_many(goal, _state(goal, _singular_start(net, goal, random)), sweeps)[-1]
    return state.error / (float(goal.values.tensor.square().sum(dtype=torch.float64)) or 1.0)


def _bounded_best(
    goal: Target, bonds: tuple[str, ...], ends: list[State], most: int, limit: float
) -> State:
    """The best state without a term above ``limit`` times the norm of the goal.

    A state with one goes on under a penalty that falls as far as the bound allows. The best of a
    half-step has no higher cost than zeros have, so ``1 / limit^2`` suffices to begin with.
    """
    allowed = (limit * float(goal.values.tensor.norm())) ** 2

    def fits(one: State) -> bool:
        return float(squared_norms(one.parts, bonds, goal.open).max()) <= allowed

    best = min(filter(fits, ends), key=lambda state: state.error, default=None)
    for end in sorted(ends, key=lambda state: state.error):
        if best is not None and best.error <= end.error:
            break
        weight, each = limit**-2, min(most, _EACH)
        state = _penalised(goal, end, each, Penalty(bonds, weight))
        while weight > _LEAST:
            weight /= _FACTOR
            state = _penalised(goal, state, each, Penalty(bonds, weight), fits)
        # what the bound still allows
        state = sweep_many(goal, _state(goal, state.parts), most, fits=fits)[-1]
        best = state if best is None or state.error < best.error else best
    assert best is not None
    return best


def _penalised(
    goal: Target,
    state: State,
    most: int,
    penalty: Penalty,
    fits: Callable[[State], bool] | None = None,
) -> State:
    return sweep_many(goal, _state(goal, state.parts, penalty), most, penalty, fits)[-1]


def sweep_many(
    goal: Target,
    state: State,
    most: int,
    penalty: Penalty = NONE,
    fits: Callable[[State], bool] | None = None,
) -> list[State]:
    """The states after every sweep, never of higher error, until one gains next to nothing.

    With a penalty, which counts in the error; only those that ``fits`` allows.
    """
    total = float(goal.values.tensor.square().sum())
    states = [state]
    slow = 0
    for count in range(1, most + 1):
        swept = _sweep(goal, states[-1].parts, penalty)
        after = _state(goal, balance(swept, goal.open), penalty)
        if after.error < states[-1].error and count > 2:
            after = _leap(goal, states[-1], after, count ** (1 / 3), penalty)
        if after.error >= states[-1].error or not (fits is None or fits(after)):
            break
        slow = slow + 1 if states[-1].error - after.error < _PROGRESS * states[-1].error else 0
        states.append(after)
        if slow == 3 or after.error <= _ROUNDING * total:
            break
    return states


def _sweep(goal: Target, parts: Sequence[Named], penalty: Penalty = NONE) -> list[Named]:
    """Every part in turn made the best given the others."""
    parts = list(parts)
    for k, part in enumerate(parts):
        parts[k] = _half_step(goal, part, parts[:k] + parts[k + 1 :], penalty)
    return parts


def _half_step(goal: Target, part: Named, others: list[Named], penalty: Penalty) -> Named:
    """The exact least squares for one part (in proximal form)."""
    elsewhere = {name for other in others for name in other.names}
    batch = [name for name in part.names if name in goal.open and name in elsewhere]
    own = [name for name in part.names if name in goal.open and name not in elsewhere]
    bonds = [name for name in part.names if name not in goal.open]
    twins = [twin(other, goal.open) for other in others]
    primed = [prime(name) for name in bonds]
    gram = Named(contract([*others, *twins], [*batch, *bonds, *primed]), (*batch, *bonds, *primed))
    right = Named(_with(goal, others, [*batch, *own, *bonds]), (*batch, *own, *bonds))
    old = part.matrix(batch, own, bonds)
    g = penalty.on(gram.matrix(batch, bonds, primed), bonds, gram.tensor.shape[len(batch) :])
    new = old + solve(g, right.matrix(batch, own, bonds) - old @ g)
    return Named(new.reshape(right.tensor.shape), right.names)


def _with(goal: Target, others: Sequence[Named], names: Sequence[str]) -> Tensor:
    """The target contracted with other parts, in float64 from products in the target's dtype."""
    like = goal.values.tensor.dtype
    cast = [Named(other.tensor.to(like), other.names) for other in others]
    return contract([goal.values, *cast], names).double()


def _leap(goal: Target, before: State, after: State, step: float, penalty: Penalty) -> State:
    """A step along the last change, where that lowers the error further."""
    parts = [
        Named(
            new.tensor + step * (new.tensor - Named(old.tensor, old.names).to(*new.names)),
            new.names,
        )
        for old, new in zip(before.parts, after.parts, strict=True)
    ]
    far = _state(goal, parts, penalty)
    return far if far.error < after.error else after


def _state(goal: Target, parts: list[Named], penalty: Penalty = NONE) -> State:
    like = goal.values.tensor.dtype
    product = contract([Named(p.tensor.to(like), p.names) for p in parts], goal.values.names)
    error = float((goal.values.tensor - product).square().sum(dtype=torch.float64))
    return State(parts, error + penalty.of(parts, goal.open))


def smaller_networks(net: Network) -> Iterator[Network]:
    """Networks of growing ranks, all bonds growing in step, of which the last is ``net`` itself."""
    most = max(net.bonds.values(), default=1)
    for level in range(1, most + 1):
        yield net.resize(**{bond: -(-size * level // most) for bond, size in net.bonds.items()})


def _starts(net: Network, goal: Target, draws: int, seed: int) -> Iterator[list[Named]]:
    """Singular vectors of every core's own modes, random draws, and a tree inside the network."""
    random = torch.Generator().manual_seed(seed)
    yield _singular_start(net, goal, random)
    for _ in range(draws):
        yield [
            Named(_normal(goal, [_size(net, goal, name) for name in names], random), names)
            for names in core_names(net, goal)
        ]
    inner = _tree_inside(net, goal, random)
    if inner is not None:
        yield inner


def _tree_inside(net: Network, goal: Target, random: torch.Generator) -> list[Named] | None:
    """The fit with the smallest bonds cut until no loop is left, filled up with noise.

    From here the network cannot end worse than the tree.
    """
    small = net
    for bond in sorted(net.bonds, key=lambda bond: (-len(net.places[bond]), net.bonds[bond])):
        tree = tree_of(small, goal)
        if tree is not None:
            parts = fit_tree(tree, goal, small.bonds)
            return [
                _grow(net, goal, part, names, random)
                for part, names in zip(parts, core_names(net, goal), strict=True)
            ]
        small = small.resize(**{bond: 1})
    return None


def _grow(
    net: Network, goal: Target, part: Named, names: tuple[str, ...], random: torch.Generator
) -> Named:
    """A part set into a larger one, with noise on the rest."""
    missing = [name for name in names if name not in part.names]
    inner = part.tensor.reshape(*part.tensor.shape, *(1 for _ in missing))
    inner = Named(inner, (*part.names, *missing)).to(*names)
    sizes = [_size(net, goal, name) for name in names]
    rms = float(inner.norm()) / inner.numel() ** 0.5
    grown = _NOISE * rms * _normal(goal, sizes, random)
    grown[tuple(slice(0, size) for size in inner.shape)] = inner
    return Named(grown, names)


def _singular_start(net: Network, goal: Target, random: torch.Generator) -> list[Named]:
    """Every core the leading singular vectors of its own modes; noise where there are too few."""
    parts: list[Named] = []
    for names in core_names(net, goal):
        own = [name for name in names if name in goal.open and name != BLOCK]
        bonds = [name for name in names if name not in goal.open]
        rest = [name for name in goal.values.names if name not in own and name != BLOCK]
        shape = [_size(net, goal, name) for name in (BLOCK, *own, *bonds)]
        columns = prod(_size(net, goal, name) for name in bonds)
        unfolded = goal.values.matrix([BLOCK], own, rest)
        gram = (unfolded @ unfolded.mT).double()
        vectors = torch.linalg.eigh(gram).eigenvectors.flip(-1)[..., :columns]
        noise = _normal(goal, [*vectors.shape[:-1], columns - vectors.shape[-1]], random)
        start = torch.cat([vectors, noise / max(1, vectors.shape[-2]) ** 0.5], dim=-1)
        parts.append(Named(start.reshape(shape), (BLOCK, *own, *bonds)))
    return parts


def _normal(goal: Target, shape: Sequence[int], random: torch.Generator) -> Tensor:
    drawn = torch.randn(*shape, generator=random, dtype=torch.float64)
    return drawn.to(goal.values.tensor.device)


def _size(net: Network, goal: Target, name: str) -> int:
    return goal.values.tensor.shape[0] if name == BLOCK else net.sizes[name]


@dataclass(frozen=True)
class _Effort:
    """How many starts and sweeps are worth their time."""

    sweeps: int
    try_out: int
    random_starts: int
    finalists: int


_BRIEF = _Effort(sweeps=10, try_out=5, random_starts=1, finalists=1)


def _effort(net: Network, goal: Target) -> _Effort:
    """From 500 sweeps, 8 random starts and 3 finalists for a small weight to 12, none and 1."""
    cost = 0
    for names in core_names(net, goal):
        bonds = [net.sizes[name] for name in names if name in net.bonds]
        # the target meets one bond at a time; the normal equations have one row per value of all
        cost += goal.values.tensor.numel() * max(bonds, default=1) + prod(bonds) ** 3
    if cost > _DEAR:
        return _Effort(sweeps=12, try_out=2, random_starts=0, finalists=1)
    sweeps = int(min(500, max(20, 1e10 / cost)))
    try_out = min(20, max(3, sweeps // 8))
    return _Effort(sweeps, try_out, *((8, 3) if sweeps == 500 else (2, 1)))
