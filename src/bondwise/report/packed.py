"""The data of a reading: what is asked of it, and how the page carries it, nothing twice."""

import json
from base64 import b64decode, b64encode
from collections.abc import Iterable, Mapping, Sequence
from math import isfinite
from string import ascii_lowercase, ascii_uppercase, digits
from typing import Any

import numpy as np

from bondwise.compute.stack import cheapest_order
from bondwise.draw.diagram import svg
from bondwise.draw.stack_diagram import stack_svg
from bondwise.network.network import Network, parse
from bondwise.report.markup import Markup
from bondwise.report.page import inert
from bondwise.report.units import Number

SHADES = ascii_uppercase + ascii_lowercase + digits + "+/"
"""64 shades of a value, faint to strong, a letter each."""

SEEN = 3
"""Digits that a reader can use."""

WHOLE = 1e15  # below it, a float without a fraction is written as an integer


def bonds_of(layer: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The bonds of a layer that were read."""
    return list(layer.get("bonds") or [])


def null_names(layers: Iterable[Mapping[str, Any]]) -> list[str]:
    """All nulls, the one that applies to most bonds first."""
    count: dict[str, int] = {}
    for bond in (bond for layer in layers for bond in layer.get("bonds") or []):
        for null in bond.get("nulls") or []:
            count[null["name"]] = count.get(null["name"], 0) + (distance(null) is not None)
    return sorted(count, key=lambda name: -count[name])


def distance(null: Mapping[str, Any] | None) -> Number | None:
    """How far a bond is from a null; None where that was not measured or means nothing."""
    far = null.get("distance") if null and null.get("applies", True) else None
    return far if far is not None and isfinite(far) else None


def null_of(bond: Mapping[str, Any], name: str) -> Mapping[str, Any] | None:
    """A bond's null of that name."""
    return next((null for null in bond.get("nulls") or [] if null["name"] == name), None)


def packed(value: Any) -> Markup:
    r"""Plain data as JSON for a script element; what is not finite is null.

    >>> packed({"values": [0.123456, float("nan"), 3], "name": "<a>"})
    '{"values":[0.123,null,3],"name":"\\u003ca\\u003e"}'
    """
    text = json.dumps(rounded(value), ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return inert(text)


def rounded(value: Any) -> Any:
    """The same plain data with three digits in each fraction.

    >>> rounded({"a": (1234.56, 0.00012345, 7, True)})
    {'a': [1230, 0.000123, 7, True]}
    """
    if isinstance(value, float):
        return rounded([value])[0]
    if isinstance(value, Mapping):
        return {key: rounded(entry) for key, entry in value.items()}
    if not isinstance(value, (list, tuple)):
        return value
    # by far most of a page is numbers in lists, so they are not worth a call each
    short = [float(f"{v:.{SEEN}g}") if isinstance(v, float) else v for v in value]
    return [
        (int(v) if v.is_integer() and abs(v) < WHOLE else v if isfinite(v) else None)
        if isinstance(v, float)
        else (v if v is None or isinstance(v, (int, str)) else rounded(v))
        for v in short
    ]


def corpus(reading: Mapping[str, Any]) -> dict[str, Any]:
    """The texts of the tokens, and where each stands, as base64 of two or four bytes a token.

    >>> corpus({"corpus": {"pieces": ["a", "b"], "ids": [0, 1], "windows": 1, "length": 2}})
    {'pieces': ['a', 'b'], 'ids': 'AAABAA==', 'bytes': 2, 'length': 2}
    """
    given = reading.get("corpus") or {}
    pieces, ids = given.get("pieces") or [], given.get("ids")
    width = 2 if len(pieces) <= 1 << 16 else 4
    array = np.asarray([] if ids is None else ids, dtype=f"<u{width}")
    return {
        "pieces": pieces,
        "ids": b64encode(array.tobytes()).decode(),
        "bytes": width,
        "length": given.get("length") or max(len(array), 1),
    }


class Pictures:
    """Pictures of networks, each stored once however many layers share it."""

    def __init__(self) -> None:
        self.known: dict[str, int] = {}

    def add(self, picture: str) -> int:
        """The number of a picture."""
        return self.known.setdefault(picture, len(self.known))


def layer(given: Mapping[str, Any], pictures: Pictures) -> dict[str, Any]:
    """A layer as its script element holds it: pictures by number, features by column."""
    net = network_of(given)
    drawn: dict[str, Any] = {}
    if net is not None:
        order = list(given.get("sweep") or cheapest_order(net))
        drawn = {
            "sweep": order,
            "diagram": pictures.add(svg(net)),
            "floors": pictures.add(stack_svg(net, order)),
        }
    bonds = [{**bond, "features": columns(bond.get("features") or [])} for bond in bonds_of(given)]
    return {**given, **drawn, "bonds": bonds}


def network_of(given: Mapping[str, Any]) -> Network | None:
    """The network of a layer, None where it is dense."""
    if not given.get("network") or not given.get("tensorized", True):
        return None
    return parse(str(given["network"]), **given["sizes"])


def columns(features: Sequence[Mapping[str, Any]]) -> dict[str, list[Any]]:
    """Features as a list for each of their fields; what all lack is left out.

    >>> columns([{"index": 5, "skew": 1.5, "stability": None}, {"index": 7, "stability": None}])
    {'index': [5, 7], 'skew': [1.5, None]}
    """
    made = [_feature(feature) for feature in features]
    names = dict.fromkeys(name for feature in made for name in feature)
    table = {name: [feature.get(name) for feature in made] for name in names}
    return {name: column for name, column in table.items() if any(v is not None for v in column)}


def _feature(feature: Mapping[str, Any]) -> dict[str, Any]:
    made = dict(feature)
    for name in ("examples", "lowest", "tokens"):
        if feature.get(name) is not None:
            made[name] = flat(feature[name])
    if feature.get("logits"):
        made["logits"] = {way: flat(pairs) for way, pairs in feature["logits"].items()}
    if feature.get("around"):
        made["around"] = shades(b64decode(feature["around"]))
    return made


def flat(pairs: Iterable[Iterable[Any]]) -> list[Any]:
    """Pairs one after the other, without the brackets.

    >>> flat([[17, 0.5], [3, 0.25]])
    [17, 0.5, 3, 0.25]
    """
    return [entry for pair in pairs for entry in pair]


def shades(values: bytes) -> str:
    """Bytes as letters, one a byte: 64 shades are more than an eye tells apart.

    >>> shades(bytes([0, 128, 255]))
    'Ag/'
    """
    return "".join(SHADES[value >> 2] for value in values)
