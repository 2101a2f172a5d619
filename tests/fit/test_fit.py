"""What every fit promises, over networks of every kind, against numpy einsum in float64."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bondwise import cp, lowrank, mpo, parse, ring, tree, tucker
from bondwise.errors import FitError, ShapeError
from bondwise.fit.fit import Fit, fit
from bondwise.network.network import Network
from bondwise.network.ranks import useful_ranks
from bondwise.topology import registry
from nets import LOOPS, TREES, canon_first, noise, numpy_dense, thorough, weight_of

ALL = [*TREES, *LOOPS]


def true_error(weight: torch.Tensor, got: Fit) -> float:
    wide = weight.double().numpy()
    off = wide - numpy_dense(got.network, got.cores)
    return float(np.linalg.norm(off) / np.linalg.norm(wide))


@pytest.mark.parametrize("net", canon_first(TREES), ids=str)
def test_without_loops_what_is_such_a_network_is_found_to_rounding(net: Network):
    got = fit(weight_of(net), net)
    assert got.error < 1e-12
    assert true_error(weight_of(net), got) < 1e-12


@pytest.mark.parametrize("net", canon_first(LOOPS), ids=str)
def test_with_loops_what_is_such_a_network_is_found(net: Network):
    """Least squares may end in a local optimum; for these weights and this seed it does not."""
    got = fit(weight_of(net, seed=1), net)
    assert got.error < 1e-9
    assert true_error(weight_of(net, seed=1), got) < 1e-9


@pytest.mark.parametrize("net", canon_first(ALL), ids=str)
def test_the_error_is_that_of_the_cores_returned(net: Network):
    weight = noise(net.shape)
    got = fit(weight, net)
    assert got.error == pytest.approx(true_error(weight, got), abs=1e-12)
    assert got.error <= 1
    assert [tuple(core.shape) for core in got.cores] == list(got.network.core_shapes)
    assert got.parameters == got.network.parameters == sum(core.numel() for core in got.cores)
    assert got.network.bonds == useful_ranks(net)
    assert all(kept < asked == net.bonds[bond] for bond, (asked, kept) in got.capped.items())


@pytest.mark.parametrize("dtype", [torch.bfloat16, *thorough(torch.float16, torch.float32)])
@pytest.mark.parametrize("net", [lowrank(12, 18, 4), mpo((6, 4), (4, 6), 5), LOOPS[0]], ids=str)
def test_cores_keep_the_dtype_and_the_error_counts_their_rounding(net: Network, dtype: torch.dtype):
    weight = weight_of(net).to(dtype)
    got = fit(torch.nn.Parameter(weight), net)
    assert all(core.dtype == dtype and not core.requires_grad for core in got.cores)
    assert got.error == pytest.approx(true_error(weight, got), rel=1e-6, abs=1e-12)
    assert 0 < got.error < 2 * torch.finfo(dtype).eps
    assert all(core.is_contiguous() for core in got.cores)


@pytest.mark.parametrize("net", [TREES[3], LOOPS[0], *thorough(TREES[9], LOOPS[2])], ids=str)
def test_the_same_seed_gives_the_same_cores(net: Network):
    weight = noise(net.shape)
    one, two = fit(weight, net, seed=3), fit(weight, net, seed=3)
    assert all(torch.equal(a, b) for a, b in zip(one.cores, two.cores, strict=True))


@pytest.mark.parametrize("net", canon_first(ALL), ids=str)
def test_zeros_have_the_ranks_asked_and_within_a_tolerance_the_smallest(net: Network):
    for tol, ranks in ((None, useful_ranks(net)), (0.5, dict.fromkeys(net.bonds, 1))):
        got = fit(torch.zeros(net.shape), net, tol=tol)
        assert (got.error, got.network.bonds) == (0, ranks)
        assert not numpy_dense(got.network, got.cores).any()


@pytest.mark.parametrize("net", canon_first([*TREES[::2], LOOPS[2]]), ids=str)
@pytest.mark.parametrize("scale", [1e-30, 1e30])
def test_the_scale_of_the_weight_does_not_matter(net: Network, scale: float):
    weight = noise(net.shape)
    assert fit(weight * scale, net).error == pytest.approx(
        fit(weight, net).error, rel=1e-6, abs=1e-12
    )


@pytest.mark.parametrize("net", canon_first(TREES), ids=str)
def test_names_and_axis_order_change_nothing(net: Network):
    """The structure decides: renamed indices and permuted core axes give the same error."""
    weight = noise(net.shape)
    cores = [
        " ".join(f"x{list(net.sizes).index(name)}" for name in reversed(names))
        for names in net.names
    ]
    rows, cols = (
        " ".join(f"x{list(net.sizes).index(index.name)}" for index in side)
        for side in (net.rows, net.cols)
    )
    sizes = {f"x{k}": size for k, size in enumerate(net.sizes.values())}
    other = parse(f"{', '.join(cores)} -> ({rows}) ({cols})", **sizes)
    assert fit(weight, other).error == pytest.approx(fit(weight, net).error, abs=1e-9)


def test_a_parsed_network_gets_the_identical_fit():
    for net in [mpo((3, 4, 2), (2, 3, 3), 4), ring((4, 3, 4), (3, 4, 3), 3), cp((4, 6), (5, 4), 4)]:
        weight = noise(net.shape)
        parsed = parse(str(net), **net.sizes)
        one, two = fit(weight, net), fit(weight, parsed)
        assert one.network == two.network
        assert all(torch.equal(a, b) for a, b in zip(one.cores, two.cores, strict=True))


@settings(deadline=None, max_examples=10)
@given(
    st.sampled_from(["lowrank", "mpo", "ring", "tucker", "cp", "btt", "tree", "kron"]),
    st.integers(1, 13),
    st.integers(1, 13),
    st.integers(1, 5),
)
def test_any_sizes_work_primes_and_ones_too(name: str, out: int, inp: int, rank: int):
    net = registry.find(name).sized(out, inp, rank)
    weight = noise((out, inp), seed=rank)
    got = fit(weight, net)
    assert got.error == pytest.approx(true_error(weight, got), abs=1e-12)


@pytest.mark.parametrize("build", [mpo, *thorough(tree)])
def test_more_than_eight_modes_work(build):
    net = build((2,) * 10, (1,) * 4 + (2,) * 6, 3)
    weight = noise(net.shape)
    got = fit(weight, net)
    assert got.error == pytest.approx(true_error(weight, got), abs=1e-12)


@pytest.mark.parametrize(
    "net",
    [
        lowrank(12, 18, 12),
        mpo((3, 4, 2), (2, 3, 3), 20),
        *thorough(
            tucker((4, 6), (5, 4), 6),
            tree((3, 2, 3, 2), (2, 3, 2, 3), 9),
            ring((4, 3), (3, 4), 6),
            parse("o1 x a, x a i -> (o1 x) (i)", o1=6, x=3, a=6, i=9),
        ),
    ],
    ids=str,
)
def test_a_tolerance_is_met_with_fewer_numbers_the_larger_it_is(net: Network):
    weight = weight_of(net.resize(**{b: max(1, r // 3) for b, r in net.bonds.items()}))
    weight = weight / weight.norm() + 0.1 * noise(net.shape) / noise(net.shape).norm()
    sizes = []
    full = fit(weight, net)
    for tol in (0.9, 0.3, 0.12, 0.03):
        got = fit(weight, net, tol=tol)
        assert got.error <= tol or got.error == pytest.approx(full.error)
        assert all(size <= useful_ranks(net)[bond] for bond, size in got.network.bonds.items())
        sizes.append(got.parameters)
    assert sizes == sorted(sizes)
    assert sizes[0] < sizes[-1]


@pytest.mark.parametrize(
    "net", [cp((4, 6), (5, 4), 3), *thorough(ring((4, 3, 4), (3, 4, 3), 3))], ids=str
)
def test_a_tolerance_with_loops_takes_smaller_ranks_in_step(net: Network):
    two = dict.fromkeys(net.bonds, 2)
    got = fit(weight_of(net.resize(**two), seed=1), net, tol=1e-6)
    assert got.network.bonds == two
    assert got.error <= 1e-6


def test_a_tolerance_out_of_reach_gives_the_ranks_asked_and_the_real_error():
    for net in (lowrank(12, 18, 2), mpo((3, 4, 1), (3, 3, 2), 2), LOOPS[0].resize(z=1)):
        weight = noise(net.shape)
        got = fit(weight, net, tol=1e-3)
        assert got.network.bonds == useful_ranks(net)
        assert got.error == pytest.approx(true_error(weight, got), abs=1e-12)
        assert got.error > 1e-3


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_a_tolerance_below_rounding_finds_the_exact_ranks(dtype: torch.dtype):
    weight = torch.eye(64).to(dtype)
    assert fit(weight, mpo((4, 4, 4), (4, 4, 4), 16), tol=0.0).network.bonds == {"a": 1, "b": 1}


def test_two_cores_are_eckart_and_young():
    weight = noise((20, 30))
    values = np.linalg.svd(weight.numpy(), compute_uv=False)
    for rank in (1, 5, 19, 20):
        best = float(np.sqrt((values[rank:] ** 2).sum() / (values**2).sum()))
        assert fit(weight, lowrank(20, 30, rank)).error == pytest.approx(best, abs=1e-12)


@pytest.mark.parametrize(
    ("weight", "net", "words"),
    [
        (torch.full((4, 6), float("nan")), lowrank(4, 6, 1), "NaN"),
        (torch.full((4, 6), float("inf")), lowrank(4, 6, 1), "infinity"),
        (torch.ones(4, 6, dtype=torch.int32), lowrank(4, 6, 1), "torch.int32"),
        (torch.ones(2, 2, 6), lowrank(4, 6, 1), r"\(2, 2, 6\)"),
        (torch.ones(6), lowrank(4, 6, 1), r"\(6,\)"),
        (torch.ones(12, 6), mpo((2, 4), (2, 3), 1), r"\(12, 6\) came .* \(8, 6\).* \(3, 4\)"),
    ],
)
def test_a_weight_that_cannot_be_fitted_is_refused(weight, net, words: str):
    with pytest.raises((FitError, ShapeError), match=words):
        fit(weight, net)


@pytest.mark.parametrize("tol", [-0.1, 1.0, float("nan")])
def test_a_tolerance_outside_its_range_is_refused(tol: float):
    with pytest.raises(FitError, match=r"in \[0, 1\)"):
        fit(torch.eye(3), lowrank(3, 3, 1), tol=tol)


def test_ranks_above_the_useful_are_capped_and_reported():
    got = fit(noise((4, 6)), lowrank(4, 6, 100))
    assert got.capped == {"a": (100, 4)}
    assert got.network.bonds == {"a": 4}
    assert got.error < 1e-14
    got = fit(noise((4, 4)), mpo((2, 2), (2, 2), 3))
    assert got.capped == {}
