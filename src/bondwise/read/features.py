"""Bond features: each value of a bond as a signed number for every token of a corpus, streamed."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import prod
from typing import Any

import torch
from torch import Tensor, nn

from bondwise.errors import DataError
from bondwise.fit.metric import Moments
from bondwise.flow.calibrate import Inputs
from bondwise.flow.forms.door import batches as opened_batches
from bondwise.flow.watch import Entering, watch
from bondwise.progress import Progress, silent
from bondwise.read.bonds import Bond, check_rows
from bondwise.read.contributions import Readout, gram, readout

TOP, LOW = 100, 5  # examples that are kept of each feature: for its tokens, and of the other end
BEFORE, AFTER = 16, 7  # tokens around an example whose values are kept
BINS, WIDTH = 49, 6.0  # of a histogram, over so many rms on each side


@dataclass(frozen=True, eq=False)
class Features:
    """What some values of one bond do over a corpus.

    A value of the bond is read as ``f = reader . x``, a number for each token whose direction in
    the output is `directions` (`bondwise.read.contributions.Readout`). Its sign is free; it is such
    that the distribution leans to the positive side.

    Attributes:
        bond: in the gauge that it was read in.
        indices: (k,), which values of the bond, the one that adds most to the output first.
        readers: (k, in).
        directions: (k, out), of length one.
        pure: (k,), the share of each term that its feature holds, 0 to 1.
        share: (k,), ``E ||y_b||^2`` over that of the whole output; they need not add up to one.
        tokens: how many were seen.
        mean: (k,).
        rms: (k,).
        skew: (k,), ``E f^3 / rms^3``.
        density: (k,), the share of tokens that carry it: ``(E f^2)^2 / E f^4``, 1/3 for Gaussians.
        counts: (k, bins), of the histogram from -`WIDTH` to `WIDTH` rms; ends hold what is beyond.
        top: (k, n), the largest values, descending.
        at: (k, n), at which token of the corpus each is; windows one after another.
        low: (k, m), the smallest values, ascending.
        low_at: (k, m).
        around: (k, n, `BEFORE` + 1 + `AFTER`), values at the tokens about each of ``top``; zero
            beyond the window's ends.
    """

    bond: Bond
    indices: Tensor
    readers: Tensor = field(repr=False)
    directions: Tensor = field(repr=False)
    pure: Tensor = field(repr=False)
    share: Tensor = field(repr=False)
    tokens: int
    mean: Tensor = field(repr=False)
    rms: Tensor = field(repr=False)
    skew: Tensor = field(repr=False)
    density: Tensor = field(repr=False)
    counts: Tensor = field(repr=False)
    top: Tensor = field(repr=False)
    at: Tensor = field(repr=False)
    low: Tensor = field(repr=False)
    low_at: Tensor = field(repr=False)
    around: Tensor = field(repr=False)

    def values(self, x: Tensor) -> Tensor:
        """The features of inputs of the layer: (*batch, in) -> (*batch, k)."""
        return x.to(self.readers.dtype) @ self.readers.T


def features(
    model: nn.Module,
    bonds: Sequence[Bond],
    batches: Any,
    *,
    tokenizer: Any = None,
    per_bond: int = 64,
    moments: Mapping[str, Tensor] | None = None,
    progress: Progress = silent,
) -> list[Features]:
    """Stream a corpus through a model and keep what its bonds' values do, in bounded memory.

    Two passes: the inputs' second moments say which values add most to the outputs, then those
    are followed. Memory goes with ``bonds x per_bond x TOP``, not with the corpus.

    Args:
        model: a tensorized model.
        bonds: which, each in the gauge that it is to be read in (`gauge(..).bond`).
        batches: that the model takes, or data in any form (`bondwise.flow.forms.door`); read twice.
        tokenizer: for text, chats and padding.
        per_bond: how many values of each bond are followed.
        moments: ``E[x x^T]`` of the inputs of layers by name, where they are known already.
        progress: is told a stage, what is done and what there is.

    Raises:
        DataError: no batch, inputs that are not finite, or a corpus of fewer tokens than the
            statistics need.
        SelectionError: a layer is a convolution.

    >>> from bondwise import TensorLinear, lowrank
    >>> from bondwise.read import bond
    >>> model = nn.Sequential(TensorLinear(lowrank(6, 8, 2)))
    >>> x = torch.randn(400, 8)
    >>> found = features(model, [bond(model, "0")], [x])[0]
    >>> bool(torch.allclose(found.values(x).max(0).values, found.top[:, 0], atol=1e-6))
    True
    """
    batches = opened_batches(batches, tokenizer, count=None)
    names = list(dict.fromkeys(bond.layer for bond in bonds))
    check_rows(model, names)
    known = dict(moments or {})
    missing = [name for name in names if name not in known]
    if missing:
        progress("moments", 0, 1)
        known |= input_moments(model, missing, batches)
        progress("moments", 1, 1)
    streams: dict[str, list[_Stream]] = {}
    for bond in bonds:
        if bond.layer not in known:
            raise DataError(f"No token reached layer {bond.layer!r}; give data that uses it.")
        stream = _Stream(bond, known[bond.layer], per_bond)
        streams.setdefault(bond.layer, []).append(stream)
    done = [0]

    def see(entering: Entering) -> None:
        entering.check()
        for stream in streams[entering.name]:
            stream.add(entering.x, entering.mask)
        done[0] += 1
        progress("features", min(done[0] // len(names), len(batches)), len(batches))

    watch(model, {name: model.get_submodule(name) for name in names}, batches, see)
    order = {id(stream.bond): stream for own in streams.values() for stream in own}
    return [order[id(bond)].end() for bond in bonds]


def input_moments(
    model: nn.Module, names: Sequence[str], batches: Any, tokenizer: Any = None
) -> dict[str, Tensor]:
    """``E[x x^T]`` of the inputs of some layers, (in, in), unshrunk; those that were reached.

    Args:
        model: any model.
        names: paths of its layers.
        batches: as the model takes them, or data in any form.
        tokenizer: for text, chats and padding.

    Raises:
        DataError: no batch, or an input that is not finite.
        SelectionError: a layer is a convolution.

    >>> model = nn.Sequential(nn.Linear(2, 3))
    >>> input_moments(model, ["0"], [torch.tensor([[1.0, 0.0], [0.0, 2.0]])])["0"].diagonal()
    tensor([0.5000, 2.0000], dtype=torch.float64)
    """
    check_rows(model, names)
    watched = Inputs({name: model.get_submodule(name) for name in names})
    watched.watch(model, opened_batches(batches, tokenizer, count=None))
    made = {
        group: own.metric(shrinkage=0.0).shrunk()
        for group, own in watched.moments.items()
        if isinstance(own, Moments) and not own.empty  # those of a convolution are of patches
    }
    return {n: made[watched.group[n]] for n in names if watched.group.get(n) in made}


class _Stream:
    """One bond's features as the corpus goes by."""

    def __init__(self, bond: Bond, moments: Tensor, per_bond: int) -> None:
        self.bond = bond
        G = gram(bond, moments)
        strength = G.diagonal().clamp_min(0)
        self.indices = strength.argsort(descending=True, stable=True)[:per_bond]
        self.share = strength[self.indices] / G.sum().clamp_min(1e-300)
        read = readout(bond)
        C = moments.double().to(read.readers.device)
        V = read.readers[self.indices].double()
        self.scale = torch.einsum("ki,ij,kj->k", V, C, V).clamp_min(0).sqrt().float()
        self.read = Readout(*(t[self.indices] for t in (read.readers, read.directions, read.pure)))
        count = len(self.indices)
        self.powers = torch.zeros(4, count, dtype=torch.float64)
        self.counts = torch.zeros(count, BINS, dtype=torch.long)
        self.ends = _Best(count), _Best(count)  # the largest values, and of those turned round
        self.tokens, self.offset = 0, 0

    def add(self, x: Tensor, mask: Tensor | None) -> None:
        """One batch: (windows, length, in) or (samples, in)."""
        F = (x.to(self.read.readers.dtype) @ self.read.readers.T).float().cpu()
        length = F.shape[-2] if F.ndim > 2 else 1
        flat = F.reshape(-1, F.shape[-1])
        real = None if mask is None else mask.reshape(-1).cpu()
        told = flat if real is None else flat[real]
        self._sum(told)
        for end, turned in zip(self.ends, (flat, -flat), strict=True):
            here = turned if real is None else turned.masked_fill(~real[:, None], float("-inf"))
            values, at = here.T.topk(min(TOP, len(here)), dim=1)
            context = _context(turned.reshape(-1, length, turned.shape[1]), at, length)
            end.merge(values, at + self.offset, context)
        self.offset += prod(F.shape[:-1])

    def _sum(self, told: Tensor) -> None:
        wide = told.double()
        self.powers += torch.stack([wide.pow(k).sum(0) for k in (1, 2, 3, 4)])
        steps = (told / self.scale.cpu().clamp_min(1e-30) + WIDTH) * (BINS / (2 * WIDTH))
        bins = steps.long().clamp(0, BINS - 1)
        self.counts.scatter_add_(1, bins.T, torch.ones_like(bins.T))
        self.tokens += len(told)

    def end(self) -> Features:
        """What was found.

        Raises:
            DataError: a corpus of too few tokens.
        """
        if self.tokens < TOP:
            raise DataError(
                f"{self.tokens} tokens came; the statistics of a feature need at least {TOP}."
            )
        first, second, third, fourth = self.powers / self.tokens
        rms, turn = second.sqrt(), third < 0
        sign = torch.where(turn, -1.0, 1.0)
        signs = sign.to(self.read.readers)[:, None]
        top, at, around = self._end(turn)
        low, low_at, _ = self._end(~turn)
        return Features(
            self.bond,
            self.indices,
            self.read.readers * signs,
            self.read.directions * signs,
            self.read.pure,
            self.share,
            self.tokens,
            (first * sign).float(),
            rms.float(),
            (third.abs() / rms.pow(3).clamp_min(1e-300)).float(),
            (second.square() / fourth.clamp_min(1e-300)).float(),
            torch.where(turn[:, None], self.counts.flip(1), self.counts),
            top,
            at,
            -low[:, :LOW],
            low_at[:, :LOW],
            around,
        )

    def _end(self, other: Tensor) -> list[Tensor]:
        """One end of each feature: its largest values, or where told those turned round."""
        one, two = ((end.values, end.at, end.around) for end in self.ends)
        return [
            torch.where(other.reshape(-1, *[1] * (a.ndim - 1)), b, a)
            for a, b in zip(one, two, strict=True)
        ]


