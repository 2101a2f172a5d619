"""Bytes that a step of training holds at its peak, as torch's allocator counts them."""

import json
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile, record_function

STEP = "the step that counts"


def peak(make: Callable[[], nn.Module], batch: int, width: int, dtype: torch.dtype) -> int:
    """Largest sum of a layer, its inputs, its gradients and all that is between, in bytes.

    Everything is allocated under the profiler, whose running sum is what counts: parameters and
    caches too. The second step is the one that counts; the first may fill caches. Scratch space
    that a matrix library takes past torch's allocator is not seen, on either side.
    """
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as found:
        layer = make().train()
        x = torch.randn(batch, width, dtype=dtype).requires_grad_()
        _step(layer, x)
        with record_function(STEP):
            _step(layer, x)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "trace.json"
        found.export_chrome_trace(str(file))
        events = json.loads(file.read_text("utf-8"))["traceEvents"]
    return _peak(events)


def _step(layer: nn.Module, x: Tensor) -> None:
    layer.zero_grad(set_to_none=True)
    x.grad = None
    y = layer(x)
    y.backward(torch.ones_like(y))


def _peak(events: list[dict]) -> int:
    start = next(event["ts"] for event in events if event.get("name") == STEP)
    held = most = 0
    changes = (event for event in events if event.get("name") == "[memory]")
    for event in sorted(changes, key=lambda event: event["ts"]):
        held += event["args"]["Bytes"]
        if event["ts"] >= start:
            most = max(most, held)
    return most
