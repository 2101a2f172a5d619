"""Runs at `import torch` (entry point `torch.backends`): tells transformers of our checkpoints.

Nothing of bondwise, torch or transformers is imported here. Two names are entered in the tables
that transformers keeps, as soon as it has them; bondwise itself is imported when a checkpoint asks
for it. Once bondwise is there, its layers are made known to peft in the same way.
"""

import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any

METHOD = "bondwise"
_TABLES = "transformers.quantizers.auto"
_LOADER = "transformers.modeling_utils"  # imports the tables before anything can be loaded
_LORA = "peft.tuners.lora.model"  # has all that the adapters on our layers need


class _Config:
    """Stands in the table of configs until a checkpoint asks for the real one."""

    @staticmethod
    def from_dict(values: dict[str, Any], **kwargs: Any) -> Any:
        from bondwise.checkpoint.quantizer import BondwiseConfig

        return BondwiseConfig.from_dict(values, **kwargs)


def _quantizer(config: Any, **kwargs: Any) -> Any:
    """Stands in the table of quantizers until a checkpoint asks for the real one."""
    from bondwise.checkpoint.quantizer import BondwiseQuantizer

    return BondwiseQuantizer(config, **kwargs)


def _enter_tables() -> None:
    tables = sys.modules[_TABLES]
    tables.AUTO_QUANTIZATION_CONFIG_MAPPING.setdefault(METHOD, _Config)
    tables.AUTO_QUANTIZER_MAPPING.setdefault(METHOD, _quantizer)


def _wrap_layers() -> None:
    from bondwise.checkpoint.lora import register as wrap

    wrap()


class _Waiting:
    """A finder that waits for one module, does something once it has run, and is gone."""

    def __init__(self, name: str, then: Callable[[], None], told: str) -> None:
        self.name, self.then, self.told = name, then, told

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> Any:  # noqa: ARG002
        if name != self.name:
            return None
        if self in sys.meta_path:
            sys.meta_path.remove(self)
        import importlib.util

        spec = importlib.util.find_spec(name)
        loader: Any = spec and spec.loader
        if loader is None:
            return spec
        run = loader.exec_module

        def exec_module(module: ModuleType) -> None:
            del loader.exec_module
            run(module)
            self.do()

        loader.exec_module = exec_module
        return spec

    def do(self) -> None:
        """What was waited for, or a warning."""
        try:
            self.then()
        except Exception as error:
            import warnings

            warnings.warn(f"{self.told}: {error!r}", RuntimeWarning, stacklevel=2)


def _is_ready(name: str) -> bool:
    """Whether a module is there and has run to its end."""
    spec = getattr(sys.modules.get(name), "__spec__", None)
    return spec is not None and not getattr(spec, "_initializing", False)


def _wait(name: str, then: Callable[[], None], told: str) -> None:
    waiting = (finder for finder in sys.meta_path if type(finder).__name__ == "_Waiting")
    if not any(getattr(finder, "name", None) == name for finder in waiting):
        sys.meta_path.insert(0, _Waiting(name, then, told))


def register() -> None:
    """Enter our names in the tables of transformers, now or once it is imported; never raises."""
    try:
        if _is_ready(_TABLES):
            _enter_tables()
        else:
            # where the tables are just being imported, wait for what is imported after them
            name = _LOADER if _TABLES in sys.modules else _TABLES
            _wait(
                name,
                _enter_tables,
                "bondwise is unknown to transformers, its checkpoints will not load",
            )
    except Exception as error:
        print(f"bondwise is unknown to transformers: {error!r}", file=sys.stderr)


def register_layers() -> None:
    """Let LoRA of peft wrap our layers, now or once it is imported; for bondwise itself to call."""
    told = "bondwise is unknown to peft, which will not wrap its layers"
    if _is_ready(_LORA):
        _Waiting(_LORA, _wrap_layers, told).do()
    else:
        _wait(_LORA, _wrap_layers, told)
