"""LoRA of peft on networks: an adapter beside a layer, which merging makes one of its terms.

`register` lets ordinary LoRA (``target_modules``, "all-linear") wrap `TensorLinear` and
`TensorEmbedding`. ``merge_adapter`` and ``merge_and_unload`` append the adapter to the layer as a
low-rank term, ``unmerge_adapter`` takes it away again; no dense weight is written.
"""

import warnings
from collections.abc import Callable
from functools import wraps
from typing import Any

import torch
import torch.nn.functional as F
from peft.tuners import tuners_utils
from peft.tuners.lora import model as lora_model
from peft.tuners.lora.config import LoraConfig
from peft.tuners.lora.layer import Embedding, Linear
from peft.tuners.trainable_tokens.layer import TrainableTokensLayer
from torch import Tensor

from bondwise.errors import SelectionError
from bondwise.layers.embedding import TensorEmbedding
from bondwise.layers.linear import TensorLinear
from bondwise.layers.module import Part, TensorLayer
from bondwise.layers.networks import network
from bondwise.topology.lowrank import lowrank

_DRAWN = (True, False, "gaussian", "eva", "orthogonal")  # starts that leave the weight as it is
_HEADS = ("score", "classifier")  # of classifiers, which "all-linear" leaves alone as peft does


def register() -> None:
    """Let LoRA wrap layers of terms, from here on; what else it wraps stays as it is.

    `bondwise` calls it once peft is imported.
    """
    model: Any = lora_model
    if hasattr(model.dispatch_default, "wraps_terms"):
        return
    model.dispatch_default = _dispatch(model.dispatch_default)
    name = "_maybe_include_all_linear_layers"
    setattr(tuners_utils, name, _all_linear(getattr(tuners_utils, name)))
    tokens: Any = TrainableTokensLayer
    tokens.__init__ = _dense_tokens(tokens.__init__)


class _OnTerms:
    """What both kinds of adapter have in common: they merge into a layer of terms."""

    get_base_layer: Callable[[], Any]
    merged_adapters: list[str]
    scaling: dict[str, float]
    lora_bias: dict[str, bool]
    lora_B: Any  # noqa: N815

    def update_layer(self, adapter_name: str, *args: Any, **kwargs: Any) -> None:
        """Add an adapter.

        Raises:
            SelectionError: of a kind that reads or rewrites a dense weight.
        """
        _check(kwargs.get("config"), kwargs)
        super().update_layer(adapter_name, *args, **kwargs)  # pyright: ignore
        self.fan_in_fan_out = False  # a weight of terms is out x in, whatever its host

    def pair(self, adapter: str) -> tuple[Tensor, Tensor] | None:
        """(out x r, r x in) of an adapter, scaled; None where this layer has none of that name."""
        raise NotImplementedError

    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        """Append adapters to the layer, each as a low-rank term.

        Args:
            safe_merge: refuse an adapter that is not finite.
            adapter_names: which; None takes all that are active.

        Raises:
            SelectionError: the layer is offloaded, or has no bias for an adapter's, or the adapter
                is not finite.
        """
        layer = self.get_base_layer()
        for name in tuners_utils.check_adapters_to_merge(self, adapter_names):  # pyright: ignore
            pair = self.pair(name)
            if pair is None:
                continue
            bias = self._bias(name)
            _check_merge(layer, name, bias, [*pair] if safe_merge else [])
            rank = pair[0].shape[1]
            layer.add(network(lowrank(*layer.shape, rank), pair))
            for own in layer.terms[-1].numbers:
                own.requires_grad_(layer.like.requires_grad)
            if bias is not None:
                layer.bias.data += bias.to(layer.bias.dtype)
            self.merged_adapters.append(name)
            self._parts[name] = layer.parts[-1]

    def unmerge(self) -> None:
        """Take all merged adapters out of the layer again, the last one first.

        Raises:
            SelectionError: other terms were added since.
        """
        layer = self.get_base_layer()
        while self.merged_adapters:
            name = self.merged_adapters[-1]
            if layer.parts[-1] is not self._parts[name]:
                raise SelectionError(
                    f"The last term of the layer is not the adapter {name!r}, so that it cannot be "
                    "unmerged; remove what was added after merging first."
                )
            layer.remove()
            bias = self._bias(name)
            if bias is not None:
                layer.bias.data -= bias.to(layer.bias.dtype)
            self.merged_adapters.pop()
            del self._parts[name]

    @property
    def _parts(self) -> dict[str, Part]:
        """The terms of merged adapters, as the layer knows them."""
        return vars(self).setdefault("_merged_parts", {})

    def _bias(self, name: str) -> Tensor | None:
        if not self.lora_bias.get(name):
            return None
        return self.lora_B[name].bias.detach() * self.scaling[name]


class TensorLoraLinear(_OnTerms, Linear):
    """LoRA beside a linear layer of terms."""

    def pair(self, adapter: str) -> tuple[Tensor, Tensor] | None:
        """(out x r, r x in) of an adapter, scaled; None where this layer has none of that name."""
        if adapter not in self.lora_A:
            return None
        A: Any = self.lora_A[adapter]
        return self.lora_B[adapter].weight.detach() * self.scaling[adapter], A.weight.detach()


