"""Schmidt values of a bond, and what is made of them: profiles and entropies."""

from collections.abc import Sequence

import opt_einsum
import torch
from torch import Tensor

from bondwise.network.network import Network
from bondwise.read.bonds import Bond, matrices


def schmidt_values(bond: Bond) -> Tensor:
    """Schmidt values at a bond that cuts, (blocks, count) in float64, descending.

    The singular values of the weight unfolded into the two sides of the bond, for each block. With
    the sides ``Q1 R1`` and ``Q2 R2`` they are those of ``R1 R2^T``: the weight is never formed
    (Oseledets 2011). There are as many as the bond and the smaller side allow.

    >>> from bondwise import lowrank
    >>> cores = (torch.eye(3)[:, :2], torch.diag(torch.tensor([3.0, 4.0])))
    >>> schmidt_values(Bond("", lowrank(3, 2, 2), cores, "a"))
    tensor([[4., 3.]], dtype=torch.float64)

    Raises:
        NetworkError: the bond does not cut the network.
    """
    first, second = (torch.linalg.qr(side.cpu(), mode="r").R for side in matrices(bond))
    return torch.linalg.svdvals(first @ second.mT)


def entropy(values: Tensor) -> Tensor:
    """Entropy in nats of ``p = values^2 / sum values^2`` along the last dimension; 0 for zeros.

    >>> entropy(torch.ones(4)).item()       # log 4
    1.386...
    """
    squares = values.double().square()
    shares = squares / squares.sum(-1, keepdim=True).clamp(min=torch.finfo(torch.float64).tiny)
    return torch.special.xlogy(shares, shares).sum(-1).abs()


def profile(values: Tensor) -> Tensor:
    """Descending values of some blocks, (blocks, count), as one: root mean square at each place."""
    return values.double().square().mean(-2).sqrt()


def term_norms(net: Network, cores: Sequence[Tensor], name: str) -> Tensor:
    """Norms of the terms ``W_b`` of a bond: root of the diagonal of their Gram matrix, float64.

    The network is contracted with itself, its bond held fixed; no term is ever formed.
    """
    operands: list[Tensor | list[str]] = []
    for copy in ("", "'"):
        for core, names in zip(cores, net.names, strict=True):
            own = [n if n in net.open or n == name else n + copy for n in names]
            operands += [core.double(), own]
    squares: Tensor = opt_einsum.contract(*operands, [name])
    return squares.clamp(min=0).sqrt()


def haar(
    size: int, generator: torch.Generator, *batch: int, dtype: torch.dtype = torch.float32
) -> Tensor:
    """Random orthogonal matrices, uniform over the group (Mezzadri 2007).

    >>> Q = haar(3, torch.Generator().manual_seed(0))
    >>> torch.allclose(Q.T @ Q, torch.eye(3), atol=1e-6)
    True
    """
    q, r = torch.linalg.qr(torch.randn(*batch, size, size, generator=generator, dtype=dtype))
    return q * r.diagonal(dim1=-2, dim2=-1).sign().unsqueeze(-2)


def fast_values(matrices: Tensor, count: int) -> Tensor:
    """The largest singular values of a batch, (blocks, count), from the smaller Gram matrix.

    In the dtype of the matrices; with matrices of norm 1, values are off by at most the root of
    that dtype's rounding (3e-4 or 1e-8), where they are far below the largest, and much less above.
    """
    wide = matrices.shape[-2] <= matrices.shape[-1]
    gram = matrices @ matrices.mT if wide else matrices.mT @ matrices
    return torch.linalg.eigvalsh(gram).double().clamp(min=0).sqrt().flip(-1)[..., :count]
