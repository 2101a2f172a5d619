"""The gauge fixed or put in: the same weight with a core as its centre, or X X^-1 on a bond."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from bondwise.compute.stack import inverse
from bondwise.errors import NetworkError, ShapeError
from bondwise.gauge.bonds import (
    Edge,
    absorb,
    branches,
    checked,
    edges_of,
    forest,
    hyperedges,
    unfolding,
)
from bondwise.network.network import Network


def canonical(net: Network, cores: Sequence[Tensor], center: int) -> tuple[Tensor, ...]:
    """The same weight with every core but one an isometry towards it: the norm sits in the centre.

    For a core with matrix ``Q`` (rest x bond to the centre, one per value of the block indices that
    the bond's two cores share) this means ``Q^T Q = I``, by QR along the tree (Vidal 2003,
    Schollwoeck 2011). Bonds between the same two cores count as one. Sizes stay: where a bond is
    larger than the rest of its core, ``Q`` has zero columns, and ``Q^T Q`` zeros on its diagonal.
    Pieces of a network that no bond joins pass their norm to the centre.

    Args:
        net: the network, whose bonds form a tree.
        cores: one tensor per core, its axes in the order of the core's indices.
        center: position of the core that takes the norm.

    >>> from bondwise import lowrank
    >>> A, B = canonical(lowrank(3, 4, 2), [torch.rand(3, 2), torch.rand(2, 4)], center=0)
    >>> torch.allclose(B @ B.T, torch.eye(2), atol=1e-6)
    True

    Raises:
        NetworkError: bonds close a loop, or an index sits on three or more cores.
        ShapeError: no core has the centre's position, or cores do not fit the network.
        FitError: a core holds values that are not finite.
    """
    count = len(net.cores)
    if isinstance(center, bool) or not 0 <= center < count:
        raise ShapeError(f"Center {center} came; '{net}' has cores 0 to {count - 1}.")
    edges = edges_of(net)
    tree = forest(edges, count)
    if hyperedges(net) or len(tree) < len(edges):
        raise NetworkError(
            f"'{net}' has a loop, or a bond on more than two cores, and so no canonical form; "
            "take a network whose bonds form a tree, such as an mpo."
        )
    loose = [Edge((center, k), ()) for k in range(count) if k != center]
    work = checked(net, cores)
    for branch in branches(forest([*tree, *loose], count), center):
        view = unfolding(net, branch, branch.core)
        isometry, factor = torch.linalg.qr(view.matrix(work[branch.core]))
        missing = view.shape[2] - isometry.shape[2]
        work[branch.core] = view.core(F.pad(isometry, (0, missing)))
        lost = F.pad(factor, (0, 0, 0, missing))
        work[branch.parent] = absorb(net, branch, work[branch.parent], lost)
    return tuple(new.to(core.dtype).contiguous() for new, core in zip(work, cores, strict=True))


def insert_gauge(
    net: Network, cores: Sequence[Tensor], bond: str, X: Float[Tensor, "rank rank2"]
) -> tuple[Tensor, ...]:
    """The same weight with ``X X^-1`` put on a bond: the first core times X, X^-1 times the second.

        first[.., b] = sum_a core[.., a] X[a, b]        second[b, ..] = sum_a X^-1[b, a] core[a, ..]

    First and second are in order of position. On an index of three or more cores only a diagonal
    ``X`` keeps the weight; it multiplies the first core, and its inverse the second.

    Args:
        net: the network.
        cores: one tensor per core, its axes in the order of the core's indices.
        bond: its name.
        X: invertible, (rank, rank).

    >>> from bondwise import lowrank
    >>> A, B = torch.rand(3, 2), torch.rand(2, 4)
    >>> A2, B2 = insert_gauge(lowrank(3, 4, 2), [A, B], "a", torch.tensor([[1.0, 2.0], [0.0, 1.0]]))
    >>> torch.allclose(A2 @ B2, A @ B)
    True

    Raises:
        NetworkError: no such bond, or one that sits on a single core.
        ShapeError: X of another size than the bond, without inverse, or not diagonal where it must.
    """
    _check_gauge(net, bond, X)
    work = checked(net, cores)
    first, second = net.places[bond][:2]
    device = work[first].device
    gauge, back = X.double().to(device), inverse(X, f"bond {bond} of size {len(X)}").to(device)
    for k, factor in ((first, gauge), (second, back.T)):
        axis = net.names[k].index(bond)
        work[k] = (work[k].movedim(axis, -1) @ factor).movedim(-1, axis)
    return tuple(new.to(core.dtype).contiguous() for new, core in zip(work, cores, strict=True))


def _check_gauge(net: Network, bond: str, X: Tensor) -> None:
    if bond not in net.bonds:
        raise NetworkError(
            f"Bond {bond!r} is not in '{net}'; its bonds are {', '.join(net.bonds)}."
        )
    if len(net.places[bond]) == 1:
        raise NetworkError(
            f"Bond {bond} sits on one core, {net.places[bond][0]}; a gauge needs a bond of two."
        )
    size = net.bonds[bond]
    if tuple(X.shape) != (size, size):
        raise ShapeError(f"X of shape {tuple(X.shape)} came; bond {bond} takes ({size}, {size}).")
    if len(net.places[bond]) > 2 and not torch.equal(X, X.diag().diag()):
        raise ShapeError(
            f"An X that is not diagonal came for bond {bond} of {len(net.places[bond])} cores, "
            "where only a diagonal one keeps the weight; write torch.diag(scales)."
        )
