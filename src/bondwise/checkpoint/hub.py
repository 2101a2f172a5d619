"""How a Hugging Face model says in its own config that it holds networks.

`attach` writes the manifest into ``config.quantization_config``, so that ``model.save_pretrained``
writes all that a load needs. It also sees to it that every config.json written from then on has a
notice where transformers expects the name of the weights file: a transformers that does not know
bondwise, or was kept from asking it, then stops with that notice in every class, instead of drawing
random weights.
"""

from collections.abc import Generator
from contextlib import contextmanager
from functools import wraps
from types import ModuleType
from typing import Any

from torch import nn

from bondwise.checkpoint.manifest import describe
from bondwise.checkpoint.resize import resize_networks
from bondwise.errors import MissingExtraError
from bondwise.layers.module import TensorLayer

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

    Call it again after layers were swapped: the manifest is that of the moment.
    """
    if not is_hub_model(model):
        return
    _keep_notice()
    _describe_when_saved()
    resize_networks()
    model.config.quantization_config = {"quant_method": METHOD, **describe(model)}
    model.config._is_quantized = (
        True  # flash attention then asks the config, not nn.Linear, for a dtype
    )


def detach(model: Any) -> None:
    """Take the manifest out again, after the last network became dense."""
    if is_hub_model(model) and is_ours(model.config):
        del model.config.quantization_config
        vars(model.config).pop("_is_quantized", None)


def is_ours(config: Any) -> bool:
    """Whether a config holds a manifest of ours."""
    values = getattr(config, "quantization_config", None)
    return isinstance(values, dict) and values.get("quant_method") == METHOD


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
        adapters = getattr(self, "_hf_peft_config_loaded", False)  # then these alone are written
        if not adapters and any(isinstance(module, TensorLayer) for module in self.modules()):
            attach(self)
        elif not adapters:
            detach(self)
        return save(self, *args, **kwargs)

    save_pretrained.describes_networks = True  # pyright: ignore[reportAttributeAccessIssue]
    Model.save_pretrained = save_pretrained
