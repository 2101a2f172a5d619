"""Tucker-2 of a convolution for all pairs of ranks at once, from one HOSVD in whitened coordinates.

With channels and kernel of the metric whitened, ``T = W (A^1/2 x B^1/2)``, the leading singular
vectors of T over rows and over channels span the cuts of every size, and the squared core says what
each loses (De Lathauwer et al. 2000). In a full metric of the patches the channels are cut in its
marginals; given that cut, rows are cut by reduced-rank regression in the metric itself (Izenman
1975), which is the best there is for all ranks at once.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Float
from torch import Tensor

from bondwise.errors import FitError, ShapeError
from bondwise.fit.metric import Kronecker, Metric, moment_of
from bondwise.fit.moment import Moment, root
from bondwise.fit.solvers import solve

_NOISE = 1e-13  # of the largest energy of a channel direction, below which it is rounding
_MULTIPLE, _COLUMNS = 8, 16  # numbers of channels that are tried in a full metric by default


@torch.no_grad()
def tucker2_errors(
    weight: Tensor,
    metric: Metric | Kronecker | Tensor | None = None,
    inner: Sequence[int] | None = None,
) -> Float[Tensor, "out_and_one inp_and_one"]:
    """``||(W - W~) L||^2`` of `tucker2_cut` for every pair of ranks (rows, channels).

    The metric is scaled to a largest variance of 1, as in `fit`; entry (0, 0) is ``||W L||^2``.

    Args:
        weight: out x in x taps.
        metric: of the patches.
        inner: in a full metric, the ranks of the channels to measure; multiples of 8 by default.
            The others are infinite.

    >>> W = torch.zeros(2, 2, 1)
    >>> W[0, 0, 0], W[1, 1, 0] = 2.0, 1.0
    >>> tucker2_errors(W)
    tensor([[5., 5., 5.],
            [5., 1., 1.],
            [5., 1., 0.]], dtype=torch.float64)

    Raises:
        ShapeError: the weight has not three axes.
        FitError: the metric is none of its patches.
    """
    return _Cuts.of(weight, metric).errors(inner)


@torch.no_grad()
def tucker2_cut(
    weight: Tensor,
    metric: Metric | Kronecker | Tensor | None,
    ranks: tuple[int, int],
) -> tuple[Tensor, Tensor, Tensor]:
    """The cores (out, p), (p, q, taps), (q, in) of one pair of ranks, float64.

    No inverse of the metric is needed: what the cores do with inputs that never come is what the
    weight does with them, or nothing.

    >>> cores = tucker2_cut(torch.ones(4, 3, 2), None, (1, 1))
    >>> torch.einsum("op,pqk,qi->oik", *cores).allclose(torch.ones(4, 3, 2).double())
    True

    Raises:
        ShapeError: the weight has not three axes.
        FitError: the metric is none of its patches, or a rank is below 1 or above what there is.
    """
    out, inp = weight.shape[:2]
    if not (1 <= ranks[0] <= out and 1 <= ranks[1] <= inp):
        raise FitError(
            f"Ranks {tuple(ranks)} came for {out} rows and {inp} channels; give from 1 to as many."
        )
    return _Cuts.of(weight, metric).cut(*ranks)


@dataclass(frozen=True, eq=False)
class _Cuts:
    """A weight (out, in, taps), the metric of its patches, and the two factors that are whitened.

    The factors are the metric's own where it is a product, else its marginals.
    """

    weight: Tensor
    moment: Moment | None
    channels: Tensor | None
    kernel: Tensor | None

    @classmethod
    def of(cls, weight: Tensor, metric: Metric | Kronecker | Tensor | None) -> "_Cuts":
        if weight.ndim != 3:
            raise ShapeError(f"A weight of shape {tuple(weight.shape)} came; give (out, in, taps).")
        weight = weight.detach().to(torch.float64)
        _, inp, taps = weight.shape
        if metric is None:
            return cls(weight, None, None, None)
        moment = moment_of(metric, inp * taps).to(weight.device)
        if moment.identity or len(moment.factors) == 2:
            return cls(weight, None, *(moment.factors if len(moment.factors) == 2 else (None,) * 2))
        (full,) = moment.factors
        assert full is not None
        parts = full.reshape(inp, taps, inp, taps)
        kernel = torch.einsum("itiu->tu", parts)
        return cls(weight, moment, torch.einsum("itjt->ij", parts) / kernel.trace(), kernel)

    @cached_property
    def _channel_side(self) -> tuple[Tensor, Tensor]:
        """Directions of the whitened channels times their root (in, in), and what undoes it.

        With ``G`` the Gram matrix over channels and ``R G R V = V e``, the second is ``V^T R^-1``
        written as ``e^-1 V^T R G``.
        """
        inp = self.weight.shape[1]
        half = self.weight if self.kernel is None else self.weight @ root(self.kernel)
        flat = half.transpose(0, 1).reshape(inp, -1)
        gram = flat @ flat.T
        if self.channels is None:
            vectors = torch.linalg.eigh(gram).eigenvectors.flip(-1)
            return vectors, vectors.T
        side = root(self.channels)
        whitened = side @ gram @ side
        values, vectors = torch.linalg.eigh((whitened + whitened.T) / 2)
        values, forth = values.flip(-1), side @ vectors.flip(-1)
        known = values > _NOISE * values[0]
        back = torch.where(known, 1 / values.where(known, 1.0), 0.0)[:, None] * (forth.T @ gram)
        return forth, back

    @cached_property
    def _core(self) -> tuple[Tensor, Tensor]:
        """Directions of the rows (out, out), and the whole core, its kernel whitened."""
        half = self.weight if self.kernel is None else self.weight @ root(self.kernel)
        turned = torch.matmul(self._channel_side[0].T, half)
        flat = turned.flatten(1)
        rows = torch.linalg.eigh(flat @ flat.T).eigenvectors.flip(-1)
        return rows, (rows.T @ flat).reshape(turned.shape)

    def errors(self, inner: Sequence[int] | None) -> Tensor:
        out, inp, _ = self.weight.shape
        if self.moment is None:
            return _corners(self._core[1].square().sum(-1))
        table = self.weight.new_full((out + 1, inp + 1), float("inf"))
        flat = self.weight.flatten(1)
        total = (self.moment.push(flat) * flat).sum()
        table[0] = total
        table[:, 0] = total
        for rank in _columns(inp) if inner is None else inner:
            left, right = self._regression(rank)
            values = torch.linalg.eigvalsh(left @ right.T).flip(-1).clamp(min=0)
            tails = values.flip(0).cumsum(0).flip(0)
            unmet = (total - values.sum()).clamp(min=0)
            table[:, rank] = unmet + torch.cat([tails, tails.new_zeros(1)])
            table[0, rank] = total
        return table

    def cut(self, out: int, inp: int) -> tuple[Tensor, Tensor, Tensor]:
        forth, back = self._channel_side
        if self.moment is None:
            rows = self._core[0][:, :out]
            middle = torch.matmul(forth[:, :inp].T, self.weight)
            core = (rows.T @ middle.flatten(1)).reshape(out, *middle.shape[1:])
            return rows, core, back[:inp].contiguous()
        left, right = self._regression(inp)
        explained = left @ right.T
        rows = torch.linalg.eigh((explained + explained.T) / 2).eigenvectors.flip(-1)[:, :out]
        core = (rows.T @ left).reshape(out, inp, -1)
        return rows, core, back[:inp].contiguous()

    def _regression(self, rank: int) -> tuple[Tensor, Tensor]:
        """Least squares on channels cut to a rank: coefficients and ``W C E``, (out, rank k)."""
        assert self.moment is not None
        (full,) = self.moment.factors
        assert full is not None
        out, inp, taps = self.weight.shape
        back = self._channel_side[1][:rank]
        side = (back @ full.reshape(inp, -1)).reshape(rank * taps, inp * taps)
        right = self.weight.reshape(out, -1) @ side.T
        gram = torch.matmul(back, side.reshape(rank * taps, inp, taps))
        gram = gram.reshape(rank * taps, rank * taps)
        return solve(gram[None], right[None])[0], right


def _corners(energy: Float[Tensor, "m n"]) -> Float[Tensor, "m_and_one n_and_one"]:
    """What lies outside of the leading corner of every size."""
    m, n = energy.shape
    below = torch.zeros(m + 1, 1, dtype=energy.dtype, device=energy.device)
    below[:m, 0] = energy.sum(1).flip(0).cumsum(0).flip(0)
    beside = torch.zeros(m + 1, n + 1, dtype=energy.dtype, device=energy.device)
    beside[1:, :n] = energy.flip(1).cumsum(1).flip(1).cumsum(0)
    return below + beside


def _columns(inp: int) -> list[int]:
    """Multiples of 8, at most 16 of them, and all channels."""
    step = _MULTIPLE * max(1, -(-inp // (_MULTIPLE * _COLUMNS)))
    return [*range(step, inp, step), inp]
