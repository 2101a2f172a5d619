"""BatchNorm behind a layer: its scale goes into the layer, where a fit and a budget see it.

In evaluation a norm gives ``g (x - m) / sqrt(v + e) + b`` for each channel. With ``s = g / sqrt(v
+ e)`` the layer's weight and bias become ``s W`` and ``s c``, and the norm's numbers those of a
norm of scale one: mean ``s m``, variance ``g^2 - e``, weight ``|g|``, bias ``b`` (Jacob et al. 2018
fold the shift too). An error of the layer is then one of what leaves the norm. The norm stays a
norm: the checkpoint is that of the same architecture, a layer without a bias needs none, and in
training mode, where it takes the batch's own statistics, the model computes what it did before.
"""

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from copy import deepcopy
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm as BatchNorm  # pyright: ignore[reportPrivateUsage]
from torch.nn.modules.conv import _ConvTransposeNd as Transposed  # pyright: ignore[reportPrivateUsage]
from torch.overrides import TorchFunctionMode

from bondwise.flow.chains.calls import tensors
from bondwise.flow.data import Batch, evaluating, feed, one_sample

LAYERS = (
    nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d,
    nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d,
)  # fmt: skip
NORMS = (BatchNorm, nn.SyncBatchNorm)
VECTORS = 2  # axes of what leaves a linear layer where its last axis is a norm's channels
ASKS = ("__get__", "dim", "size", "stride", "numel", "is_floating_point", "is_contiguous")


class Pair(NamedTuple):
    """A layer and the norm that gets what it gives, by their paths."""

    layer: str
    norm: str


def pairs(model: nn.Module, batch: Batch) -> list[Pair]:
    """Layers whose output goes into a BatchNorm and nowhere else, in call order.

    One sample is run. Both are called once, the norm gets the very tensor that the layer gave, and
    no other function of torch does; a ReLU between them, a second reader, a parameter that is tied
    or computed, statistics of the batch (no running ones) make them no pair.

    >>> model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU())
    >>> pairs(model, torch.zeros(2, 3, 8, 8))
    [Pair(layer='0', norm='1')]
    """
    watch = _Watch(model)
    with torch.no_grad(), evaluating(model), watch:
        watch.use(feed(model, one_sample(batch)))
    return watch.pairs()


def folded(model: nn.Module, found: Sequence[Pair]) -> dict[str, nn.Module]:
    """New layers and norms for some pairs, by path; in evaluation the model gives what it gave.

    >>> _ = torch.manual_seed(0)
    >>> model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4)).eval()
    >>> nn.init.uniform_(model[1].weight).shape
    torch.Size([4])
    >>> new = folded(model, [Pair("0", "1")])
    >>> x = torch.randn(5, 3)
    >>> torch.allclose(new["1"](new["0"](x)), model(x), atol=1e-6)
    True
    """
    made: dict[str, nn.Module] = {}
    for pair in found:
        layer = deepcopy(model.get_submodule(pair.layer))
        norm = cast(BatchNorm, deepcopy(model.get_submodule(pair.norm)))
        with torch.no_grad():
            _fold(layer, norm)
        made |= {pair.layer: layer, pair.norm: norm}
    return made


def _fold(layer: nn.Module, norm: BatchNorm) -> None:
    mean, variance = cast(Tensor, norm.running_mean), cast(Tensor, norm.running_var)
    size = torch.ones_like(mean) if norm.weight is None else norm.weight  # pyright: ignore[reportUnnecessaryComparison]
    size, eps = size.double(), norm.eps
    scale = size / (variance.double() + eps).sqrt()
    weight = cast(Tensor, layer.weight)
    weight.copy_(weight.double() * _along(layer, weight, scale))
    if isinstance(bias := layer.bias, Tensor):
        bias.copy_(bias.double() * scale)
    mean.copy_(mean.double() * scale)
    variance.copy_((size.square() - eps).clamp_min(0))
    if isinstance(own := norm.weight, Tensor):
        own.copy_((variance.double() + eps).sqrt())


