"""Specs and state dicts of schemas 1 and 2, as those of today.

Until then pivots and the positions of what stood beside a network were tensors of their own
(``pivots_1``, ``remainder_at``), that beside it was named ``remainder``, and layers could share a
core, which was saved under the name of one of them.
"""

from collections.abc import Mapping, MutableMapping, Sequence
from typing import Any

from torch import Tensor

from bondwise.errors import ShapeError
from bondwise.layers import places
from bondwise.layers.terms import Kind, Spec

HOSTS = {"Linear": "linear", "Conv1D": "conv1d"}


def is_old(spec: Mapping[str, Any]) -> bool:
    """Whether a spec is one of schema 1 or 2."""
    return "terms" not in spec


def modern_spec(spec: Mapping[str, Any]) -> Spec:
    """A spec as it is written today; one of today as it is.

    Raises:
        ShapeError: what it says of shared cores is no table.

    >>> modern_spec({"kind": "linear", "network": "o a, a i -> (o) (i)", "pinned": None,
    ...              "sizes": {"o": 2, "a": 1, "i": 2}, "bias": True, "origin": "Conv1D"})["host"]
    'conv1d'
    """
    if not is_old(spec):
        return dict(spec)
    if not isinstance(spec.get("shared", {}), Mapping):
        raise ShapeError(f"shared={spec['shared']!r} came; it names a layer for each shared core.")
    net = {"kind": "network", "network": spec["network"], "sizes": spec["sizes"]}
    terms: list[Spec] = [net | {"pinned": spec["pinned"] or [None] * _cores(spec)}]
    if "remainder" in spec:
        terms.append(dict(spec["remainder"]))
    host = HOSTS.get(str(spec.get("origin")), spec["kind"])
    others = ("bias", "padding_idx", "zero_padding")
    return {"host": host, "terms": terms} | {key: spec[key] for key in others if key in spec}


def modern(state_dict: MutableMapping[str, Any], prefix: str, kinds: Sequence[Kind]) -> None:
    """Bring the tensors of one layer to the names of today, in place."""
    pivots = (state_dict.pop(f"{prefix}pivots_{k}", None) for k in range(len(kinds[0].names)))
    found: list[Tensor] = [own for own in pivots if own is not None]
    at = state_dict.pop(f"{prefix}remainder_at", None)
    if f"{prefix}remainder" in state_dict:
        state_dict[f"{prefix}t1_entries"] = state_dict.pop(f"{prefix}remainder")
    if at is not None and len(kinds) > 1:
        found += kinds[1].stored((at.long(),))
    if found:
        state_dict[f"{prefix}_extra_state"] = places.packed(found)


def names(path: str, spec: Mapping[str, Any]) -> dict[str, str]:
    """Where a file of schema 1 or 2 has each tensor of a layer, its bias aside."""
    shared, pinned = spec.get("shared", {}), spec["pinned"] or ()
    beside = ("remainder", "remainder_at") if "remainder" in spec else ()
    found = {name: f"{path}.{name}" for name in beside}
    for k in range(_cores(spec)):
        owner = str(shared.get(str(k), path))
        found[f"core_{k}"] = f"{owner}.core_{k}"
        if any(pinned[k : k + 1]):
            found[f"pivots_{k}"] = f"{owner}.pivots_{k}"
    return found


def _cores(spec: Mapping[str, Any]) -> int:
    return str(spec["network"]).split("->")[0].count(",") + 1
