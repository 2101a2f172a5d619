"""The rates of this machine, measured in some seconds and fitted."""

import time
from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from bondwise.compute.machine import Machine, Rates

SHORTEST = 0.002  # seconds that one timing lasts at least
REPEATS = 5
SIDES = (1, 8, 32, 128, 512)  # of matmuls, all combinations but the largest
LARGEST = 2**26  # multiplications
SIDES_OF_BATCHES = (8, 32, 128, 512)
BATCH = 32
STEPS = 200  # of the fit

Extents = tuple[int, int, int, int]


def calibrate(progress: Callable[[str, int, int], None] | None = None) -> Machine:
    """Measure matmuls, batches of them and copies on one set of threads: `torch.get_num_threads`.

    About ten seconds. What is measured on a busy machine is slower than the machine is.

    Args:
        progress: called with a stage, how much of it is done, and how much there is.
    """
    found = list[Rates]()
    for at, dtype in enumerate((torch.float32, torch.bfloat16)):
        if progress is not None:
            progress("measure", at, 2)
        found.append(_rates(dtype))
    if progress is not None:
        progress("measure", 2, 2)
    return Machine(*found, measured=True)


@torch.no_grad()
def _rates(dtype: torch.dtype) -> Rates:
    call = timed(_matmul((1, 8, 8, 8), dtype))
    bare = _bytes(dtype, call)
    sides = [(1, m, n, k) for m in SIDES for n in SIDES[1:] for k in SIDES[1:]]
    products = [s for s in sides if s[1] * s[2] * s[3] <= LARGEST]
    some = SIDES_OF_BATCHES
    batches = [(BATCH, m, n, k) for m in some for n in some for k in some if m * n * k <= 2**21]
    peak, half = _fitted(products, bare, dtype)
    batch_peak, batch_half = _fitted(batches, bare, dtype)
    return replace(bare, peak=peak, half=half, batch_peak=batch_peak, batch_half=batch_half)


def timed(work: Callable[[], object]) -> float:
    """Seconds of one call: the least of some timings, each of as many calls as it needs.

    What other work on the machine takes is left out so; it can only add.
    """
    work()
    count, took = 1, list[float]()
    while len(took) < REPEATS:
        start = time.perf_counter()
        for _ in range(count):
            work()
        spent = time.perf_counter() - start
        if spent < SHORTEST:
            count *= 2
        else:
            took.append(spent / count)
    return min(took)


def _matmul(extents: Extents, dtype: torch.dtype) -> Callable[[], Tensor]:
    g, m, n, k = extents
    left = torch.randn(g, m, k).to(dtype)
    if g == 1:
        left, right = left[0], torch.randn(n, k).to(dtype)
        return lambda: F.linear(left, right)
    right = torch.randn(n, k).to(dtype).expand(g, n, k)  # as a push has it
    left = left.mT.contiguous()
    return lambda: torch.bmm(right, left)


def _bytes(dtype: torch.dtype, call: float) -> Rates:
    """Rates of moving bytes: in the cache, between places in memory, to fresh memory, permuted."""
    size = dtype.itemsize
    small, table = torch.zeros(2**17 // size, dtype=dtype), torch.zeros(64, 64, 64, dtype=dtype)
    middle, large = (torch.zeros(count // size, dtype=dtype) for count in (2**24, 2**26))
    near, far = torch.empty_like(small), torch.empty_like(middle)
    row, whole = torch.zeros(1, 4096, dtype=dtype), large.numel() * size
    read = timed(lambda: F.linear(row, large.view(-1, 4096)))
    return Rates(
        call=call,
        fresh=whole / max(timed(large.clone) - read, 1e-6),
        memory=2 * middle.numel() * size / timed(lambda: far.copy_(middle)),
        stream=whole / read,
        cached=2 * small.numel() * size / timed(lambda: near.copy_(small)),
        copy=2 * table.numel() * size / timed(lambda: table.permute(1, 2, 0).contiguous()),
    )


def _fitted(
    sizes: Sequence[Extents], bare: Rates, dtype: torch.dtype
) -> tuple[float, tuple[float, float, float]]:
    """Peak and half sizes that come closest to what products of these sizes took, in ratios."""
    took = torch.tensor([timed(_matmul(each, dtype)) for each in sizes], dtype=torch.float64)
    moves = [bare.moving(each, dtype.itemsize) for each in sizes]
    rest = torch.tensor([bare.call + move for move in moves], dtype=torch.float64)
    shapes = torch.tensor(sizes, dtype=torch.float64)
    macs, sides = shapes.prod(1), shapes[:, 1:]
    peak = float((macs / (took - rest).clamp(min=0.5 * took)).max())
    start = torch.tensor([2.0, 4.0, 8.0], dtype=torch.float64).log()
    logs = start.clone().requires_grad_()
    solver = torch.optim.LBFGS([logs], max_iter=STEPS, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        solver.zero_grad()
        rate = peak * (sides / (sides + logs.exp())).prod(1)
        off = ((rest + macs / rate) / took).log().abs()
        pulled = 1e-3 * (logs - start).square().sum()  # a size that does not matter stays put
        total = off.mean() + pulled
        total.backward()
        return total

    with torch.enable_grad():
        solver.step(loss)
    m, n, k = logs.detach().exp().tolist()
    return peak, (m, n, k)
