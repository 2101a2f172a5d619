"""Models of other kinds, compressed by the same call: does it work, and is a layer ever slower?"""

import time
from copy import deepcopy
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from convs.count import multiplications, numbers
from convs.seconds import turns
from convs.zoo import KINDS, pictures, seeded

CALIBRATION, JUDGED = 2, 3  # seeds
KEEPS = (0.5, 0.1)


def measured(
    name: str, keep: float, threads: int, repeats: int, least: float, options: dict[str, Any]
) -> dict[str, Any]:
    """One model: what became of it as a whole, and of each layer."""
    import bondwise as bw

    kind = KINDS[name]
    dense = seeded(kind)
    start = time.perf_counter()
    result = bw.tensorize(dense, keep, data=pictures(16, kind.shape, CALIBRATION), **options)
    took = time.perf_counter() - start
    model = result.model.eval()
    torch.set_num_threads(threads)
    x = pictures(1, kind.shape, JUDGED)
    with torch.inference_mode():
        wanted, got = dense(x), model(x)
        whole = _whole(dense, model, x, repeats, least)
        layers = _layers(dense, model, x, repeats, least)
    return {
        "kind": name,
        "keep": keep,
        "threads": threads,
        "numbers": numbers(model) / numbers(dense),
        "seconds_to_make": took,
        "error": float((got - wanted).norm() / wanted.norm()),
        **whole,
        "layers": layers,
    }


def _layers(
    dense: nn.Module, model: nn.Module, x: Tensor, repeats: int, least: float
) -> list[dict[str, Any]]:
    """Each layer that was replaced, alone, on what enters the dense one."""
    theirs = dict(model.named_modules())
    kinds = (nn.modules.conv._ConvNd, nn.Linear)
    own = {path: m for path, m in dense.named_modules() if isinstance(m, kinds)}
    met = dict[str, Tensor]()
    hooks = [
        m.register_forward_pre_hook(lambda _, args, path=path: met.setdefault(path, args[0]))
        for path, m in own.items()
    ]
    dense(x)
    for hook in hooks:
        hook.remove()
    return [
        {"layer": path, "dense": str(m), "ours": _shown(theirs[path])}
        | _pair(m, theirs[path], met[path], repeats, least)
        for path, m in own.items()
        if type(theirs[path]) is not type(m)
    ]


def _shown(layer: nn.Module) -> str:
    return str(layer).splitlines()[0][:200]


def _whole(
    dense: nn.Module, model: nn.Module, x: Tensor, repeats: int, least: float
) -> dict[str, float]:
    """`_pair`, and seconds of the model prepared for such an input over dense's."""
    import bondwise as bw

    ready = deepcopy(model)
    made = bw.prepare(ready, x, rows=1)
    found = _pair(dense, model, x, repeats, least, prepared=ready)
    return found | {"seconds_to_prepare": made.seconds}


def _pair(
    dense: nn.Module, ours: nn.Module, x: Tensor, repeats: int, least: float, **others: nn.Module
) -> dict[str, float]:
    """Seconds and multiplications of ours over dense's, and seconds of others under their names."""
    models = {"dense": dense, "seconds": ours, **others}
    runs = {name: partial(model, x) for name, model in models.items()}
    for run in runs.values():
        run()
    best = {name: min(found) for name, found in turns(runs, repeats, least).items()}
    needed, full = multiplications(ours, x), multiplications(dense, x)
    ratios = {name: took / best["dense"] for name, took in best.items() if name != "dense"}
    return ratios | {"dense_seconds": best["dense"], "macs": needed / full, "dense_macs": full}
