"""Second moments of patches are those of what torch unfolds, whole or as marginals."""

from math import prod

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from bondwise import fit, lowrank
from bondwise.errors import DataError, ShapeError
from bondwise.fit.kernels import patches as room
from bondwise.fit.kernels.patches import Patches
from bondwise.fit.metric import Kronecker, Metric
from nets import noise, thorough

CASES = [
    # spatial, kernel, stride, dilation, groups
    ((7, 9), (3, 2), (1, 1), (1, 1), 1),
    ((8, 9), (2, 3), (2, 1), (3, 2), 2),
    ((12,), (5,), (3,), (2,), 1),
    ((4, 5, 6), (2, 1, 3), (1, 2, 2), (1, 1, 2), 3),
    *thorough(((6, 6), (3, 3), (2, 2), (1, 1), 6), ((9,), (9,), (1,), (1,), 2)),
]


def unfolded(x, kernel, stride, dilation, groups) -> np.ndarray:
    """(groups, patches, in * taps) by torch: its unfold, and one-hot kernels for any dimension."""
    taps, channels = prod(kernel), x.shape[1]
    eye = torch.eye(channels * taps, dtype=x.dtype).reshape(-1, channels, *kernel)
    conv = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}[len(kernel)]
    rows = conv(x, eye, stride=stride, dilation=dilation).flatten(2)
    if len(kernel) == 2:
        torch.testing.assert_close(rows, F.unfold(x, kernel, dilation, 0, stride))
    rows = rows.movedim(1, 2).reshape(-1, groups, channels // groups * taps)
    return rows.movedim(1, 0).numpy()


def counted(case, limit: int, monkeypatch) -> tuple[Patches, list, np.ndarray]:
    monkeypatch.setattr(room, "PATCH", limit)
    spatial, kernel, stride, dilation, groups = case
    patches = Patches(
        6, kernel, stride=stride, dilation=dilation, groups=groups, dtype=torch.float64
    )
    mix = noise((6, 6), 5)
    batches = [torch.einsum("nc...,cd->nd...", noise((n, 6, *spatial), n), mix) for n in (3, 2)]
    for batch in batches:
        patches.add(batch)
    got = patches.metric(shrinkage=0.0)
    rows = unfolded(torch.cat(batches), kernel, stride, dilation, groups)
    assert patches.tokens == rows.shape[1]
    return patches, list(got) if groups > 1 else [got], rows


@pytest.mark.parametrize("case", CASES, ids=str)
def test_small_patches_have_their_full_moment(case, monkeypatch: pytest.MonkeyPatch):
    patches, got, rows = counted(case, 10_000, monkeypatch)
    for metric, own in zip(got, rows, strict=True):
        assert isinstance(metric, Metric)
        np.testing.assert_allclose(metric.second_moment.numpy(), own.T @ own, atol=1e-10)
        assert metric.tokens == patches.tokens


@pytest.mark.parametrize("case", CASES, ids=str)
def test_large_patches_have_the_marginals_and_the_trace(case, monkeypatch: pytest.MonkeyPatch):
    _, got, rows = counted(case, 0, monkeypatch)
    taps = prod(case[1])
    for metric, own in zip(got, rows, strict=True):
        assert isinstance(metric, Kronecker)
        both = (own.T @ own / len(own)).reshape(-1, taps, own.shape[-1] // taps, taps)
        channels = metric.channels.shrunk().numpy()
        kernel = metric.kernel.numpy()
        np.testing.assert_allclose(channels * taps, np.einsum("itjt->ij", both), atol=1e-10)
        trace = np.einsum("itit->", both)
        np.testing.assert_allclose(
            kernel / np.trace(kernel), np.einsum("itiu->tu", both) / trace, atol=1e-12
        )
        assert np.trace(np.kron(channels, kernel)) == pytest.approx(trace)


def test_channels_and_taps_that_do_not_depend_on_each_other_give_the_moment_itself(monkeypatch):
    """Channels mixed alike everywhere, the same blur along the taps: the product is nearly it."""
    monkeypatch.setattr(room, "PATCH", 0)
    mix, blur = noise((4, 4)), torch.tensor([[[1.0, 2.0, 1.0]]], dtype=torch.float64)
    series = F.conv1d(noise((400, 1, 202), 2), blur).reshape(100, 4, 200)
    x = torch.einsum("ncl,cd->ndl", series, mix)
    patches = Patches(4, (5,), dtype=torch.float64)
    patches.add(x)
    got = patches.metric(shrinkage=0.0)
    rows = unfolded(x, (5,), 1, 1, 1)[0]
    whole = rows.T @ rows / len(rows)
    near = np.kron(got.channels.shrunk().numpy(), got.kernel.numpy())
    assert np.linalg.norm(near - whole) < 0.1 * np.linalg.norm(whole)


@pytest.mark.parametrize("limit", [0, 10_000])
def test_many_patches_are_drawn_the_same_way_in_every_run(limit: int, monkeypatch):
    monkeypatch.setattr(room, "PATCH", limit)
    monkeypatch.setattr(room, "ROWS", 2048)
    x = noise((2, 3, 70, 60)) * torch.tensor([1.0, 2.0, 3.0])[:, None, None]
    runs = []
    for _ in range(2):
        patches = Patches(3, (2, 2), dtype=torch.float64)
        patches.add(x)
        runs.append(patches.metric(shrinkage=0.0))
    assert patches.tokens == 2 * 69 * 59
    if limit:
        got = runs[0].shrunk()
        assert torch.equal(got, runs[1].shrunk())
        assert runs[0].tokens == 2048
    else:
        got = torch.kron(runs[0].channels.shrunk(), runs[0].kernel)
        assert torch.equal(runs[0].kernel, runs[1].kernel)
    rows = unfolded(x, (2, 2), 1, 1, 1)[0]
    whole = rows.T @ rows / len(rows)
    assert np.linalg.norm(got.numpy() - whole) < 0.15 * np.linalg.norm(whole)


@pytest.mark.parametrize("groups", [1, 2])
def test_a_transposed_convolution_meets_channels_and_every_tap(groups: int):
    x = noise((3, 4, 5, 6))
    patches = Patches(4, (3, 2), groups=groups, transposed=True, dtype=torch.float64)
    patches.add(x)
    assert patches.tokens == 3 * 5 * 6
    got = patches.metric(shrinkage=0.0)
    rows = x.movedim(1, -1).reshape(90, groups, -1).movedim(1, 0)
    for metric, own in zip(got if groups > 1 else [got], rows, strict=True):
        np.testing.assert_allclose(metric.channels.shrunk().numpy(), own.T @ own / 90, atol=1e-12)
        assert torch.equal(metric.kernel, torch.eye(6, dtype=torch.float64))


def test_a_group_that_is_silent_has_the_identity():
    x = noise((4, 4, 6)).float()
    x[:, 2:] = 0
    patches = Patches(4, (3,), groups=2)
    patches.add(x)
    loud, silent = patches.metric()
    assert torch.equal(silent.second_moment, torch.eye(6))
    assert fit(noise((5, 6)), lowrank(5, 6, 2), loud).error < 1
    assert not patches.empty


def test_what_cannot_be_counted_is_refused():
    patches = Patches(3, (4, 2), dilation=(2, 1))
    with pytest.raises(DataError, match="No inputs"):
        patches.metric()
    patches.add(torch.ones(0, 3, 8, 8))
    with pytest.raises(DataError, match="No inputs"):
        patches.metric()
    with pytest.raises(DataError, match=r"\(6, 8\) came, smaller than a kernel of \(4, 2\)"):
        patches.add(torch.ones(1, 3, 6, 8))
    with pytest.raises(DataError, match=r"give \(samples, 3, and 2 spatial sizes\)"):
        patches.add(torch.ones(3, 8, 8))
    with pytest.raises(DataError, match="NaN or infinity"):
        patches.add(torch.full((1, 3, 8, 8), float("nan")))
    patches.add(torch.zeros(1, 3, 8, 8))
    assert patches.empty
    with pytest.raises(DataError, match="zero"):
        patches.metric()
    with pytest.raises(ShapeError, match="split evenly"):
        Patches(3, (2,), groups=2)
    with pytest.raises(ShapeError, match="2 numbers came"):
        Patches(3, (2,), stride=(1, 1))


@pytest.mark.parametrize("sizes", [(4, (3, 3)), (80, (3, 3)), (400, (3, 3))], ids=str)
def test_autocast_around_it_changes_nothing(sizes):
    """Small, large and marginal moments: blocks run in bfloat16 where a processor has it."""
    channels, kernel = sizes
    x = torch.randn(2, channels, 8, 8) + torch.randn(2, 1, 8, 8)
    plain, inside = Patches(channels, kernel), Patches(channels, kernel)
    plain.add(x)
    with torch.autocast("cpu", torch.bfloat16):
        inside.add(x)
    for one, two in zip(of(plain), of(inside), strict=True):
        torch.testing.assert_close(one, two, rtol=0, atol=0)


def of(patches: Patches) -> list[torch.Tensor]:
    """The moments of what was counted."""
    metric = patches.metric(0.0)
    both = (metric.channels, metric.kernel) if hasattr(metric, "kernel") else (metric,)
    return [m.second_moment if hasattr(m, "second_moment") else m for m in both]
