"""Each convolution alone, in each format at equal numbers: error, multiplications and seconds.

The error is that of the outputs on inputs that nothing was fitted on, ``|y - y'| / |y - b|``:
worked out by running both layers. Every format is fitted in the same metric, of the same inputs.
"""

import time
from collections.abc import Callable, Iterator
from math import prod, sqrt
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import bondwise as bw
from convs.count import multiplications
from convs.models import Subject
from convs.quick import turned
from convs.seconds import turns

PATCH = 2304  # columns up to which the patches have a full second moment
Ranks = tuple[int, ...]
Net = Callable[[Ranks], Any]


def convolutions(model: nn.Module) -> dict[str, nn.Conv2d]:
    return {path: m for path, m in model.named_modules() if isinstance(m, nn.Conv2d)}


@torch.no_grad()
def entering(model: nn.Module, x: Tensor) -> dict[str, Tensor]:
    """What each convolution is given."""
    met = dict[str, Tensor]()
    hooks = [
        m.register_forward_pre_hook(lambda _, args, path=path: met.setdefault(path, args[0]))
        for path, m in convolutions(model).items()
    ]
    model(x)
    for hook in hooks:
        hook.remove()
    return met


@torch.no_grad()
def metric(conv: nn.Conv2d, x: Tensor) -> Any:
    """Second moment of the patches; of channels and of taps apart where that is too large."""
    taps = prod(conv.kernel_size)
    patches = F.unfold(x, conv.kernel_size, conv.dilation, conv.padding, conv.stride)
    if conv.in_channels * taps <= PATCH:
        rows = patches.transpose(1, 2).flatten(0, 1).double()
        return rows.T @ rows / len(rows)
    from bondwise.fit.metric import Kronecker

    split = patches.unflatten(1, (conv.in_channels, taps))
    channels = torch.einsum("ncil,ndil->cd", split, split).double()
    kernel = torch.einsum("ncil,ncjl->ij", split, split).double()
    return Kronecker(channels / channels.trace(), kernel / kernel.trace())


