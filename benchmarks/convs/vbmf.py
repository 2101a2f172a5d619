"""Tucker-2 of Kim et al. 2016, without data: ranks by the analytic EVBMF, factors by HOOI."""

from collections.abc import Callable
from math import ceil, log, prod, sqrt

import torch
from scipy.optimize import minimize_scalar
from torch import Tensor, nn

SWEEPS = 10


def evbmf_rank(matrix: Tensor) -> int:
    """Rank that the global empirical variational Bayes solution keeps; the noise is estimated.

    Nakajima, Sugiyama, Babacan and Tomioka 2013, "Global Analytic Solution of Fully-observed
    Variational Bayesian Matrix Factorization", theorem 2 and corollary 1.
    """
    L, M = sorted(matrix.shape)
    wide = matrix.double() if matrix.shape[0] == L else matrix.double().T
    squared = torch.linalg.eigvalsh(wide @ wide.T).flip(0).clamp_min(0)
    alpha = L / M
    tau = 2.5129 * sqrt(alpha)
    least = (1 + tau) * (1 + alpha / tau)
    noise = _noise(squared, L, M, alpha, least)
    return int((squared > M * noise * least).sum())


def _noise(squared: Tensor, L: int, M: int, alpha: float, least: float) -> float:
    """The variance of the noise: the smallest of the free energy between its known bounds."""
    highest = float(squared.sum()) / (L * M)
    kept = min(ceil(L / (1 + alpha)) - 1, L - 1)
    lowest = max(float(squared[kept]) / (M * least), float(squared[kept:].mean()) / M)
    if lowest >= highest:
        return highest

    def energy(logarithm: float) -> float:
        x = squared.clamp_min(1e-300) / (M * torch.tensor(logarithm).double().exp())
        over = x > least
        total = (x - x.log()).sum()
        big = x[over]
        gap = big - (1 + alpha)
        tau = 0.5 * (gap + (gap**2 - 4 * alpha).clamp_min(0).sqrt())
        total += ((tau + 1).log() + alpha * (tau / alpha + 1).log() - tau).sum()
        return float(total)

    found = minimize_scalar(energy, bounds=(log(lowest), log(highest)), method="bounded")
    return float(torch.tensor(found.x).exp())


def unfolded(weight: Tensor, mode: int) -> Tensor:
    return weight.movedim(mode, 0).flatten(1)


def vbmf_ranks(weight: Tensor) -> tuple[int, ...]:
    """Of the outputs and the inputs of a convolution, or of a matrix the one that it has."""
    if weight.ndim == 2:
        return (max(1, evbmf_rank(weight)),)
    return tuple(
        max(1, evbmf_rank(unfolded(weight, mode))) if weight.shape[mode] > 1 else 1
        for mode in (0, 1)
    )


def cost(weight: Tensor, ranks: tuple[int, ...]) -> int:
    """Numbers of the factors."""
    out, inp = weight.shape[:2]
    if weight.ndim == 2:
        return ranks[0] * (out + inp)
    p, q = ranks
    first = 0 if q == inp else inp * q  # a rank that cuts nothing needs no factor
    last = 0 if p == out else out * p
    return first + last + p * q * prod(weight.shape[2:])


def _leading(matrix: Tensor, rank: int) -> Tensor:
    return torch.linalg.eigh(matrix @ matrix.T).eigenvectors[:, -rank:]


def hooi(weight: Tensor, ranks: tuple[int, int]) -> tuple[Tensor, Tensor, Tensor]:
    """Outputs x p, core, inputs x q (De Lathauwer et al. 2000); kernel modes are not cut."""
    w = weight.double()
    v = _leading(unfolded(w, 1), ranks[1])
    u = _leading(unfolded(w, 0), ranks[0])
    for _ in range(SWEEPS):
        u = _leading(unfolded(torch.einsum("oi...,iq->oq...", w, v), 0), ranks[0])
        v = _leading(unfolded(torch.einsum("oi...,op->pi...", w, u), 1), ranks[1])
    core = torch.einsum("oi...,op,iq->pq...", w, u, v)
    return u.to(weight.dtype), core.to(weight.dtype), v.to(weight.dtype)


def factorized(layer: nn.Module, ranks: tuple[int, ...]) -> nn.Module:
    """The layer as a chain of thin ones."""
    if isinstance(layer, nn.Linear):
        return _thin_linear(layer, ranks[0])
    assert isinstance(layer, nn.Conv2d)
    p, q = ranks
    u, core, v = hooi(layer.weight.detach(), (p, q))
    steps: list[nn.Module] = []
    if q < layer.in_channels:
        steps.append(_conv(v.T[:, :, None, None], None))
    else:
        core = torch.einsum("pq...,iq->pi...", core, v)
    if p == layer.out_channels:
        core = torch.einsum("pq...,op->oq...", core, u)
    bias = None if layer.bias is None else layer.bias.detach()
    spatial = _conv(core, bias if p == layer.out_channels else None)
    spatial.stride, spatial.padding, spatial.dilation = layer.stride, layer.padding, layer.dilation
    steps.append(spatial)
    if p < layer.out_channels:
        steps.append(_conv(u[:, :, None, None], bias))
    return nn.Sequential(*steps)


def _conv(weight: Tensor, bias: Tensor | None) -> nn.Conv2d:
    out, inp, *kernel = weight.shape
    conv = nn.Conv2d(inp, out, kernel, bias=bias is not None)  # type: ignore[arg-type]
    _fill(conv, weight, bias)
    return conv


def _fill(layer: nn.Conv2d | nn.Linear, weight: Tensor, bias: Tensor | None) -> None:
    with torch.no_grad():
        layer.weight.copy_(weight)
        if bias is not None and layer.bias is not None:
            layer.bias.copy_(bias)


def _thin_linear(layer: nn.Linear, rank: int) -> nn.Sequential:
    u, s, v = torch.linalg.svd(layer.weight.detach(), full_matrices=False)
    first = nn.Linear(layer.in_features, rank, bias=False)
    last = nn.Linear(rank, layer.out_features, bias=layer.bias is not None)
    _fill(first, s[:rank, None] * v[:rank], None)
    _fill(last, u[:, :rank], None if layer.bias is None else layer.bias.detach())
    return nn.Sequential(first, last)


def largest(fits: Callable[[float], bool], low: float, high: float, steps: int = 40) -> float:
    """The largest value that fits, by halving; ``low`` has to."""
    for _ in range(steps):
        middle = (low + high) / 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low


def scaled(weight: Tensor, ranks: tuple[int, ...], scale: float) -> tuple[int, ...]:
    """Ranks times one factor, between one and what is full."""
    full = (min(weight.shape),) if weight.ndim == 2 else tuple(weight.shape[:2])
    return tuple(
        min(most, max(1, round(rank * scale))) for rank, most in zip(ranks, full, strict=True)
    )
