"""What the spectrum of a bond would be by chance: shuffled, with other signs, Gaussian, turned."""

import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from bondwise.errors import DataError, SelectionError
from bondwise.read.bonds import Bond
from bondwise.read.directions import haar
from bondwise.read.schmidt import Cut, entropy, fast_values, profile, term_norms

TIE = 1e-6
"""Entropies (nats) closer than this count as equal: what the fast way may be off by."""

SMALL = 256
"""Up to this size of the smaller side a Gram matrix in float64 costs next to nothing."""

SPREAD = (0.025, 0.975)
"""Which quantiles bound a band: 95 % of the draws at each place."""


@dataclass(frozen=True, eq=False)
class Band:
    """Where one null puts a spectrum, and where the observed one lies.

    Attributes:
        name: of the null.
        low: lower end of a pointwise 95 % band, for values divided by their root sum of squares.
        high: its upper end; beside ``values / values.norm()`` of the spectrum.
        entropies: one per draw, in nats.
        p: ``(1 + draws of at most the observed entropy) / (1 + draws)``: small where the observed
            spectrum is more concentrated than the null's. None where the null does not apply.
        distance: observed entropy minus the null's mean, in the null's standard deviations (of at
            least `TIE`). None where it does not apply.
        why: the reason why it does not apply; None where it does.
    """

    name: str
    low: Tensor = field(repr=False)
    high: Tensor = field(repr=False)
    entropies: Tensor = field(repr=False)
    p: float | None
    distance: float | None
    why: str | None = None

    @property
    def applies(self) -> bool:
        """Whether there is a band at all."""
        return self.why is None


@dataclass(frozen=True, eq=False)
class Subject:
    """What nulls are drawn for.

    Attributes:
        values: the observed spectrum, descending.
        schmidt: the values of each block, (blocks, count), descending; one block where there are
            none. Empty for a bond that does not cut.
        weight: out x in; None for a bond that does not cut.
        cut: how the weight unfolds; None for a bond that does not cut.
        bond: of a tensorized layer; None for a dense one.
    """

    values: Tensor
    schmidt: Tensor
    weight: Tensor | None = None
    cut: Cut | None = None
    bond: Bond | None = None


Null = Callable[[Subject, int, torch.Generator], Tensor | str]
"""Draws as (draws, count), each descending; or the reason why this null does not apply."""


def shuffled(subject: Subject, draws: int, generator: torch.Generator) -> Tensor | str:
    """Rows and columns of the weight permuted, each on their own.

    Exact as a test where the order of rows and columns carries nothing. The Schmidt values of the
    shuffled weight at the same cut are truncated to as many as the bond has, since the network was
    cut too; entropies are of what is left, scaled to a sum of squares of 1.
    """
    if subject.weight is None or subject.cut is None:
        return "the bond does not cut its network, so no shuffled weight has such values"
    if subject.cut.divides:
        return "the bond divides rows from columns, where a shuffle changes no Schmidt value"
    weight, count = _ready(subject)
    rows, cols = weight.shape

    def one() -> Tensor:
        order = torch.randperm(rows, generator=generator)
        turned = weight[order][:, torch.randperm(cols, generator=generator)]
        return _schmidt(subject, turned, count)

    return torch.stack([one() for _ in range(draws)])


def signs(subject: Subject, draws: int, generator: torch.Generator) -> Tensor | str:
    """The weight with the signs of its singular values drawn: ``U S D V^T``, D of random +1, -1.

    Keeps ``W W^T`` and ``W^T W`` exactly and forgets how they are joined. Exact as a test for
    independent Gaussian entries, whose singular vectors are of any sign, and in simulations at its
    level for separable Gaussian weights ``A Z B`` too (``tests/read/test_nulls.py``), where
    `gaussian` is far off. Entries of lighter tails than Gaussian ones lie above, of heavier ones
    below. Truncated as `shuffled` is.
    """
    if subject.weight is None or subject.cut is None:
        return "the bond does not cut its network, so no weight with other signs has such values"
    if subject.cut.divides:
        return "the bond divides rows from columns, where signs change no Schmidt value"

    def make(basis: Tensor, _scales: Tensor, rest: Tensor) -> Tensor:
        drawn = torch.randint(2, (len(rest),), generator=generator)
        return basis * (2 * drawn - 1) @ rest

    return _from_svd(subject, draws, make)


