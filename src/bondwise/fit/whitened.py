"""Low rank in the metric of the inputs, in closed form: an SVD of ``W L`` with ``C = L L^T``.

The best ``A B`` of rank r makes ``||(W - A B) L||`` smallest. With ``U`` the leading left singular
vectors of ``W L`` it is ``A = U``, ``B = U^T W`` (Eckart and Young 1936 in whitened coordinates;
Yuan et al. 2023, Wang et al. 2024 for language models). No inverse of ``C`` is needed, so inputs
that are always zero do no harm.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from bondwise.fit.moment import Moment
from bondwise.fit.named import Named
from bondwise.fit.split import GRAM_IS_ENOUGH, Split, kept_rank, split, tails
from bondwise.fit.sweep import Tree, edge_name, unfold
from bondwise.fit.target import BLOCK
from bondwise.network.network import Network

_SINGLE_IS_ENOUGH = 1e-5  # the same as GRAM_IS_ENOUGH, of a Gram matrix in float32


@torch.no_grad()
def whitened_split(
    weight: Float[Tensor, "out inp"],
    moment: Moment | Float[Tensor, "inp inp"],
    rank: int,
    tol: float | None = None,
) -> Split:
    """Best low rank in the metric; ``error`` and the absolute ``tol`` are norms in the metric.

    Computed in the dtype of the weight and the moment: float32 takes half the time of float64, and
    changes to float64 by itself where next to nothing is dropped. A product of factors is formed
    only where it is smaller than out x out.

    >>> W, C = torch.eye(3), torch.diag(torch.tensor([1.0, 100.0, 4.0]))
    >>> cut = whitened_split(W.double(), C.double(), rank=1)
    >>> (cut.left @ cut.right).diagonal()  # the loud input is kept
    tensor([0., 1., 0.], dtype=torch.float64)
    """
    out, inp = weight.shape
    moment = moment if isinstance(moment, Moment) else Moment((inp,), (moment,))
    if tol is None and rank >= min(out, inp):
        return split(weight, rank)
    if out <= inp:
        half, gram = None, moment.push(weight) @ weight.mT
    else:
        half = moment.root().dense(weight)
        gram = half @ (weight.mT @ weight) @ half
    values, vectors = torch.linalg.eigh((gram + gram.mT) / 2)
    dropped = tails(values.flip(-1).clamp(min=0).sqrt())
    most = min(rank, out, inp)
    allowed = dropped[most] if tol is None else max(dropped[most], dropped.new_tensor(tol * tol))
    double = weight.dtype == torch.float64
    if allowed <= (GRAM_IS_ENOUGH if double else _SINGLE_IS_ENOUGH) * dropped[0]:
        weight = weight.double()
        cut = split(moment.to(torch.float64).root().push(weight), most, tol)
        left, kept, error = cut.left, cut.rank, cut.error
    else:
        kept = kept_rank(dropped, most, tol)
        vectors, error = vectors.flip(-1)[:, :kept], float(dropped[kept].sqrt())
        left = vectors if half is None else torch.linalg.qr(weight @ (half @ vectors)).Q
    left = left[:, :kept]
    return Split(left, left.mT @ weight, error)


def metric_norm(
    weight: Float[Tensor, "out inp"], moment: Moment | Float[Tensor, "inp inp"]
) -> float:
    """``||W L|| = sqrt(tr W C W^T)``."""
    pushed = moment.push(weight) if isinstance(moment, Moment) else weight @ moment
    return float((pushed * weight).sum().clamp(min=0).sqrt())


def has_closed_form(net: Network) -> bool:
    """Whether a metric has a closed form: two cores, all rows on one and all columns on the other.

    None of them may be on both (block diagonal).

    >>> from bondwise import lowrank, mpo
    >>> has_closed_form(lowrank(6, 4, 2)), has_closed_form(mpo((2, 3), (2, 2), 2))
    (True, False)
    """
    sides = [{index.name for index in side} for side in (net.rows, net.cols)]
    own = [set(names) & net.open for names in net.names]
    apart = own in (sides, sides[::-1]) and all(sides) and not sides[0] & sides[1]
    # an index summed on one core alone is no bond between the two
    return apart and all(len(net.places[b]) == 2 or size == 1 for b, size in net.bonds.items())


def closed_form(net: Network, tree: Tree, weight: Tensor, moment: Moment) -> list[Named]:
    """The parts of a network that `has_closed_form`, which is ``tree``: the best in the metric."""
    ((edge, _),) = tree.edges.items()
    cut = whitened_split(weight, moment, tree.rank(edge, net.bonds))
    sides = [(net.rows, cut.left), (net.cols, cut.right.mT)]
    if net.rows[0].name not in tree.own(0):
        sides.reverse()
    parts: list[Named] = []
    for core, (side, matrix) in enumerate(sides):
        sizes, names = [index.size for index in side], [index.name for index in side]
        whole = Named(matrix.reshape(1, *sizes, cut.rank), (BLOCK, *names, edge_name(*edge)))
        parts.append(unfold(tree, core, whole, net.bonds))
    return parts
