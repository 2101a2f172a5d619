"""How the error of Tucker-2 falls with its two ranks: a whole grid from three decompositions.

``C = L L^T`` is the metric of the patches. With ``U`` the leading left singular vectors of ``W L``
and ``V`` those of the channels that enter, in coordinates that their own metric whitens,

    W~ = U_p U_p^T W (A^1/2 V_q V_q^T A^-1/2 x I)

is Tucker-2 of ranks (p, q) (De Lathauwer et al. 2000; for kernels Kim et al. 2016). Its error at
every p comes of two products for each q, and a fit only improves on it. In a full metric of the
patches the core and ``U`` are the best ones for each ``V`` instead.
"""

from collections.abc import Sequence
from functools import cached_property

import torch
from jaxtyping import Float
from torch import Tensor

from bondwise.fit.alternating.solvers import solve
from bondwise.fit.metric import Kronecker, Metric, moment_of
from bondwise.fit.moment import Moment

Weighing = Metric | Kronecker | Tensor | None
_FLOOR = 1e-12  # of the largest variance: inputs below it are as good as never there


@torch.no_grad()
def tucker2_errors(
    basis: "Basis", inner: Sequence[int], held_out: Weighing = None
) -> Float[Tensor, "inner ranks"]:
    """Relative squared errors: for each rank of the inputs, at every rank of the outputs from 0.

    With all inputs it is low rank, ``o a, a i y x``, in closed form.

    Args:
        basis: of the weight of one group, in the metric that it is fitted in.
        inner: ranks of the inputs to look at.
        held_out: that errors are measured in; the same metric by default. A product of channels
            and kernel has few numbers of many patches: there it is that one too.

    >>> W = torch.diag(torch.tensor([2.0, 1.0]))[:, :, None]
    >>> tucker2_errors(Basis.of(W, None), [1, 2])
    tensor([[1.0000, 0.2000, 0.2000],
            [1.0000, 0.2000, 0.0000]])
    """
    if len(basis.moment.factors) > 1:
        return basis.errors()[list(inner)].to(basis.dtype)
    flat = basis.flat
    moment = basis.moment if held_out is None else _moment(held_out, basis.weight).to(flat.dtype)
    pushed = moment.push(flat)
    norm = (pushed * flat).sum().clamp(min=torch.finfo(flat.dtype).tiny)
    whole = _diagonal(basis.left, flat, pushed)
    found: list[Tensor] = []
    for rank in inner:
        cut, left = basis.inputs(rank)
        across = whole if cut is flat else _diagonal(left, cut, pushed)
        own = whole if cut is flat else _diagonal(left, cut, moment.push(cut))
        kept = (2 * across - own).cumsum(0)
        found.append(1 - torch.cat([kept.new_zeros(1), kept]) / norm)
    return torch.stack(found).clamp(min=0).to(basis.dtype)


@torch.no_grad()
def tucker2_cut(basis: "Basis", ranks: tuple[int, int]) -> Float[Tensor, "out columns"]:
    """The weight ``W~`` of such ranks, of the outputs and of the inputs: out x (in * taps).

    >>> W = torch.diag(torch.tensor([2.0, 1.0]))[:, :, None]
    >>> tucker2_cut(Basis.of(W, None), (1, 2)).round()
    tensor([[2., 0.],
            [0., 0.]])
    """
    outer, inner = ranks
    cut, left = basis.inputs(inner)
    left = left[:, :outer]
    return (left @ (left.mT @ cut)).to(basis.dtype)


@torch.no_grad()
def white_core(basis: "Basis", lost: float) -> tuple[Tensor, float]:
    """The weight in whitened coordinates, with as few directions of its inputs as may be.

    Args:
        basis: of the weight of one group.
        lost: of its square, what may be left out.

    Returns:
        Its core (out, directions, taps), and what was left out.
    """
    core = torch.matmul(basis.right.mT, basis.white)
    left = core.square().sum((0, 2)).flip(0).cumsum(0).flip(0)
    whole = float(left[0]) or 1.0
    kept = max(1, int((left > lost * whole).sum()))
    rest = float(left[kept]) / whole if kept < len(left) else 0.0
    return core[:, :kept].contiguous(), rest


