"""`package.module:attribute`: a model that code makes, imported where the user named it.

To import is to run code. So only what a user wrote is imported: an argument of a verb or of
`bondwise.load`, never a name that a folder holds. A folder's name for its code is said in errors,
so that it can be written by who trusts it.
"""

import importlib
import importlib.util
import re
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any, cast

from torch import nn

from bondwise.errors import BondwiseError, CheckpointError

_NAME = r"[A-Za-z_]\w*(?:\.[A-Za-z_]\w*)*"
_CODE = re.compile(rf"(?P<module>{_NAME}|.+\.py):(?P<attribute>{_NAME})")
NAMED = 5  # of what a module has, in an error


def is_code(source: str | Path) -> bool:
    """Whether a source names code: `package.module:attribute`, or `path/to/file.py:attribute`.

    >>> is_code("nets:small"), is_code("lib/nets.py:small"), is_code("models/small")
    (True, True, False)
    """
    return _CODE.fullmatch(str(source)) is not None and not Path(source).exists()


def whole_name(source: str) -> str:
    """The source as it is found from any folder: the path of a file absolute, all else as it is."""
    file, _, attribute = source.rpartition(":")
    if not file.endswith(".py"):
        return source
    return f"{Path(file).expanduser().absolute()}:{attribute}"


def model_of(source: str | Path) -> nn.Module:
    """The model that code makes: an attribute that is one, or a call without arguments gives one.

    A module is imported from the current folder or ``PYTHONPATH``; beside a file its folder counts.

    Raises:
        CheckpointError: there is no such module or attribute, the import or the call fails, or no
            ``nn.Module`` comes of it.

    >>> model_of("torch.nn:Identity")
    Identity()
    """
    found = _CODE.fullmatch(str(source))
    if found is None:
        raise CheckpointError(f"{source!r} came; write package.module:attribute.")
    made = _attribute(_module(found["module"]), found["attribute"], str(source))
    if isinstance(made, nn.Module):
        return made
    if not callable(made):
        raise CheckpointError(
            f"{source} is {_a(made)}, not an nn.Module; name a module, or a function without "
            "arguments that returns one."
        )
    return made_by(cast(Callable[[], Any], made), str(source))


def made_by(factory: Callable[[], Any], called: str) -> nn.Module:
    """What a function without arguments returns, if it is a model.

    Raises:
        CheckpointError: it fails, or returns something else.
    """
    try:
        made = factory()
    except BondwiseError:
        raise
    except (Exception, SystemExit) as error:
        raise CheckpointError(
            f"{called} failed ({_reason(error)}); give a function without arguments that returns "
            "the model."
        ) from error
    if not isinstance(made, nn.Module):
        raise CheckpointError(
            f"{called} returned {_a(made)}, not an nn.Module; return the model itself."
        )
    return made


def _module(name: str) -> ModuleType:
    try:
        return _from_file(Path(name).expanduser()) if name.endswith(".py") else _imported(name)
    except BondwiseError:
        raise
    except (Exception, SystemExit) as error:
        lacks = error.name if isinstance(error, ModuleNotFoundError) else None
        if lacks and f"{name}.".startswith(f"{lacks}."):
            raise CheckpointError(
                f"There is no module {lacks} in this folder or on PYTHONPATH; write "
                "package.module:attribute, or path/to/file.py:attribute."
            ) from error
        raise CheckpointError(
            f"{name} cannot be imported ({_reason(error)}); mend it, or install what it needs."
        ) from error


def _imported(name: str) -> ModuleType:
    _find_in(Path.cwd())
    return importlib.import_module(name)


def _from_file(path: Path) -> ModuleType:
    if not path.is_file():
        raise CheckpointError(f"There is no file {path}; write path/to/file.py:attribute.")
    path = path.resolve()
    known = sys.modules.get(path.stem)
    if known is not None and getattr(known, "__file__", None) == str(path):
        return known
    name = path.stem if known is None and path.stem.isidentifier() else f"bondwise_{hash(path):x}"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    _find_in(path.parent)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


def _find_in(folder: Path) -> None:
    """Look for modules in a folder first, as Python does beside a script."""
    if str(folder) not in sys.path:
        sys.path.insert(0, str(folder))


def _attribute(module: ModuleType, path: str, source: str) -> Any:
    found: Any = module
    for name in path.split("."):
        if not hasattr(found, name):
            own = [n for n, v in vars(module).items() if _makes(v, module)]
            has = f"; it has {', '.join(own[:NAMED])}" if own else ""
            raise CheckpointError(f"{source}: {_called(found)} has no attribute {name}{has}.")
        found = getattr(found, name)
    return found


def _makes(value: object, module: ModuleType) -> bool:
    """Whether something may be what was meant: a model, or what the module itself defines."""
    own = callable(value) and getattr(value, "__module__", None) == module.__name__
    return isinstance(value, nn.Module) or own


def _called(value: Any) -> str:
    return str(getattr(value, "__name__", None) or type(value).__name__)


def _a(value: object) -> str:
    name = type(value).__name__
    return "None" if value is None else f"a{'n' * (name[0] in 'aeiou')} {name}"


def _reason(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    said = f": {lines[0].strip().rstrip('.')[:200]}" if lines else ""
    return f"{type(error).__name__}{said}"
