"""What a graph may call: torch's own operations on tensors, and arithmetic on sizes.

A graph is data that came with a file. Whatever else its names may reach in torch (``torch.os``,
files, libraries) is not called.
"""

import math
import operator
import re
from collections.abc import Callable
from functools import cache
from typing import Any

import torch

from bondwise.errors import CheckpointError

_ATEN = re.compile(r"torch\.ops\.aten\.([A-Za-z_]\w*)\.([A-Za-z]\w*)")
_KEPT_OUT = {"from_file", "save", "load"}  # those that touch files
_PLAIN = {
    **{f"_operator.{name}": getattr(operator, name) for name in (
        "add", "sub", "mul", "floordiv", "truediv", "mod", "pow", "neg", "pos", "abs", "eq", "ne",
        "lt", "le", "gt", "ge", "and_", "or_", "xor", "not_", "getitem", "lshift", "rshift",
    )},
    **{f"math.{name}": getattr(math, name) for name in ("ceil", "floor", "trunc", "sqrt")},
    **{f"torch.sym_{name}": getattr(torch, f"sym_{name}") for name in (
        "float", "int", "max", "min", "not", "ite",
    )},
}  # fmt: skip
CHECKS = re.compile(r"torch\.ops\.aten\.(_assert|sym_constrain)\w*\.\w+|torch\._check\w*")
"""Steps that only check sizes and dtypes, which do not hold in another dtype or on a device."""


@cache
def operation(target: str) -> Callable[..., Any]:
    """The function that a graph calls by this name.

    Raises:
        CheckpointError: it is none of those that a graph may call.

    >>> operation("torch.ops.aten.relu.default")(torch.tensor([-1.0, 2.0]))
    tensor([0., 2.])
    >>> operation("torch.os.system")
    Traceback (most recent call last):
    bondwise.errors.CheckpointError: The program calls torch.os.system, which is no operation ...
    """
    found = _PLAIN.get(target)
    if found is not None:
        return found
    named = _ATEN.fullmatch(target)
    if named is not None and named[1] not in _KEPT_OUT:
        try:
            return getattr(getattr(torch.ops.aten, named[1]), named[2])
        except AttributeError as error:
            raise CheckpointError(
                f"The program calls {target}, which torch {torch.__version__} lacks; export the "
                "model with this torch."
            ) from error
    raise CheckpointError(
        f"The program calls {target}, which is no operation of torch that bondwise runs; export "
        "the model without it, or give the code that makes it, as package.module:attribute."
    )


@cache
def arguments(target: str) -> tuple[tuple[str, Any], ...]:
    """Names and defaults of what an operation takes, in order."""
    schema: Any = operation(target)._schema  # pyright: ignore[reportFunctionMemberAccess]
    return tuple(
        (each.name, each.default_value if each.has_default_value() else None)
        for each in schema.arguments
    )