def _along(layer: nn.Module, weight: Tensor, scale: Tensor) -> Tensor:
    """One number for each output, laid along a weight; transposed ones have groups of inputs."""
    ones = (1,) * (weight.ndim - 2)
    if not isinstance(layer, Transposed):
        return scale.reshape(-1, 1, *ones)
    groups = scale.reshape(layer.groups, 1, -1, *ones)
    return groups.expand(-1, len(weight) // layer.groups, *groups.shape[2:]).flatten(0, 1)


class _Watch(TorchFunctionMode):
    """Sees which functions get what the layers gave, and which norms do."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.given: dict[int, tuple[str, Tensor]] = {}  # kept, so that no identity is used twice
        self.calls: dict[str, int] = {}
        self.norms: dict[str, str] = {}
        self.uses: dict[str, int] = {}
        self._handles = ExitStack()

    def __enter__(self) -> "_Watch":
        tied = _tied(self.model)
        for path, module in self.model.named_modules():
            if isinstance(module, LAYERS) and _plain(module, tied):
                self._hook(module.register_forward_hook(self._leaves(path)))
            elif isinstance(module, NORMS) and _plain(module, tied) and _counts(module):
                self._hook(module.register_forward_pre_hook(self._enters(path)))
        return super().__enter__()

    def __exit__(self, *error: Any) -> None:
        self._handles.close()
        super().__exit__(*error)

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if getattr(func, "__name__", "") not in ASKS:
            self.use((args, kwargs))
        return func(*args, **(kwargs or {}))

    def use(self, value: Any) -> None:
        """Count the layers that gave some of the tensors in a value."""
        for tensor in tensors(value):
            if id(tensor) in self.given:
                path = self.given[id(tensor)][0]
                self.uses[path] = self.uses.get(path, 0) + 1

    def pairs(self) -> list[Pair]:
        """What was found."""
        return [
            Pair(layer, norm)
            for norm, layer in self.norms.items()
            if self.calls[layer] == self.calls[norm] == self.uses.get(layer) == 1
            and _channels(self.model.get_submodule(layer)) == self._norm(norm).num_features
        ]

    def _norm(self, path: str) -> BatchNorm:
        return cast(BatchNorm, self.model.get_submodule(path))

    def _hook(self, handle: Any) -> None:
        self._handles.callback(handle.remove)

    def _leaves(self, path: str) -> Any:
        def look(module: nn.Module, _args: Any, output: Any) -> None:
            self.calls[path] = self.calls.get(path, 0) + 1
            if not isinstance(module, nn.Linear) or output.ndim == VECTORS:
                self.given[id(output)] = path, output

        return look

    def _enters(self, path: str) -> Any:
        def look(_module: nn.Module, args: tuple[Any, ...]) -> None:
            self.calls[path] = self.calls.get(path, 0) + 1
            if args and id(args[0]) in self.given:
                self.norms[path] = self.given[id(args[0])][0]

        return look


def _tied(model: nn.Module) -> set[int]:
    """Parameters that are at several places, by identity."""
    places: dict[int, int] = {}
    for _, parameter in model.named_parameters(remove_duplicate=False):
        places[id(parameter)] = places.get(id(parameter), 0) + 1
    return {each for each, count in places.items() if count > 1}


def _plain(module: nn.Module, tied: set[int]) -> bool:
    """Whether a module computes as its class in torch does, on parameters of its own."""
    known = next(kind for kind in type(module).__mro__ if kind.__module__.startswith("torch.nn."))
    same = cast(Any, type(module)).forward is cast(Any, known).forward
    own = dict(module.named_parameters(recurse=False))
    computed = any(True for _ in module.children()) or (
        isinstance(module, LAYERS) and "weight" not in own
    )
    hooked = "forward" in vars(module) or bool(module._forward_hooks or module._forward_pre_hooks)  # pyright: ignore[reportPrivateUsage]
    return same and not computed and not hooked and not any(id(p) in tied for p in own.values())


def _counts(norm: nn.Module) -> bool:
    """Whether a norm has statistics of its own."""
    return isinstance(norm.running_mean, Tensor) and isinstance(norm.running_var, Tensor)


def _channels(layer: nn.Module) -> int:
    return cast(int, layer.out_features if isinstance(layer, nn.Linear) else layer.out_channels)
