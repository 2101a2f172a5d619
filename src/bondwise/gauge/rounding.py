"""Rounding cores to half precision so that the weight's output suffers least.

A rounded core spoils the output by what its parent can no longer undo. So each rounded core hands
its parent the change of gauge that makes up for it best, and the last core is rounded value by
value of a bond, each error handed on to the values still to come (Frantar et al. 2022, GPTQ).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from bondwise.errors import FitError
from bondwise.fit.metric import Metric, second_moment
from bondwise.gauge.bonds import Unfolding
from bondwise.network.network import Network

RIDGE = 1e-6
"""Share of the mean variance that is added to a Gram matrix: it bounds what a correction can be."""

SPREAD = 2
"""How far from their median the scales of rows may be when pivots are chosen, as a factor."""


@dataclass(frozen=True, slots=True)
class CoreMetric:
    """How the axes of a core are weighed: a Gram matrix for some groups of its indices."""

    names: tuple[str, ...]
    groups: tuple[tuple[tuple[str, ...], Tensor], ...]

    def apply(self, core: Tensor) -> Tensor:
        """The core times the Gram matrix of each group."""
        for group, gram in self.groups:
            at = [self.names.index(name) for name in group]
            last = list(range(-len(at), 0))
            moved = core.movedim(at, last)
            product = moved.reshape(*moved.shape[: -len(at)], -1) @ gram
            core = product.reshape(moved.shape).movedim(last, at)
        return core

    def scales(self, view: Unfolding) -> Float[Tensor, "blocks rest"]:
        """The root mean square that each row of the unfolded core is weighed by, its spread cut."""
        sizes = [view.sizes[view.order.index(axis)] for axis in range(len(self.names))]
        rms = torch.ones(sizes, dtype=torch.float64)
        for group, gram in self.groups:
            at = [self.names.index(name) for name in group]
            part = gram.diagonal().sqrt().reshape([sizes[axis] for axis in at])
            last = list(range(-len(at), 0))
            rms = (rms.movedim(at, last).to(part.device) * part).movedim(last, at)
        rows = view.matrix(rms)[..., 0]
        middle = rows.median()
        cut = rows.clamp(middle / SPREAD, middle * SPREAD)
        return cut if middle > 0 else torch.ones_like(rows)

    def with_bond(self, bonds: tuple[str, ...], gram: Tensor) -> "CoreMetric":
        """One more group: the bonds to a child, weighed by what the child sends along them."""
        return CoreMetric(self.names, (*self.groups, (bonds, gram)))


def core_metrics(net: Network, moment: Tensor | None) -> list[CoreMetric]:
    """How the column modes of each core are weighed: by their marginal of the second moment."""
    marginals = {} if moment is None else _marginals(net, moment)
    return [
        CoreMetric(names, tuple(((n,), marginals[n]) for n in names if n in marginals))
        for names in net.names
    ]


def moment_of(scale: Tensor | Metric | None, size: int) -> Tensor | None:
    """A second moment (float64) from one, or from the root mean squares of the inputs (in,).

    Raises:
        FitError: root mean squares that are negative, not finite, all zero or of another length; a
            moment that is none.
    """
    if scale is None:
        return None
    if isinstance(scale, Metric) or scale.ndim != 1:
        return second_moment(scale, size)
    if len(scale) != size or not bool((scale.isfinite() & (scale >= 0)).all() and scale.any()):
        raise FitError(
            f"Scales of shape {tuple(scale.shape)} came for {size} inputs; give the root mean "
            "square of each, finite and not all zero."
        )
    return second_moment(scale.double().square().diag(), size)


def gram(
    metric: CoreMetric, view: Unfolding, before: Tensor, after: Tensor
) -> tuple[Tensor, Tensor]:
    """``G = B^T M B`` of a core after rounding, and the ``X`` that makes up for the rounding.

    ``X = I + G^-1 B^T M (A - B)`` makes ``A - B X`` smallest in ``M``; a ridge keeps it near ``I``.
    """
    B, weighed = view.matrix(after), view.matrix(metric.apply(after))
    plain = B.mT @ weighed
    eye = torch.eye(plain.shape[-1], dtype=plain.dtype, device=plain.device)
    mean = plain.diagonal(dim1=-2, dim2=-1).mean(-1)
    ridge = RIDGE * torch.where(mean > 0, mean, 1.0)
    G = (plain + plain.mT) / 2 + ridge[:, None, None] * eye
    off = weighed.mT @ (view.matrix(before) - B)
    return G, eye + torch.cholesky_solve(off, torch.linalg.cholesky(G))


def feedback(
    rows: Float[Tensor, "blocks rows rank"],
    gram: Float[Tensor, "blocks rank rank"],
    dtype: torch.dtype,
) -> Float[Tensor, "blocks rows rank"]:
    """Round ``A`` so that ``tr (A - Q) G (A - Q)^T`` stays small, column by column, largest first.

    Each column's error is made up for by the columns still to come. Returns values of ``dtype``, in
    float64.

    >>> A, G = torch.full((1, 1, 2), 1.003).double(), torch.ones(1, 2, 2).double()
    >>> feedback(A, G + 1e-6 * torch.eye(2), torch.bfloat16).tolist()   # to the nearest: 1 and 1
    [[[1.0, 1.0078125]]]
    """
    order = gram.diagonal(dim1=-2, dim2=-1).mean(0).argsort(descending=True)
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(gram[:, order][:, :, order]))
    R = torch.linalg.cholesky(inverse, upper=True)
    A = rows[..., order].mT.contiguous()
    errors, rounded = torch.zeros_like(A), torch.empty_like(A)
    for k in range(len(order)):
        wanted = A[:, k] - (R[:, None, :k, k] @ errors[:, :k]).squeeze(1)
        rounded[:, k] = wanted.to(dtype).double()
        errors[:, k] = (wanted - rounded[:, k]) / R[:, k, k, None]
    result = torch.empty_like(rows)
    result[..., order] = rounded.mT
    return result


def _marginals(net: Network, moment: Tensor) -> dict[str, Tensor]:
    """For each column mode of one core alone its second moment, the mean over all other modes."""
    sizes = [index.size for index in net.cols]
    rows = {index.name for index in net.rows}
    full = moment.reshape([*sizes, *sizes])
    count = len(sizes)
    found: dict[str, Tensor] = {}
    for at, index in enumerate(net.cols):
        if index.name in rows or len(net.places[index.name]) > 1:
            continue
        right: Sequence[int] = [count if axis == at else axis for axis in range(count)]
        part = torch.einsum(full, [*range(count), *right], [at, count])
        found[index.name] = part * (index.size / len(moment))
    return found
