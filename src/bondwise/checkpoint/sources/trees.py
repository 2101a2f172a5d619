"""Arguments and outputs as an exported program nests them: tuples, lists and tables of leaves.

A tree is plain data: None for a leaf, else ``{"tuple": [..]}``, ``{"list": [..]}`` or
``{"dict": [[key, tree], ..]}``.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from bondwise.errors import CheckpointError, DataError

Tree = Any
_KINDS = {"builtins.tuple": "tuple", "builtins.list": "list"}
_TABLES = {"builtins.dict", "collections.OrderedDict"}


def tree_of(spec: str) -> Tree:
    """A tree from what torch writes of it, a ``TreeSpec`` as JSON; classes come back as tables.

    Raises:
        CheckpointError: it is of no kind that is known.
    """
    try:
        return _tree(json.loads(spec)[1])
    except (ValueError, KeyError, IndexError, TypeError) as error:
        raise CheckpointError(
            "The program's arguments or outputs cannot be read; export it with tensors in tuples, "
            "lists or dicts."
        ) from error


def _tree(spec: Mapping[str, Any]) -> Tree:
    kind, parts = spec["type"], [_tree(each) for each in spec["children_spec"]]
    if kind is None:
        return None
    if kind in _KINDS:
        return {_KINDS[kind]: parts}
    if kind in _TABLES:
        keys = json.loads(spec["context"])
        return {"dict": [[key, part] for key, part in zip(keys, parts, strict=True)]}
    raise ValueError(kind)


def leaves(tree: Tree, value: Any) -> Iterator[Any]:
    """The leaves of a value that is nested like a tree, in order.

    Raises:
        DataError: it is nested otherwise.

    >>> list(leaves({"tuple": [None, {"dict": [["a", None]]}]}, (1, {"a": 2})))
    [1, 2]
    """
    if tree is None:
        yield value
        return
    ((kind, parts),) = tree.items()
    fits = isinstance(value, Mapping) if kind == "dict" else isinstance(value, tuple | list)
    if not fits or len(value) != len(parts):
        raise DataError(
            f"A {type(value).__name__} came where the exported program takes a {kind} of "
            f"{len(parts)}; give its inputs as it was exported."
        )
    for part, child in zip(parts, value, strict=True):
        own, below = (value.get(part[0]), part[1]) if kind == "dict" else (child, part)
        yield from leaves(below, own)


def count(tree: Tree) -> int:
    """How many leaves a tree has."""
    if tree is None:
        return 1
    ((kind, parts),) = tree.items()
    return sum(count(part[1] if kind == "dict" else part) for part in parts)


def nested(tree: Tree, values: Sequence[Any]) -> Any:
    """Leaves in the places that a tree has for them.

    >>> nested({"dict": [["a", None], ["b", {"tuple": [None, None]}]]}, [1, 2, 3])
    {'a': 1, 'b': (2, 3)}
    """
    return _nested(tree, iter(values))


def _nested(tree: Tree, values: Iterator[Any]) -> Any:
    if tree is None:
        return next(values)
    ((kind, parts),) = tree.items()
    if kind == "dict":
        return {key: _nested(part, values) for key, part in parts}
    found = [_nested(part, values) for part in parts]
    return tuple(found) if kind == "tuple" else found
