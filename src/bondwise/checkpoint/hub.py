"""How a Hugging Face model says in its own config that it holds networks.

`attach` writes the manifest into ``config.quantization_config``, so that ``model.save_pretrained``
writes all that a load needs. It also sees to it that every config.json written from then on has a
notice where transformers expects the name of the weights file: a transformers that does not know
bondwise, or was kept from asking it, then stops with that notice in every class, instead of drawing
random weights.
"""

from collections.abc import Callable, Generator
from contextlib import contextmanager
from functools import wraps
from types import ModuleType
from typing import Any

from torch import nn

from bondwise.checkpoint.manifest import describe
from bondwise.checkpoint.resize import resize_networks
from bondwise.errors import MissingExtraError

METHOD = "bondwise"
NOTICE = "this checkpoint holds tensor networks and needs bondwise: pip install 'bondwise[hf]'"
NOTICE_KEY = "transformers_weights"  # read by every from_pretrained since 4.56, dropped on save


def need_transformers() -> ModuleType:
    """The transformers package.

    Raises:
        MissingExtraError: it is not installed.
    """
    try:
        import transformers
    except ImportError as error:
        raise MissingExtraError(
            "Hugging Face checkpoints need transformers, which is not installed; "
            "run: pip install 'bondwise[hf]'."
        ) from error
    return transformers


@contextmanager
def without_bars() -> Generator[None]:
    """No progress bars of transformers for a while."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


def is_hub_model(model: nn.Module) -> bool:
    """Whether a model is a `transformers.PreTrainedModel`."""
    return any(base.__module__ == "transformers.modeling_utils" for base in type(model).__mro__)


def attach(model: Any) -> None:
    """Write the manifest of a Hugging Face model into its config; other models are left alone.

    The configs of its parts get it too, since a part is loaded from the whole by its own config
    (``CLIPVisionModel`` from a ``CLIPModel``). Call it again after layers were swapped: the
    manifest is that of the moment, and a model without networks has none.
    """
    if not is_hub_model(model):
        return
    manifest = {"quant_method": METHOD, **describe(model)}
    if not manifest["modules"]:
        detach(model)
        return
    _keep_notice()
    _describe_when_saved()
    resize_networks()
    for config in _configs_of(model.config):
        config.quantization_config = manifest
        config._is_quantized = (
            True  # flash attention then asks the config, not nn.Linear, for a dtype
        )


def detach(model: Any) -> None:
    """Take the manifest out again, after the last network became dense."""
    if not is_hub_model(model):
        return
    for config in _configs_of(model.config):
        if is_ours(config):
            del config.quantization_config
            vars(config).pop("_is_quantized", None)


def _configs_of(config: Any) -> list[Any]:
    """A config and those of its parts, at any depth."""
    parts = [getattr(config, name, None) for name in getattr(config, "sub_configs", None) or ()]
    there = [part for part in parts if hasattr(part, "to_dict")]
    return [config, *(below for part in there for below in _configs_of(part))]


def is_ours(config: Any) -> bool:
    """Whether a config holds a manifest of ours."""
    values = getattr(config, "quantization_config", None)
    if not isinstance(values, dict):  # as transformers holds it while it loads
        return getattr(values, "quant_method", None) == METHOD
    return values.get("quant_method") == METHOD


def renaming(model: Any) -> Callable[[str], str]:
    """What transformers calls a tensor of a file in a model that it loads it into.

    Parts of a model, and models whose modules moved since their files were written, have other
    names than the files have. Of any other model than one of transformers, names stay.
    """
    if not is_hub_model(model):
        return str
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import WeightConverter, rename_source_key

    own: Any = getattr(model, "_weight_conversions", None) or get_model_conversion_mapping(model)
    joined = [step for step in own if isinstance(step, WeightConverter)]
    moved = [step for step in own if not isinstance(step, WeightConverter)]
    state, prefix = model.state_dict(keep_vars=True), model.base_model_prefix
    return lambda name: rename_source_key(name, moved, joined, prefix, state)[0]


def _keep_notice() -> None:
    """Let config.json carry the notice, which ``save_pretrained`` drops before it writes."""
    from transformers.configuration_utils import PreTrainedConfig as Config

    write: Any = Config.to_json_file
    if hasattr(write, "keeps_notice"):
        return

    @wraps(write)
    def to_json_file(self: Any, *args: Any, **kwargs: Any) -> None:
        if not is_ours(self):
            return write(self, *args, **kwargs)
        setattr(self, NOTICE_KEY, NOTICE)
        try:
            return write(self, *args, **kwargs)
        finally:
            delattr(self, NOTICE_KEY)

    to_json_file.keeps_notice = True  # pyright: ignore[reportAttributeAccessIssue]
    Config.to_json_file = to_json_file


def _describe_when_saved() -> None:
    """Let ``save_pretrained`` write the manifest of what the model has by then.

    A merged adapter is a term more, a resized embedding a network less.
    """
    from transformers import PreTrainedModel as Model

    save: Any = Model.save_pretrained
    if hasattr(save, "describes_networks"):
        return

    @wraps(save)
    def save_pretrained(self: Any, *args: Any, **kwargs: Any) -> None:
        if not getattr(self, "_hf_peft_config_loaded", False):  # adapters are written alone
            attach(self)
        return save(self, *args, **kwargs)

    save_pretrained.describes_networks = True  # pyright: ignore[reportAttributeAccessIssue]
    Model.save_pretrained = save_pretrained
