"""What transformers asks when it meets a checkpoint of ours: `from_pretrained` for networks.

Importing this module enters both classes in the tables of transformers; `bondwise_autoload` does so
lazily, without this import.
"""

import re
from typing import Any

from torch import Tensor
from transformers.quantizers.auto import AUTO_QUANTIZATION_CONFIG_MAPPING, AUTO_QUANTIZER_MAPPING
from transformers.quantizers.base import HfQuantizer
from transformers.utils.quantization_config import QuantizationConfigMixin

from bondwise.checkpoint.hub import METHOD, NOTICE_KEY, attach, renaming
from bondwise.checkpoint.manifest import LAYOUT, check_tensors, loosen, read_specs, swap_in
from bondwise.checkpoint.written import still_networks
from bondwise.errors import CheckpointError
from bondwise.layers.layers import TensorLinear
from bondwise.layers.storage import TensorLayer, share


class BondwiseConfig(QuantizationConfigMixin):
    """The manifest of a checkpoint, as transformers carries it.

    Raises:
        CheckpointError: written by a later version, or no manifest at all.
    """

    def __init__(
        self, schema: Any = None, layout: Any = LAYOUT, modules: Any = None, **_: Any
    ) -> None:
        self.quant_method: Any = METHOD
        self.schema, self.layout, self.modules = schema, layout, modules
        read_specs({"schema": schema, "layout": layout, "modules": modules})


class BondwiseQuantizer(HfQuantizer):
    """Swaps empty networks in before the weights are read, and leaves an ordinary model behind."""

    requires_calibration = False

    def is_serializable(self, **_: Any) -> Any:
        """`save_pretrained` works."""
        return True

    @property
    def is_trainable(self) -> Any:
        """Cores are ordinary parameters."""
        return True

    def update_attn_implementation(self, config: Any) -> Any:
        """Sees the config before the files are looked for: bondwise is here, so the notice goes."""
        vars(config).pop(NOTICE_KEY, None)
        return config

    update_tp_plan = update_attn_implementation  # the same moment in transformers 5.0 to 5.8

    def _process_model_before_weight_loading(self, model: Any, **kwargs: Any) -> Any:
        # before 5.9 or so, renamed tensors of a pre-quantized checkpoint missed the dtype asked for
        self.pre_quantized = hasattr(HfQuantizer, "get_new_dtype")
        files = kwargs.get("checkpoint_files") or []
        specs = still_networks(read_specs(vars(self.quantization_config)), files)
        whole = type(model).__name__ in (model.config.architectures or [])
        layers = swap_in(model, specs, model.base_model_prefix, whole, renaming(model))
        check_tensors(files, layers)
        self.loose = loosen(layers, files)
        _pass_over_copies(model, self.loose)
        return model

    def _process_model_after_weight_loading(self, model: Any, **_: Any) -> Any:
        # what stays behind would forbid .half() and make save_pretrained ignore state_dict=
        model.is_quantized = False
        for name in ("hf_quantizer", "quantization_method"):
            vars(model).pop(name, None)
        for group, core in self.loose:
            share(group, core)
            _point_offloaded(group, core)
        copies = dict[int, Tensor]()
        for module in model.modules():
            if isinstance(module, TensorLayer):
                _own_pivots(module, copies)
            if isinstance(module, TensorLinear):
                module.settle()
        attach(model)
        return model


def _pass_over_copies(model: Any, loose: list[tuple[list[TensorLayer], int]]) -> None:
    """Say nothing where a shared core is there under each of its names, as FSDP writes it."""
    paths = {id(module): path for path, module in model.named_modules()}
    known = set(model._keys_to_ignore_on_load_unexpected or ())
    for group, core in loose:
        places = (re.escape(paths[id(layer)]) for layer in group[1:] if id(layer) in paths)
        known |= {rf"(^|\.){place}\.(core|pivots)_{core}$" for place in places}
    model._keys_to_ignore_on_load_unexpected = known


def _own_pivots(layer: TensorLayer, copies: dict[int, Tensor]) -> None:
    """Copy the pivots: as they were read they keep the whole file in memory."""
    for name, pivots in layer._buffers.items():  # pyright: ignore[reportPrivateUsage]
        if name.startswith("pivots_") and pivots is not None and not pivots.is_meta:
            layer._buffers[name] = copies.setdefault(id(pivots), pivots.clone())  # pyright: ignore[reportPrivateUsage]


def _point_offloaded(group: list[TensorLayer], core: int) -> None:
    """Where accelerate has put layers on the disk, let all read the shared core by one name."""
    name = f"core_{core}"
    away = {layer.core_0.is_meta for layer in group}
    if len(away) > 1 or group[0].matrices()[core].is_meta not in away:
        raise CheckpointError(
            "The device_map parts layers that share a core, some of them on the disk; "
            "keep each block whole."
        )
    if away == {True}:
        maps: list[Any] = [vars(layer)["_hf_hook"].weights_map for layer in group]
        entry = maps[0].dataset.index[maps[0].prefix + name]
        for other in maps[1:]:
            other.dataset.index[other.prefix + name] = entry


_configs: dict[str, Any] = AUTO_QUANTIZATION_CONFIG_MAPPING
_quantizers: dict[str, Any] = AUTO_QUANTIZER_MAPPING
_configs[METHOD], _quantizers[METHOD] = BondwiseConfig, BondwiseQuantizer
