"""Whether a model's images have their channels last: decided by running all of it, both ways.

What a convolution alone gains by channels that are last, it loses where others must have them
first. So each is measured on both, and then the model as a whole: its inputs as they came, and all
that goes between its convolutions with the channels last, from the first of ours on. The outputs
must be the same, and lie in memory as they did.
"""

import time
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any, cast

from torch import Tensor, nn
from torch.utils import _pytree

from bondwise.compute.kernels.geometry import Sizes
from bondwise.layers.convolution import TensorConv
from bondwise.layers.module import TensorLayer
from bondwise.layers.prepare.contest import Contest, clock_of_work, equal
from bondwise.layers.prepare.met import run
from bondwise.layers.prepare.result import Choice
from bondwise.layers.prepare.room import Call

ROUNDS, LEAST, MOST = 2, 0.2, 30  # of calls of the model: at least, seconds, at most
Contests = dict[Call, Contest]


def met_so(layer: TensorLayer, contests: Contests, met: Sequence[Tensor]) -> Contests:
    """The contests of a layer on inputs that lie as those that it met."""
    if not isinstance(layer, TensorConv):
        return contests
    kinds = {layer.call(layer.batched(x)[0])[0] for x in met if x.numel()}
    return {call: own for call, own in contests.items() if call[0] in kinds}


def met_last(layer: TensorLayer, contests: Contests) -> Contests:
    """Those on inputs whose channels are last, where such inputs are told apart."""
    if not isinstance(layer, TensorConv):
        return contests
    found = {call: own for call, own in contests.items() if _kind(call[0])[1]}
    return found or contests


def settle(
    model: nn.Module,
    example: Any,
    layers: Mapping[str, TensorLayer],
    offers: Sequence[Callable[[], list[Choice]]],
) -> list[Choice]:
    """Serve the layers in the way in which the model is fastest on its example.

    Args:
        model: in which the layers are.
        example: what it is run on.
        layers: by path.
        offers: each serves all layers; the first leaves the channels of everything where they are.
    """
    choices = offers[0]()
    if len(offers) == 1:
        return choices
    served = {path: layer.served for path, layer in layers.items()}
    others = offers[1]()
    for layer in layers.values():
        if isinstance(layer, TensorConv) and layer.served is not None:
            runs = layer.served.runs
            runs.update({(_kind(own)[0], False): run for own, run in [*runs.items()]})
    turned = {path: layer.served for path, layer in layers.items()}
    if not _faster(model, example, layers, served, turned):
        _put(layers, served)
        return choices
    _put(layers, turned)
    return others


def _kind(call: Hashable) -> tuple[Sizes, bool]:
    """The size of an input of a convolution, and whether its channels lie last."""
    return cast("tuple[Sizes, bool]", call)


def _put(layers: Mapping[str, TensorLayer], served: Mapping[str, Any]) -> None:
    for path, layer in layers.items():
        layer.served = served[path]


def _faster(
    model: nn.Module,
    example: Any,
    layers: Mapping[str, TensorLayer],
    one: Mapping[str, Any],
    two: Mapping[str, Any],
) -> bool:
    """Whether the model gives the same with the second, in less time."""
    took: list[list[float]] = [[], []]
    right: list[Tensor] = []
    clock, start = clock_of_work(), time.perf_counter()
    while len(took[1]) < ROUNDS or (time.perf_counter() - start < LEAST and len(took[1]) < MOST):
        for times, served in zip(took, (one, two), strict=True):
            _put(layers, served)
            begin = clock()
            try:
                found = _tensors(run(model, example))
            except Exception:
                return False
            times.append(clock() - begin)
            right = right or found
            if not found or not _same(found, right):
                return False
    return min(took[1]) < min(took[0])


def _tensors(output: Any) -> list[Tensor]:
    return [leaf for leaf in _pytree.tree_leaves(output) if isinstance(leaf, Tensor)]


def _same(found: Sequence[Tensor], right: Sequence[Tensor]) -> bool:
    return len(found) == len(right) and all(
        y.stride() == z.stride() and equal(y, z) for y, z in zip(found, right, strict=True)
    )
