"""bondwise: the dense weights of any PyTorch model as tensor networks.

What is public is imported when it is first asked for, so that the command line answers, and hears
Ctrl-C, before torch is there.
"""

import sys
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

import bondwise_autoload

if TYPE_CHECKING:
    from bondwise.public import *  # noqa: F403

__version__ = "0.1.0"

bondwise_autoload.register()  # where `import torch` was kept from doing it


class _Lazy(ModuleType):
    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") and name != "__all__":
            raise AttributeError(f"module {self.__name__!r} has no attribute {name!r}")
        public = import_module("bondwise.public")
        vars(self).update({n: getattr(public, n) for n in ("__all__", *public.__all__)})
        return vars(self)[name] if name in vars(self) else public.topology(name)

    def __dir__(self) -> list[str]:
        return sorted({*super().__dir__(), *self.__all__})

    def __setattr__(self, name: str, value: Any) -> None:
        """Leave `fit` and `heal` to the functions: importing a room sets its name here."""
        if name not in ("fit", "heal") or not isinstance(value, ModuleType):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Lazy

bondwise_autoload.register_layers()
