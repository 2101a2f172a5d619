"""Fits of groups: every block in its own metric, and the error of all of them."""

import pytest
import torch
from torch.testing import assert_close

from bondwise import lowrank, parse
from bondwise.errors import FitError, ShapeError
from bondwise.fit.fit import fit
from bondwise.fit.kernels.groups import fit_groups
from bondwise.network.groups import grouped_network
from nets import reference

NET = lowrank(5, 8, 2)


def blocks(count=3):
    return torch.randn(count, 5, 8, dtype=torch.float64)


def moments(count=3):
    root = torch.randn(count, 8, 8, dtype=torch.float64)
    return [r @ r.T for r in root]


def found(whole):
    """What the fit stands for, by numpy: its blocks."""
    W = reference(whole.network, whole.cores)
    return torch.stack([W[5 * g : 5 * g + 5, 8 * g : 8 * g + 8] for g in range(len(W) // 5)])


@pytest.mark.parametrize("weighed", [False, True])
def test_every_group_is_as_good_as_alone(weighed):
    W, own = blocks(), moments() if weighed else [None] * 3
    whole = fit_groups(W.reshape(15, 8), grouped_network(NET, 3), own if weighed else None)
    alone = [fit(block, NET, metric) for block, metric in zip(W, own, strict=True)]
    ours = found(whole)
    roots = [torch.eye(8).double() if m is None else torch.linalg.cholesky(m) for m in own]
    for block, one, other, root in zip(W, ours, alone, roots, strict=True):
        assert_close(one, reference(NET, other.cores))
        # as Eckart and Young (1936) have it
        left = torch.linalg.svdvals(block @ root)[2:].norm()
        assert_close(((block - one) @ root).norm(), left)


def test_the_error_is_that_of_the_whole_weight():
    W = blocks() * torch.tensor([1.0, 10, 0.1]).double()[:, None, None]
    whole = fit_groups(W.reshape(15, 8), grouped_network(NET, 3))
    assert_close(whole.error, float((W - found(whole)).norm() / W.norm()))
    nothing = fit_groups(torch.zeros(15, 8).double(), grouped_network(NET, 3))
    assert nothing.error == 0


def test_a_tolerance_takes_the_largest_rank_that_a_group_needs():
    W = torch.stack([torch.ones(5, 8), torch.eye(5, 8)]).double()
    whole = fit_groups(W.reshape(10, 8), grouped_network(lowrank(5, 8, 5), 2), tol=1e-6)
    assert whole.network.bonds == {"a": 5}
    assert_close(found(whole), W)
    one = fit_groups(torch.ones(10, 8).double(), grouped_network(lowrank(5, 8, 5), 2), tol=1e-6)
    assert one.network.bonds == {"a": 1}


def test_cores_that_groups_share_are_fitted_together():
    net = parse("g o a, a i -> (g o) (g i)", g=2, o=5, a=3, i=8)
    inner = torch.randn(3, 8, dtype=torch.float64)
    W = torch.randn(10, 3, dtype=torch.float64) @ inner
    assert_close(found(fit_groups(W, net)), W.reshape(2, 5, 8), rtol=1e-5, atol=1e-5)


def test_where_the_group_stands_in_a_core_does_not_matter():
    W = blocks(2)
    turned = parse("o a g, a g i -> (g o) (g i)", g=2, o=5, a=2, i=8)
    ours = fit_groups(W.reshape(10, 8), turned)
    assert_close(found(ours), found(fit_groups(W.reshape(10, 8), grouped_network(NET, 2))))


def test_without_groups_it_is_fit():
    W = blocks(1)[0]
    assert_close(fit_groups(W, NET).cores, fit(W, NET).cores)


def test_metrics_and_shapes_that_do_not_fit_are_refused():
    W, net = blocks().reshape(15, 8), grouped_network(NET, 3)
    with pytest.raises(FitError, match="2 metrics came for 3 groups; write one, or one for each"):
        fit_groups(W, net, moments(2))
    with pytest.raises(ShapeError, match=r"A weight of 3 groups of shape \(14, 8\) came"):
        fit_groups(W[:14], net)
    with pytest.raises(ShapeError, match=r"for a network of shape \(15, 24\); write one of"):
        fit_groups(W[:, :7], net)