def gaussian(subject: Subject, draws: int, generator: torch.Generator) -> Tensor | str:
    """Gaussian weights with the row and column second moments of the observed one in the mean.

    ``R^(1/2) Z C^(1/2) / |W|`` with ``R = W W^T``, ``C = W^T W`` and Z standard normal: separable,
    with ``E[G G^T] = R`` and ``E[G^T G] = C``. Truncated as `shuffled` is.

    The moments of one draw spread more than their mean, so a weight that is Gaussian itself lies 1
    to 5 standard deviations above this null: its p is conservative, its distance too large. The
    test is `signs`. With the SVD ``W = U S V^T`` the draw is ``U S Z S V^T / |W|``.
    """
    if subject.weight is None or subject.cut is None:
        return "the bond does not cut its network, so no Gaussian weight has such values"
    if subject.cut.divides:
        return "the bond divides rows from columns, whose second moments fix the Schmidt values"

    def make(basis: Tensor, scales: Tensor, rest: Tensor) -> Tensor:
        noise = torch.randn(len(rest), len(rest), generator=generator, dtype=rest.dtype)
        return (basis * scales) @ noise @ rest

    return _from_svd(subject, draws, make)


def noise(subject: Subject, draws: int, generator: torch.Generator) -> Tensor | str:
    """Independent Gaussian entries, all of one variance: a weight with nothing in it.

    The weakest of the nulls, and the only one for a bond that divides rows from columns (low rank),
    where its values follow Marchenko and Pastur (1967), as those of untrained weights do (Martin
    and Mahoney 2021). Truncated as `shuffled` is.
    """
    if subject.weight is None or subject.cut is None:
        return "the bond does not cut its network, so no weight of noise has such values"
    weight, count = _ready(subject)
    size, dtype = weight.shape, weight.dtype
    drawn = (torch.randn(size, generator=generator, dtype=dtype) for _ in range(draws))
    return torch.stack([_schmidt(subject, each / each.norm(), count) for each in drawn])


def random_gauge(subject: Subject, draws: int, generator: torch.Generator) -> Tensor | str:
    """Norms of the terms ``W_b`` of the same weight when the bond's basis is a random one (Haar).

    ``W = sum_b (U S^(1/2) q_b) (V S^(1/2) q_b)^T`` with a random orthogonal Q has terms of norm
    ``q_b^T S q_b``: a weighted mean of the Schmidt values, so they are flatter than those. This
    says how much of a spectrum is the doing of the SVD's gauge and nothing about the weight. On a
    loop both cores beside the bond are turned by Q, from the gauge as given.
    """
    if subject.cut is not None:
        return _turned_values(subject.schmidt, draws, generator)
    bond = subject.bond
    if bond is None or len(bond.network.places[bond.name]) != 2:
        return "the bond sits on another number of cores than two: its gauge is scales alone"
    found: list[Tensor] = []
    for _ in range(draws):
        turned = _turned_cores(bond, haar(bond.size, generator, dtype=torch.float64))
        found.append(term_norms(bond.network, turned, bond.name))
    return torch.stack(found).sort(descending=True).values


NULLS: dict[str, Null] = {
    "shuffled": shuffled,
    "signs": signs,
    "gaussian": gaussian,
    "noise": noise,
    "gauge": random_gauge,
}
"""The nulls by name."""


def bands(
    subject: Subject, nulls: Sequence[str], draws: int, seed: int, label: str = ""
) -> dict[str, Band]:
    """A band for each null, the same whichever others are asked for.

    Args:
        subject: the observed.
        nulls: names in `NULLS`.
        draws: of each null; the smallest p is ``1 / (1 + draws)``.
        seed: of the draws.
        label: of the subject, such as layer and bond; other labels give other draws.

    Raises:
        SelectionError: a null that is not known.
        DataError: fewer than two draws.
    """
    check(nulls, draws)
    made: dict[str, Band] = {}
    for name in nulls:
        generator = torch.Generator().manual_seed(seed + zlib.crc32(f"{label}|{name}".encode()))
        none = _nothing_to_compare(subject.values)
        found = none or NULLS[name](subject, draws, generator)
        made[name] = _band(name, subject.values, found)
    return made


