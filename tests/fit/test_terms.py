"""Terms of a sum do not grow and cancel, and CP is Tucker with a core of ones on the diagonal."""

import numpy as np
import pytest
import torch

from bondwise import cp, fit, kron, mpo, parse, tucker
from bondwise.fit.alternating import als
from bondwise.fit.alternating.als import fit_alternating
from bondwise.fit.alternating.terms import Penalty, squared_norms
from bondwise.fit.metric import Kronecker
from bondwise.fit.named import Named
from bondwise.fit.target import target
from bondwise.network.network import Network
from nets import noise, numpy_dense, random_cores, thorough


@pytest.fixture(autouse=True)
def one_start(monkeypatch: pytest.MonkeyPatch):
    """One finalist instead of three: what is tested is where it ends."""
    monkeypatch.setattr(als, "_effort", lambda *_: als._Effort(500, 8, 1, 1))


def border(order: int) -> torch.Tensor:
    """The first or second derivative of a x a x a: of border rank 2 or 3, and of a higher rank."""
    a, b, c = torch.linalg.qr(noise((4, 3))).Q.T
    triples = [(b, a, a), (a, b, a), (a, a, b)]
    if order == 2:
        triples = [(b, b, a), (b, a, b), (a, b, b), (a, a, c), (a, c, a), (c, a, a)]
    return sum(torch.einsum("i,j,k->ijk", *triple) for triple in triples).reshape(4, 16)


def third(rank: int) -> Network:
    return parse("o r, i r, y r -> (o) (i y)", o=4, i=4, y=4, r=rank)


def largest(net: Network, cores, root: np.ndarray | None = None) -> float:
    """The largest norm of a term, each written out by numpy."""
    norms = []
    for k in range(net.bonds["r"]):
        alone = [
            core.narrow(names.index("r"), k, 1)
            for core, names in zip(cores, net.names, strict=True)
        ]
        term = numpy_dense(net.resize(r=1), alone)
        norms.append(np.linalg.norm(term if root is None else term @ root))
    return float(max(norms))


def unbounded(weight: torch.Tensor, net: Network) -> tuple[float, float]:
    """Relative error and largest term of alternating least squares alone."""
    parts = fit_alternating(net, target(weight, net), 0, limit=float("inf"))
    cores = [
        Named(part.tensor[0], part.names[1:]).to(*n)
        for part, n in zip(parts, net.names, strict=True)
    ]
    norm = float(weight.norm())
    off = np.linalg.norm(weight.numpy() - numpy_dense(net, cores))
    return float(off) / norm, largest(net, cores) / norm


def test_terms_that_would_cancel_are_bounded_at_nearly_the_same_error():
    weight, net = border(2), third(3)
    error, degenerate = unbounded(weight, net)
    assert degenerate > 10
    got = fit(weight, net)
    assert got.term_norm == pytest.approx(largest(net, got.cores) / float(weight.norm()))
    assert got.term_norm <= 10 + 1e-9
    assert got.error < 2 * error < 0.02
    assert got.error < 0.1 * fit(weight, third(2)).error


@pytest.mark.parametrize("limit", [1.0, *thorough(2.0)])
def test_a_bound_is_used_up(limit: float):
    """Of border rank 2, the error only falls as the terms grow."""
    weight, net = border(1), third(2)
    goal = target(weight, net)
    parts = fit_alternating(net, goal, 0, limit=limit)
    norms = squared_norms(parts, ["r"], goal.open).sqrt() / float(weight.norm())
    assert 0.97 * limit < float(norms.max()) <= limit + 1e-9


@pytest.mark.parametrize("product", thorough(True, False))
def test_a_bound_holds_in_a_metric_too(product: bool):
    channels, kernel = torch.diag(torch.tensor([1.0, 0.1, 0.01, 1.0])), torch.eye(4)
    roots = np.kron(channels.numpy() ** 0.5, kernel.numpy())
    weight = border(2) @ torch.linalg.inv(torch.from_numpy(roots).double())
    metric = Kronecker(channels, kernel) if product else torch.kron(channels, kernel).double()
    got = fit(weight, third(3), metric, sweeps=3)
    size = np.linalg.norm(weight.numpy() @ roots)
    assert got.term_norm == pytest.approx(largest(third(3), got.cores, roots) / size)
    assert got.term_norm <= 10 + 1e-6
    assert got.error < (0.05 if product else got.sweeps[0])  # three sweeps, not to the end


def test_only_sums_of_terms_report_their_norms():
    weight = noise((8, 12))
    assert fit(weight, mpo((2, 4), (3, 4), 3)).term_norm is None
    assert fit(weight, kron((2, 4), (3, 4), 2)).term_norm is None  # two cores: an SVD
    one = fit(weight, cp((2, 4), (3, 4), 1))
    assert one.term_norm == pytest.approx(np.sqrt(1 - one.error**2))  # one term: what is met
    assert fit(torch.zeros(8, 12), cp((2, 4), (3, 4), 2)).term_norm == 0.0


def test_a_penalty_is_what_it_adds_to_the_least_squares():
    """Of one core: the minimum of the error and the penalty, written out with numpy."""
    net = parse("b o r, b i r, b y r -> (b o) (b i y)", b=2, o=3, i=2, y=2, r=2)
    cores = random_cores(net)
    parts = [Named(core, names) for core, names in zip(cores, net.names, strict=True)]
    penalty = Penalty(("r",), 0.3)
    want = [
        np.linalg.norm(np.einsum("o,i,y->oiy", *(core[b, :, r].numpy() for core in cores))) ** 2
        for b in range(2)
        for r in range(2)
    ]
    assert penalty.of(parts, net.open) == pytest.approx(0.3 * sum(want))
    gram = noise((2, 4, 4))
    on = penalty.on(gram, ["a", "r"], [2, 2])
    same = np.tile(np.eye(2), (2, 2))
    np.testing.assert_allclose(on.numpy(), gram.numpy() * (1 + 0.3 * same))


def test_cp_is_tucker_with_a_delta_core():
    rows, cols, rank = (4, 3), (3, 4), 4
    net, wide = cp(rows, cols, rank), tucker(rows, cols, rank)
    weight = noise(net.shape)
    got = fit(weight, net)
    factors = dict(zip(net.names, got.cores, strict=True))
    delta = torch.zeros(wide.core_shapes[0], dtype=torch.float64)
    delta[tuple([torch.arange(rank)] * 4)] = 1
    others = [factors[names[0], "r"] for names in wide.names[1:]]
    np.testing.assert_allclose(
        numpy_dense(wide, [delta, *others]), numpy_dense(net, got.cores), atol=1e-12
    )
    assert fit(weight, wide).error < got.error  # a core of any numbers can only do better
