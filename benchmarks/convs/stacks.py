"""When does a stack of thin convolutions take less time than the dense one? No code of ours in it.

The stacks are torch's own convolutions with random weights, so the table is about the machine and
its kernels: what share of dense's multiplications gives what share of its seconds.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from math import prod

import torch
from torch import Tensor, nn

from convs.count import multiplications
from convs.seconds import turns

SHARES = (0.125, 0.25, 0.375, 0.5, 0.75)  # of the channels, as ranks


@dataclass(frozen=True)
class Case:
    """A dense convolution at a size of input."""

    inp: int
    out: int
    kernel: tuple[int, int]
    size: tuple[int, int]
    batch: int = 1
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int] = (0, 0)

    @property
    def name(self) -> str:
        kernel, size = ("x".join(map(str, pair)) for pair in (self.kernel, self.size))
        return f"{self.inp} to {self.out}, {kernel} at {size}, batch {self.batch}"

    def conv(self, inp: int, out: int, kernel: tuple[int, int], whole: bool = True) -> nn.Conv2d:
        """One step of a stack; the spatial one has the stride and the padding."""
        if not whole:
            return nn.Conv2d(inp, out, kernel)
        return nn.Conv2d(inp, out, kernel, self.stride, self.padding)

    def input(self) -> Tensor:
        return torch.randn(self.batch, self.inp, *self.size)


def _square(channels: int, size: int, batch: int, kernel: int = 3) -> Case:
    pad = (kernel // 2, kernel // 2)
    return Case(channels, channels, (kernel, kernel), (size, size), batch, padding=pad)


CASES = [
    *(
        _square(channels, size, batch)
        for channels, size in ((64, 56), (128, 28), (256, 14), (512, 7))
        for batch in (1, 8)
    ),
    Case(256, 64, (1, 1), (56, 56)),
    Case(256, 1024, (1, 1), (14, 14)),
    Case(64, 64, (64, 1), (127, 1), 8),
    Case(1024, 128, (64, 1), (191, 1), 8),
    Case(128, 128, (64, 1), (127, 1), 8),
    Case(1, 1024, (512, 1), (1532, 1), 8, (4, 1)),
]


def multiple(rank: float, of: int) -> int:
    """The nearest multiple, one at least."""
    return max(of, of * round(rank / of))


def stacks(case: Case, of: int = 8) -> Iterator[tuple[str, nn.Module]]:
    """Tucker-2 and low rank both ways at the shares of the channels."""
    i, o, k = case.inp, case.out, case.kernel
    for share in SHARES:
        p, q = multiple(share * o, of), multiple(share * i, of)
        if prod(k) > 1 and i > 1:
            yield (
                f"tucker2 {p}, {q}",
                nn.Sequential(
                    nn.Conv2d(i, q, 1, bias=False), case.conv(q, p, k), nn.Conv2d(p, o, 1)
                ),
            )
        yield f"spatial, 1x1: {p}", nn.Sequential(case.conv(i, p, k), nn.Conv2d(p, o, 1))
        if prod(k) > 1 and i > 1:
            yield (
                f"1x1, spatial: {q}",
                nn.Sequential(nn.Conv2d(i, q, 1, bias=False), case.conv(q, o, k)),
            )


@torch.inference_mode()
def measure(
    case: Case, threads: int, channels_last: bool, repeats: int = 5, least: float = 0.03
) -> list[dict]:
    """Ratios of multiplications and of seconds of every stack to dense, in one race."""
    torch.set_num_threads(threads)
    dense = case.conv(case.inp, case.out, case.kernel)
    models = {"dense": dense} | dict(stacks(case))
    x = case.input()
    if channels_last:
        x = x.contiguous(memory_format=torch.channels_last)
        models = {name: m.to(memory_format=torch.channels_last) for name, m in models.items()}
    runs = {name: (lambda m=m: m(x)) for name, m in models.items()}
    for run in runs.values():
        run()
    times = turns(runs, repeats, least)
    best = {name: min(found) for name, found in times.items()}
    macs = {name: multiplications(m, x) for name, m in models.items()}
    return [
        {
            "case": case.name,
            "threads": threads,
            "channels_last": channels_last,
            "stack": name,
            "macs": macs[name] / macs["dense"],
            "seconds": best[name] / best["dense"],
            "dense_seconds": best["dense"],
            "dense_macs": macs["dense"],
        }
        for name in models
        if name != "dense"
    ]
