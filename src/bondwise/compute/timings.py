"""How long the orders of a network take, forward and backward: measured, on this machine."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from statistics import median
from time import perf_counter
from typing import TypeVar

import torch
from torch import Tensor

from bondwise.compute.orders import Order, orders
from bondwise.compute.run import check_cores
from bondwise.compute.through import Passage, passage, through
from bondwise.errors import PlanError
from bondwise.network.network import Network

Result = TypeVar("Result")


@dataclass(frozen=True)
class Timing:
    """Median seconds of an order for the whole batch; ``backward`` is to the cores and inputs."""

    order: Order
    forward: float
    backward: float


def time_orders(
    net: Network,
    cores: Sequence[Tensor],
    batch: int = 64,
    among: Iterable[Order] | None = None,
    repeats: int = 5,
) -> tuple[Timing, ...]:
    """Run every order forward and backward, and say how long each took.

    Floors run as dense matmuls with their cores (`bondwise.compute.through`), not as sparse
    matrices: as many multiplications, and what a machine is good at. In each of the repeats all
    orders run in turn, so that a machine that slows down does not single one out; one more, before
    them, is not counted. On a GPU the clock stops when its work is done.

    >>> from bondwise import lowrank
    >>> times = time_orders(lowrank(6, 4, 2), [torch.ones(6, 2), torch.ones(2, 4)], repeats=1)
    >>> [timing.order.order for timing in times], times[0].forward > 0
    ([(1, 0), (0, 1)], True)

    Args:
        net: the network.
        cores: its cores; they decide the device and the dtype.
        batch: rows of the input, all ones.
        among: the orders; without them, all that `orders` finds.
        repeats: how often each is run.

    Raises:
        PlanError: a batch, or a number of repeats, below 1.
        ShapeError: the cores are not the network's.
    """
    check_cores(net, cores)
    for name, value in (("Batch", batch), ("Repeats", repeats)):
        if isinstance(value, bool) or value < 1:
            raise PlanError(f"{name} {value} came; write a whole number of at least 1.")
    chosen = tuple(orders(net) if among is None else among)
    ways = [[(floor.core, passage(floor)) for floor in order.floors] for order in chosen]
    leaves = [core.detach().requires_grad_() for core in cores]
    like = leaves[0]
    x = torch.ones(batch, net.shape[1], device=like.device, dtype=like.dtype, requires_grad=True)
    taken = [[_once(way, leaves, x) for way in ways] for _ in range(1 + repeats)][1:]
    return tuple(
        Timing(order, *(median(each) for each in zip(*times, strict=True)))
        for order, times in zip(chosen, zip(*taken, strict=True), strict=True)
    )


def _once(
    way: Sequence[tuple[int, Passage]], cores: Sequence[Tensor], x: Tensor
) -> tuple[float, float]:
    def forward() -> Tensor:
        y = x
        for core, step in way:
            y = through(step, cores[core], y)
        return y

    y, took = _timed(forward, x.device)
    towards = torch.ones_like(y)
    _, back = _timed(lambda: torch.autograd.grad(y, [x, *cores], towards), x.device)
    return took, back


def _timed(work: Callable[[], Result], device: torch.device) -> tuple[Result, float]:
    _wait(device)
    start = perf_counter()
    result = work()
    _wait(device)
    return result, perf_counter() - start


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
