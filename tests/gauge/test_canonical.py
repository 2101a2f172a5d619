"""Canonical forms and gauges keep the weight; the isometries are isometries."""

import numpy as np
import pytest
import torch

import bondwise as bw
from bondwise.errors import FitError, NetworkError, ShapeError
from bondwise.gauge.canonical import canonical, insert_gauge
from bondwise.topology import registry
from nets import assert_same, numpy_dense, random_cores

TREES = [
    *(
        registry.find(name).sized(24, 36, 3)
        for name in sorted({*registry.names()} - {"cp", "ring"})
    ),
    bw.ring((2, 3), (3, 4), (2, 2)),  # two bonds between two cores count as one
    bw.mpo((2, 3, 2), (3, 2, 2), 9),  # bonds larger than the rest of their cores
    bw.parse("o1 i1, o2 a, a i2 -> (o1 o2) (i1 i2)", o1=2, i1=3, o2=3, i2=4, a=2),
    bw.parse("b o1, b i1 -> (b o1) (b i1)", b=3, o1=2, i1=4),
    bw.parse("o1 a, i1 a b, b o2 -> (o1 o2) (i1)", o1=3, i1=2, o2=4, a=2, b=3),
]


def gram_is_identity(net, core, k, towards):
    """Whether, for every value of the block indices shared, the core's matrix is an isometry."""
    bonds = [n for n in net.names[k] if n in net.names[towards] and n not in net.open]
    blocks = [n for n in net.names[k] if n in net.names[towards] and n in net.open]
    rest = [n for n in net.names[k] if n not in bonds + blocks]
    order = [net.names[k].index(name) for name in [*blocks, *rest, *bonds]]
    sizes = [np.prod([net.sizes[n] for n in group], dtype=int) for group in (blocks, rest, bonds)]
    U = core.numpy().transpose(order).reshape(sizes)
    gram = U.transpose(0, 2, 1) @ U
    expected = np.diag((np.arange(sizes[2]) < sizes[1]).astype(float))
    return np.allclose(gram, expected, atol=1e-10)


@pytest.mark.parametrize("net", TREES, ids=str)
def test_canonical_keeps_the_weight_and_puts_the_norm_in_the_centre(net):
    cores = random_cores(net)
    for center in range(len(net.cores)):
        new = canonical(net, cores, center=center)
        assert [tuple(core.shape) for core in new] == list(net.core_shapes)
        assert_same(net, cores, new)
        if not any(index in net.cols for index in net.rows):
            assert np.isclose(np.linalg.norm(new[center]), np.linalg.norm(numpy_dense(net, cores)))


@pytest.mark.parametrize("center", [0, 1, 2, 3])
def test_every_other_core_is_an_isometry_towards_the_centre(center):
    net = bw.mpo((2, 3, 4, 2), (3, 2, 2, 3), (4, 30, 5))
    new = canonical(net, random_cores(net), center=center)
    for k in range(4):
        if k != center:
            assert gram_is_identity(net, new[k], k, k + 1 if k < center else k - 1)


def test_block_indices_give_one_isometry_each():
    net = bw.btt((4, 2), (3, 5), 2)
    assert gram_is_identity(net, canonical(net, random_cores(net), center=0)[1], 1, 0)
    assert gram_is_identity(net, canonical(net, random_cores(net), center=1)[0], 0, 1)


def test_dtype_stays():
    net = bw.lowrank(5, 4, 3)
    new = canonical(net, [core.bfloat16() for core in random_cores(net)], center=1)
    assert [core.dtype for core in new] == [torch.bfloat16] * 2


@pytest.mark.parametrize(
    ("net", "center", "error", "says"),
    [
        (bw.ring((2, 2, 2), (2, 2, 2), 2), 0, NetworkError, "no canonical form"),
        (bw.cp((2, 2), 2, 2), 0, NetworkError, "no canonical form"),
        (bw.lowrank(3, 3, 2), 2, ShapeError, "Center 2 came"),
        (bw.lowrank(3, 3, 2), -1, ShapeError, "Center -1 came"),
    ],
)
def test_what_has_no_canonical_form_is_refused(net, center, error, says):
    with pytest.raises(error, match=says):
        canonical(net, random_cores(net), center=center)


def test_cores_must_be_finite():
    with pytest.raises(FitError, match="Core 0"):
        canonical(bw.lowrank(2, 2, 1), [torch.full((2, 1), torch.inf), torch.ones(1, 2)], center=0)


@pytest.mark.parametrize(
    "net", [registry.find(name).sized(24, 36, 3) for name in registry.names()], ids=str
)
def test_a_gauge_keeps_the_weight(net):
    cores = random_cores(net)
    for bond, size in net.bonds.items():
        X = torch.randn(size, size, dtype=torch.float64) + 3 * torch.eye(size)
        X = X.diag().diag() if len(net.places[bond]) > 2 else X
        new = insert_gauge(net, cores, bond, X)
        changed = [not torch.equal(a, b) for a, b in zip(new, cores, strict=True)]
        assert [k for k, it in enumerate(changed) if it] == list(net.places[bond][:2])
        assert_same(net, cores, new)


def test_which_side_gets_which():
    net, X = bw.lowrank(3, 4, 2), torch.tensor([[2.0, 1.0], [0.0, 4.0]], dtype=torch.float64)
    A, B = random_cores(net)
    first, second = insert_gauge(net, [A, B], "a", X)
    torch.testing.assert_close(first, A @ X)
    torch.testing.assert_close(second, torch.linalg.solve(X, B))


@pytest.mark.parametrize(
    ("bond", "X", "error", "says"),
    [
        ("q", torch.eye(2), NetworkError, "its bonds are r, a, d"),
        ("o1", torch.eye(3), NetworkError, "its bonds are"),
        ("d", torch.eye(2), NetworkError, "sits on one core"),
        ("a", torch.eye(3), ShapeError, r"shape \(3, 3\) came; bond a takes \(2, 2\)"),
        ("a", torch.eye(2)[:1], ShapeError, r"\(1, 2\)"),
        ("a", torch.ones(2, 2), ShapeError, "condition number"),
        ("r", torch.diag(torch.tensor([1.0, 0.0])), ShapeError, "condition number inf"),
        ("a", torch.full((2, 2), torch.nan), ShapeError, "not finite"),
        ("r", torch.tensor([[1.0, 1.0], [0.0, 1.0]]), ShapeError, "not diagonal"),
    ],
)
def test_a_bad_gauge_is_refused(bond, X, error, says):
    text = "o1 r a d, r a i1, r i2 -> (o1) (i1 i2)"
    net = bw.parse(text, o1=3, i1=2, i2=3, r=2, a=2, d=2)
    with pytest.raises(error, match=says):
        insert_gauge(net, random_cores(net), bond, X)