class _Best:
    """The largest values of some features so far, where they are, and what is around them."""

    def __init__(self, count: int) -> None:
        self.values = torch.zeros(count, 0)
        self.at = torch.zeros(count, 0, dtype=torch.long)
        self.around = torch.zeros(count, 0, BEFORE + 1 + AFTER)

    def merge(self, values: Tensor, at: Tensor, around: Tensor) -> None:
        """Take up others."""
        both, places = torch.cat([self.values, values], 1), torch.cat([self.at, at], 1)
        about = torch.cat([self.around, around], 1)
        self.values, chosen = both.topk(min(TOP, both.shape[1]), dim=1)
        self.at = places.gather(1, chosen)
        self.around = about.gather(1, chosen[:, :, None].expand(-1, -1, about.shape[2]))


def _context(F: Tensor, at: Tensor, length: int) -> Tensor:
    """Values of each feature about some tokens: F (windows, length, k), at (k, n) -> (k, n, 24)."""
    window, place = at // length, at % length
    spots = place[..., None] + torch.arange(-BEFORE, AFTER + 1)
    inside = (spots >= 0) & (spots < length)
    which = torch.arange(F.shape[2])[:, None, None]
    found = F[window[..., None].expand_as(spots), spots.clamp(0, length - 1), which]
    return found * inside
