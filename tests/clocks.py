"""Files of measurements of a machine that nobody has: seconds by a formula."""

from collections.abc import Callable, Iterable
from pathlib import Path

from torch import nn

import bondwise as bw
from bondwise.layers.hosts.registry import find, matrix_of
from bondwise.layers.prepare.measurement import Measurement
from bondwise.layers.prepare.measurements import Measurements

Rate = Callable[[float, int], float]


def linearly(share: float, rows: int) -> float:
    """Seconds over dense's: the share of the multiplications."""
    return share


def entry(host, shape, net, rows, ratio, *, dtype="float32", dense=None, **more) -> Measurement:
    """One measurement; dense takes a nanosecond a multiplication and row."""
    whole = 1e-9 * shape[0] * shape[1] * rows if dense is None else dense
    sizes = {} if net is None else dict(net.sizes)
    pinned = () if net is None else (None,) * len(net.cores)
    text = None if net is None else str(net)
    return Measurement(
        host,
        shape,
        text,
        sizes,
        pinned,
        rows,
        dtype,
        "made up",
        ratio * whole,
        whole,
        whole,
        **more,
    )


def ladder(host, shape, rows, rate: Rate = linearly, *, dtype="float32") -> list[Measurement]:
    """Dense, and low rank at eighths of the largest rank."""
    out, inp = shape
    ranks = sorted({max(1, round(min(shape) * k / 8)) for k in range(1, 9)})
    shares = {rank: rank * (out + inp - rank) / (out * inp) for rank in ranks}
    rungs = [
        entry(host, shape, bw.lowrank(*shape, rank), rows, rate(share, rows), dtype=dtype)
        for rank, share in shares.items()
    ]
    return [entry(host, shape, None, rows, 1.0, dtype=dtype), *rungs]


def clock(
    model: nn.Module,
    file: Path,
    rows: Iterable[int] = (1, 256),
    rate: Rate = linearly,
    dtype: str | None = None,
) -> Path:
    """A file for all linear layers of a model."""
    found: dict[tuple[str, tuple[int, int], str], None] = {}
    for layer in model.modules():
        host = find(layer)
        if host is not None and host.group == "linear":
            out, inp = matrix_of(layer).shape
            own = str(matrix_of(layer).dtype).removeprefix("torch.")
            found[host.name, (out, inp), dtype or own] = None
    entries = [
        e
        for host, shape, own in found
        for n in rows
        for e in ladder(host, shape, n, rate, dtype=own)
    ]
    Measurements.here(entries).write(file)
    return file
