"""Runs at `import torch` (entry point `torch.backends`): tells transformers of our checkpoints.

Nothing of bondwise, torch or transformers is imported here. Two names are entered in the tables
that transformers keeps, as soon as it has them; bondwise itself is imported when a checkpoint asks
for it.
"""

import sys
from types import ModuleType
from typing import Any

METHOD = "bondwise"
_TABLES = "transformers.quantizers.auto"
_LOADER = "transformers.modeling_utils"  # imports the tables before anything can be loaded


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


class _Waiting:
    """A finder that waits for one module, enters the tables once it has run, and is gone."""

    def __init__(self, name: str) -> None:
        self.name = name

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
            _or_warn()

        loader.exec_module = exec_module
        return spec


def _or_warn() -> None:
    try:
        _enter_tables()
    except Exception as error:
        import warnings

        warnings.warn(
            f"bondwise is unknown to transformers, its checkpoints will not load: {error!r}",
            RuntimeWarning,
            stacklevel=2,
        )


def _is_ready(name: str) -> bool:
    """Whether a module is there and has run to its end."""
    spec = getattr(sys.modules.get(name), "__spec__", None)
    return spec is not None and not getattr(spec, "_initializing", False)


def register() -> None:
    """Enter our names in the tables of transformers, now or once it is imported; never raises."""
    try:
        if _is_ready(_TABLES):
            _enter_tables()
        elif not any(type(finder).__name__ == "_Waiting" for finder in sys.meta_path):
            # where the tables are just being imported, wait for what is imported after them
            sys.meta_path.insert(0, _Waiting(_LOADER if _TABLES in sys.modules else _TABLES))
    except Exception as error:
        print(f"bondwise is unknown to transformers: {error!r}", file=sys.stderr)
