"""What transformers asks when it meets a checkpoint of ours: `from_pretrained` for networks.

Importing this module enters both classes in the tables of transformers; `bondwise_autoload` does so
lazily, without this import.
"""

import re
from collections.abc import Mapping
from typing import Any

from transformers.quantizers.auto import AUTO_QUANTIZATION_CONFIG_MAPPING, AUTO_QUANTIZER_MAPPING
from transformers.quantizers.base import HfQuantizer
from transformers.utils.quantization_config import QuantizationConfigMixin

from bondwise.checkpoint.hub import METHOD, NOTICE_KEY, attach, renaming
from bondwise.checkpoint.manifest import (
    LAYOUT,
    Layers,
    check_positions,
    check_tensors,
    read_old,
    read_positions,
    read_specs,
    swap_in,
)
from bondwise.checkpoint.written import still_networks
from bondwise.layers.module import TensorLayer
from bondwise.layers.older import is_old
from bondwise.layers.terms import Spec


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
        self.files = kwargs.get("checkpoint_files") or []
        specs = still_networks(read_specs(vars(self.quantization_config)), self.files)
        whole = type(model).__name__ in (model.config.architectures or [])
        self.specs = specs
        self.layers = swap_in(model, specs, model.base_model_prefix, whole, renaming(model))
        check_tensors(self.files, self.layers, specs)
        check_positions(self.files, self.layers)
        _pass_over(model, self.layers, specs)
        _untie(model)
        return model

    def _process_model_after_weight_loading(self, model: Any, **_: Any) -> Any:
        # what stays behind would forbid .half() and make save_pretrained ignore state_dict=
        model.is_quantized = False
        for name in ("hf_quantizer", "quantization_method"):
            vars(model).pop(name, None)
        read_old(self.files, self.layers, self.specs)
        read_positions(self.files, self.layers)
        attach(model)
        return model


def _pass_over(model: Any, layers: Layers, specs: Mapping[str, Spec]) -> None:
    """Say nothing of guards, nor of what was named otherwise until schema 2."""
    extra: set[str] = set(model._keys_to_ignore_on_load_unexpected or ())
    lost: set[str] = set(model._keys_to_ignore_on_load_missing or ())
    paths = {id(module): path for path, module in model.named_modules()}
    for path, layer in layers.items():
        place = re.escape(paths[id(layer)])
        old = r"|pivots_\d+|remainder|remainder_at" if is_old(specs[path]) else ""
        extra.add(rf"(^|\.){place}\.(weight{old})$")
        if is_old(specs[path]):
            lost.add(rf"(^|\.){place}\.(core_\d+|t1_entries)$")
    for name, own in (("unexpected", extra), ("missing", lost)):
        name = f"_keys_to_ignore_on_load_{name}"
        kind = set if isinstance(getattr(model, name), set) else list  # a list in transformers 5.0
        setattr(model, name, kind(own))


def _untie(model: Any) -> None:
    """Forget ties of weights that are networks now: no tensor stands under their names."""
    tied: dict[str, str] = getattr(model, "all_tied_weights_keys", None) or {}
    for target, source in list(tied.items()):
        paths = (target.rpartition(".")[0], source.rpartition(".")[0])
        modules = dict(model.named_modules())
        if any(isinstance(modules.get(path), TensorLayer) for path in paths):
            del tied[target]


_configs: dict[str, Any] = AUTO_QUANTIZATION_CONFIG_MAPPING
_quantizers: dict[str, Any] = AUTO_QUANTIZER_MAPPING
_configs[METHOD], _quantizers[METHOD] = BondwiseConfig, BondwiseQuantizer