class TensorLoraEmbedding(_OnTerms, Embedding):
    """LoRA beside an embedding of terms."""

    def update_layer(self, adapter_name: str, *args: Any, **kwargs: Any) -> None:
        """Add an adapter; see `_OnTerms.update_layer`."""
        self.in_features, self.out_features = self.get_base_layer().shape
        super().update_layer(adapter_name, *args, **kwargs)

    def pair(self, adapter: str) -> tuple[Tensor, Tensor] | None:
        """(entries x r, r x width) of an adapter, scaled; None where this layer has none of it."""
        if adapter not in self.lora_embedding_A:
            return None
        A, B = self.lora_embedding_A[adapter].detach(), self.lora_embedding_B[adapter].detach()
        return A.T * self.scaling[adapter], B.T

    def _embed(self, ids: Tensor, weight: Tensor, *_: Any, **__: Any) -> Tensor:
        base: Any = self.get_base_layer()
        return F.embedding(ids, weight, padding_idx=base.padding_idx)


_LAYERS = {TensorLinear: TensorLoraLinear, TensorEmbedding: TensorLoraEmbedding}


def _dispatch(default: Any) -> Any:
    @wraps(default)
    def dispatch_default(target: Any, adapter_name: str, **kwargs: Any) -> Any:
        tuner = isinstance(target, tuners_utils.BaseTunerLayer)
        base = target.get_base_layer() if tuner else target
        made = next((made for kind, made in _LAYERS.items() if isinstance(base, kind)), None)
        if made is None or kwargs.get("parameter_name") is not None:
            return default(target, adapter_name, **kwargs)
        kwargs.pop("parameter_name", None)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Unsupported layer type")
            return made(target, adapter_name, **kwargs)

    dispatch_default.wraps_terms = True  # pyright: ignore[reportAttributeAccessIssue]
    return dispatch_default


def _all_linear(include: Any) -> Any:
    @wraps(include)
    def include_linear(config: Any, model: Any) -> Any:
        targets = getattr(config, "target_modules", None)
        found = include(config, model)
        asked = isinstance(targets, str) and targets.lower() == "all-linear"
        if asked and isinstance(config, LoraConfig):
            found.target_modules = set(found.target_modules) | _linear_paths(model)
        return found

    return include_linear


def _dense_tokens(init: Any) -> Any:
    @wraps(init)
    def init_tokens(self: Any, base_layer: Any, *args: Any, **kwargs: Any) -> None:
        if isinstance(base_layer, TensorLayer):
            raise SelectionError(
                "Trainable tokens came for an embedding of terms, whose rows they would replace; "
                "write the embedding into target_modules instead, or merge the model first."
            )
        init(self, base_layer, *args, **kwargs)

    return init_tokens


def _linear_paths(model: Any) -> set[str]:
    """Linear layers of terms, but the head and what an adapter wraps already."""
    head = getattr(model, "get_output_embeddings", lambda: None)()
    if head is None:
        head = next((h for name in _HEADS if (h := getattr(model, name, None)) is not None), None)
    wrapped = tuple(
        f"{path}."
        for path, m in model.named_modules()
        if isinstance(m, tuners_utils.BaseTunerLayer)
    )
    return {
        path
        for path, module in model.named_modules()
        if isinstance(module, TensorLinear) and module is not head and not path.startswith(wrapped)
    }


def _check(config: Any, asked: dict[str, Any]) -> None:
    """Refuse adapters that read or rewrite a dense weight."""
    given = asked if config is None else vars(config)
    fields = getattr(config, "__dataclass_fields__", {})
    variants = ["use_dora", *(n for n, f in fields.items() if f.metadata.get("is_lora_variant"))]
    start = given.get("init_lora_weights", True)
    kind = next((name for name in variants if given.get(name)), None)
    if kind is None and start in _DRAWN:
        return
    what = f"init_lora_weights={start!r}" if kind is None else f"{kind}={given[kind]!r}"
    instead = "init_lora_weights=True" if kind is None else "plain LoRA or use_rslora=True"
    raise SelectionError(
        f"{what} came for a layer of terms, whose dense weight it would read or rewrite; write "
        f"{instead}, or merge the model first."
    )


def _check_merge(layer: TensorLayer, name: str, bias: Tensor | None, finite: list[Tensor]) -> None:
    hook = getattr(layer, "_hf_hook", None)
    if getattr(hook, "offload", False) or layer.like.is_meta:
        raise SelectionError(
            f"The adapter {name!r} cannot be merged into a layer that is offloaded; load the model "
            "whole, without device_map."
        )
    if bias is not None and getattr(layer, "bias", None) is None:
        raise SelectionError(
            f"The adapter {name!r} has a bias (lora_bias=True), the layer has none, so that they "
            "cannot be merged; train it with lora_bias=False."
        )
    if not all(bool(torch.isfinite(own).all()) for own in finite):
        raise SelectionError(
            f"The adapter {name!r} is not finite and was not merged; train it again."
        )