def networks(conv: nn.Conv2d) -> dict[str, tuple[Net, list[Ranks]]]:
    """By format: a network of ranks, and the proportions of the ranks that are tried, full ones."""
    o, i = conv.out_channels, conv.in_channels
    y, x = conv.kernel_size
    sizes = {"o": o, "i": i, "y": y, "x": x}
    ends = "-> (o) (i y x)"

    def text(cores: str, *names: str) -> Net:
        return lambda ranks: bw.parse(
            f"{cores} {ends}", **sizes, **dict(zip(names, ranks, strict=True))
        )

    k = y * x
    found: dict[str, tuple[Net, list[Ranks]]] = {
        "lowrank: k x k, 1 x 1": (text("o a, a i y x", "a"), [(min(o, i * k),)]),
        "lowrank: 1 x 1, k x k": (text("o y x a, a i", "a"), [(min(i, o * k),)]),
        "separable: o x a, a i y": (text("o x a, a i y", "a"), [(min(o * x, i * y),)]),
        "CP": (text("o a, i a, y a, x a", "a"), [(o * i,)]),
        "Tucker-2": (
            lambda ranks: bw.tucker2(o, i, (y, x), ranks),
            [(o, i), (o, max(1, i // 2)), (max(1, o // 2), i)],
        ),
    }
    a, c = min(o, i * k), min(i, o * k)
    b = min(a * y, c * x)
    found["TT: o a, a y b, b x c, c i"] = (
        text("o a, a y b, b x c, c i", "a", "b", "c"),
        [(a, b, c), (a, max(1, b // 2), c), (a, max(1, b // 4), c)],
    )
    found["Tucker: the kernel too"] = (
        lambda ranks: bw.tucker((o,), (i, y, x), ranks),
        [(o, i, n, m) for n, m in _kernel_ranks(y, x)],
    )
    if i == 1:
        del found["lowrank: 1 x 1, k x k"], found["Tucker-2"]
    return found


def _kernel_ranks(y: int, x: int) -> list[tuple[int, int]]:
    if (y, x) == (3, 3):
        return [(2, 2), (3, 2), (2, 3)]
    return [(max(1, y // part), x) for part in (2, 4, 8)]


def at_share(net: Net, full: Ranks, numbers: float, cut: int) -> Any | None:
    """The largest network of ranks in proportion that has at most so many numbers.

    The first ``cut`` ranks are cut, the others are as they are.
    """
    best = None
    low, high = 0.0, 1.0
    for _ in range(30):
        middle = (low + high) / 2
        ranks = tuple(max(1, round(r * middle)) if k < cut else r for k, r in enumerate(full))
        try:
            made = net(ranks)
        except ValueError:
            high = middle
            continue
        if made.parameters <= numbers:
            low, best = middle, made
        else:
            high = middle
    return best


def rows(
    subject: Subject, path: str, share: float, repeats: int, least: float, batch: int = 8
) -> list[dict[str, Any]]:
    """The rows of one convolution."""
    model = subject.dense()
    with turned():
        seen = entering(model, subject.calibration()[:128])[path]
        fresh = entering(model, subject.batch(0, batch))[path]
    conv = convolutions(model)[path]
    weigh = metric(conv, seen)
    return list(_of_layer(subject.name, path, conv, weigh, fresh, share, repeats, least))


def _of_layer(
    subject: str,
    path: str,
    conv: nn.Conv2d,
    weigh: Any,
    x: Tensor,
    share: float,
    repeats: int,
    least: float,
) -> Iterator[dict[str, Any]]:
    made = dict[str, tuple[nn.Module, dict[str, Any]]]()
    numbers = share * conv.weight.numel()
    for label, (net, tried) in networks(conv).items():
        cut = 2 if label.startswith("Tucker:") else 9
        best = None
        for full in tried:
            network = at_share(net, full, numbers, cut)
            if network is None:
                continue
            start = time.perf_counter()
            try:
                layer = bw.TensorConv2d.from_conv(conv, network, weigh)
            except (ValueError, RuntimeError) as error:
                print(f"{path}, {label}, {network.bonds}: {error}", flush=True)
                continue
            layer.size = tuple(x.shape[2:])
            about = {
                "error": _error(conv, layer, x),
                "ranks": dict(network.bonds),
                "numbers": network.parameters / conv.weight.numel(),
                "seconds_to_fit": time.perf_counter() - start,
            }
            if best is None or about["error"] < best[1]["error"]:
                best = (layer, about)
        if best is not None:
            made[label] = best
    yield from _timed(subject, path, conv, made, x, share, repeats, least)


@torch.no_grad()
def _error(conv: nn.Conv2d, layer: nn.Module, x: Tensor) -> float:
    y = conv(x)
    without = y if conv.bias is None else y - conv.bias[:, None, None]
    return sqrt(float((y - layer(x)).square().sum() / without.square().sum()))


@torch.inference_mode()
def _timed(
    subject: str,
    path: str,
    conv: nn.Conv2d,
    made: dict[str, tuple[nn.Module, dict[str, Any]]],
    x: Tensor,
    share: float,
    repeats: int,
    least: float,
) -> Iterator[dict[str, Any]]:
    models: dict[str, nn.Module] = {"dense": conv} | {label: m for label, (m, _) in made.items()}
    runs = {label: (lambda m=m: m(x)) for label, m in models.items()}
    for run in runs.values():
        run()
    times = turns(runs, repeats, least)
    full = multiplications(conv, x)
    for label, (layer, about) in made.items():
        yield {
            "subject": subject,
            "layer": path,
            "share": share,
            "format": label,
            **about,
            "macs": multiplications(layer, x) / full,
            "seconds": min(times[label]) / min(times["dense"]),
            "dense_seconds": min(times["dense"]),
        }