def check(nulls: Sequence[str], draws: int) -> None:
    """Refuse nulls that are not known, and too few draws.

    Raises:
        SelectionError: a null that is not known.
        DataError: fewer than two draws.
    """
    unknown = [name for name in nulls if name not in NULLS]
    if isinstance(nulls, str) or unknown:
        came = nulls if isinstance(nulls, str) else unknown[0]
        raise SelectionError(f"Null {came!r} came; write a tuple of some of {', '.join(NULLS)}.")
    if isinstance(draws, bool) or not isinstance(draws, int) or draws < 2:
        raise DataError(f"{draws!r} draws came; a band needs a whole number of at least 2.")


def _from_svd(
    subject: Subject, draws: int, make: Callable[[Tensor, Tensor, Tensor], Tensor]
) -> Tensor:
    """Draws made of ``U``, ``S`` and ``S V^T`` of the weight, or of its transpose where tall."""
    weight, count = _ready(subject)
    flat = weight if len(weight) <= weight.shape[1] else weight.T
    squares, basis = torch.linalg.eigh((flat @ flat.T).double())
    scales, basis = squares.clamp(min=0).sqrt().to(flat.dtype), basis.to(flat.dtype)
    rest = basis.T @ flat

    def one() -> Tensor:
        drawn = make(basis, scales, rest)
        return _schmidt(subject, drawn if flat is weight else drawn.T, count)

    return torch.stack([one() for _ in range(draws)])


def _schmidt(subject: Subject, weight: Tensor, count: int) -> Tensor:
    assert subject.cut is not None
    return profile(fast_values(subject.cut.matrix(weight), count))


def _ready(subject: Subject) -> tuple[Tensor, int]:
    """The weight at norm 1, in float32 where that gives the observed entropy to `TIE`."""
    assert subject.weight is not None
    assert subject.cut is not None
    weight, count = subject.weight.double(), len(subject.values)
    weight = weight / weight.norm()
    if min(subject.cut.shape[1:]) > SMALL:
        quick, exact = (entropy(_schmidt(subject, w, count)) for w in (weight.float(), weight))
        if abs(float(quick - exact)) < TIE:
            return weight.float(), count
    return weight, count


def _turned_values(schmidt: Tensor, draws: int, generator: torch.Generator) -> Tensor:
    blocks, count = schmidt.shape
    found: list[Tensor] = []
    for _ in range(draws):
        squares = haar(count, generator, blocks).double().square()
        norms = (schmidt.unsqueeze(-2) @ squares).squeeze(-2)
        found.append(profile(norms.sort(descending=True).values))
    return torch.stack(found)


def _turned_cores(bond: Bond, turn: Tensor) -> list[Tensor]:
    """The cores with the two beside a bond turned by an orthogonal matrix: the same weight."""
    cores = [core.double().cpu() for core in bond.cores]
    for k in bond.network.places[bond.name]:
        axis = bond.network.names[k].index(bond.name)
        cores[k] = (cores[k].movedim(axis, -1) @ turn).movedim(-1, axis)
    return cores


def _nothing_to_compare(values: Tensor) -> str | None:
    if not float(values.norm()):
        return "the weight is zero"
    return "there is a single value, and its entropy is always 0" if len(values) == 1 else None


def _band(name: str, values: Tensor, found: Tensor | str) -> Band:
    if isinstance(found, str):
        none = values.new_zeros(0)
        return Band(name, none, none, none, None, None, found)
    entropies, observed = entropy(found), entropy(values)
    shares = found / found.norm(dim=-1, keepdim=True)
    low, high = torch.quantile(shares, found.new_tensor(SPREAD), dim=0)
    below = int((entropies <= observed + TIE).sum())
    distance = float((observed - entropies.mean()) / entropies.std().clamp(min=TIE))
    return Band(name, low, high, entropies, (1 + below) / (1 + len(found)), distance)