class Basis:
    """The leading directions of a weight's outputs and of its inputs, in a metric.

    They cost the decompositions; errors at all ranks, cuts and cores come of them.
    """

    def __init__(self, weight: Tensor, moment: Moment, dtype: torch.dtype) -> None:
        self.weight, self.moment, self.dtype = weight, moment, dtype
        self.flat = weight.flatten(1)
        gram = moment.push(self.flat) @ self.flat.mT
        self.left = torch.linalg.eigh((gram + gram.mT) / 2).eigenvectors.flip(-1)
        channels = _channels(moment, weight)
        values, vectors = torch.linalg.eigh(channels)
        values = values.clamp(min=_FLOOR * float(values[-1])).sqrt()
        self.half, self.back = ((vectors * v) @ vectors.mT for v in (values, 1 / values))
        white = self._along(_taps(moment, self.flat, weight), self.half)
        rows = white.transpose(0, 1).flatten(1)
        right = rows @ rows.mT
        self.right = torch.linalg.eigh((right + right.mT) / 2).eigenvectors.flip(-1)
        self.white = white

    def errors(self) -> Tensor:
        """Relative squared errors where the metric is a product: (in + 1) x (out + 1), all ranks.

        In whitened coordinates what is kept is the sum of squares of a corner of the core.
        """
        core = (self.left.mT @ self.white.flatten(1)).reshape(self.white.shape)
        squares = self._along(core, self.right.mT).square().sum(2).mT
        kept = torch.zeros(squares.shape[0] + 1, squares.shape[1] + 1).to(squares)
        kept[1:, 1:] = squares.cumsum(0).cumsum(1)
        return 1 - kept / kept[-1, -1].clamp(min=torch.finfo(kept.dtype).tiny)

    @classmethod
    @torch.no_grad()
    def of(cls, weight: Float[Tensor, "out inp taps"], metric: Weighing) -> "Basis":
        """That of the weight of one group in the metric of its patches; None for none."""
        wide = weight.detach().to(torch.float32 if weight.numel() > 2**20 else torch.float64)
        return cls(wide, _moment(metric, weight).to(wide.dtype), weight.dtype)

    def inputs(self, rank: int) -> tuple[Tensor, Tensor]:
        """The weight with so many directions of its inputs, out x (in * taps), and its outputs'.

        In a full metric it is the least squares given those directions, of which the leading
        outputs are the best for every rank at once (reduced-rank regression, Izenman 1975).
        """
        if rank >= self.weight.shape[1]:
            return self.flat, self.left
        V = self.right[:, :rank]
        if len(self.moment.factors) > 1:
            left, right = self.back @ V, V.mT @ self.half  # W (A^1/2 V V^T A^-1/2)
            return self._along(self._along(self.weight, right), left).flatten(1), self.left
        gram, right = (part[..., : rank * self.weight.shape[2]] for part in self._normal)
        gram = gram[: right.shape[1]]  # directions are nested
        middle = solve(gram.double()[None], right.double()[None])[0].to(right)
        explained = middle @ right.mT
        vectors = torch.linalg.eigh((explained + explained.mT) / 2).eigenvectors.flip(-1)
        cut = self._along(middle.reshape(len(middle), rank, -1), self.back @ V)
        return cut.flatten(1), vectors

    @cached_property
    def _normal(self) -> tuple[Tensor, Tensor]:
        """``E^T C E`` and ``W C E`` of all directions ``E`` of what enters the spatial core."""
        down, inp = (self.back @ self.right).mT, self.weight.shape[1]
        right = self._along(self.moment.push(self.flat).reshape(self.weight.shape), down).flatten(1)
        size = right.shape[1]
        eye = torch.eye(size, dtype=right.dtype, device=right.device)
        wide = self._along(eye.reshape(size, inp, -1), down.mT).flatten(1)  # down x identity
        return self.moment.push(wide) @ wide.mT, right

    @staticmethod
    def _along(weight: Tensor, matrix: Tensor) -> Tensor:
        """The channels that enter, multiplied by a matrix: (out, in, taps) -> (out, m, taps)."""
        return torch.matmul(matrix, weight)


def _moment(metric: Weighing, weight: Tensor) -> Moment:
    _, inp, taps = weight.shape
    if metric is None:
        return Moment((inp, taps), (None, None))
    return moment_of(metric, inp * taps)


def _channels(moment: Moment, weight: Tensor) -> Tensor:
    """The metric of the channels, in x in: that of one tap in the mean."""
    _, inp, taps = weight.shape
    eye = torch.eye(inp, dtype=weight.dtype, device=weight.device)
    if moment.sizes == (inp, taps):
        return eye if moment.factors[0] is None else moment.factors[0].to(weight)
    (full,) = moment.factors
    if full is None:
        return eye
    return torch.einsum("itjt->ij", full.to(weight).reshape(inp, taps, inp, taps)) / taps


def _taps(moment: Moment, flat: Tensor, weight: Tensor) -> Tensor:
    """The weight in coordinates that the kernel's metric whitens, (out, in, taps)."""
    _, inp, taps = weight.shape
    if moment.sizes == (inp, taps):
        kernel = moment.factors[1]
    else:
        (full,) = moment.factors
        kernel = None
        if full is not None:
            kernel = torch.einsum("itiu->tu", full.reshape(inp, taps, inp, taps)) / inp
    if kernel is None:
        return flat.reshape(weight.shape)
    values, vectors = torch.linalg.eigh(kernel.to(weight))
    return weight @ ((vectors * values.clamp(min=0).sqrt()) @ vectors.mT)


def _diagonal(left: Tensor, one: Tensor, two: Tensor) -> Tensor:
    """``u_k^T one two^T u_k`` of every column of ``left``."""
    return ((left.mT @ one) * (left.mT @ two)).sum(1)
