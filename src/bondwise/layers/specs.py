"""Empty layers from what a checkpoint says of them."""

from collections.abc import Mapping
from typing import Any

import torch

from bondwise.errors import ShapeError
from bondwise.layers.entries import Columns, Dense, Entries, Rows
from bondwise.layers.hosts.registry import hosts
from bondwise.layers.module import TensorLayer
from bondwise.layers.networks import Cores
from bondwise.layers.older import modern_spec
from bondwise.layers.terms import Kind, Spec, empty
from bondwise.network.network import parse

_PLACED = {kind.kind: kind for kind in (Columns, Rows, Entries)}


def from_spec(
    spec: Mapping[str, Any], device: Any = None, dtype: torch.dtype | None = None
) -> TensorLayer:
    """An empty layer, to be filled from a checkpoint; specs of schemas 1 and 2 are read too.

    Raises:
        ShapeError: a host or a kind of term that this version does not know.
        KeyError: a part of the spec is missing.

    >>> from bondwise import TensorLinear, lowrank
    >>> from_spec(TensorLinear(lowrank(6, 4, 2)).spec())
    TensorLinear('o a, a i -> (o) (i)', ranks={'a': 2}, stored=20)
    """
    own = modern_spec(spec)
    found = hosts().get(str(own.get("host")))
    if found is None:
        raise ShapeError(f"Host {own.get('host')!r} came; this version knows {', '.join(hosts())}.")
    kinds: list[Kind] = []
    for term in own["terms"]:
        kinds.append(_kind(term, kinds[0].shape if kinds else None))
    terms = [empty(kind, device, dtype) for kind in kinds]
    return found.layer.from_spec(own, terms, device, dtype)


def _kind(spec: Spec, shape: tuple[int, int] | None) -> Kind:
    """The kind of a term; the shape is that of the terms before, where the spec has none."""
    if spec["kind"] not in (Cores.kind, Dense.kind, *_PLACED):
        known = ", ".join((Cores.kind, Dense.kind, *_PLACED))
        raise ShapeError(f"A term {spec['kind']!r} came; this version knows {known}.")
    if spec["kind"] == Cores.kind:
        return Cores(parse(spec["network"], **spec["sizes"]), tuple(spec["pinned"]))
    out, inp = (int(size) for size in spec.get("shape") or shape or ())
    if spec["kind"] == Dense.kind:
        return Dense((out, inp))
    return _PLACED[spec["kind"]](int(spec["count"]), (out, inp))
