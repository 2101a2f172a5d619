"""Which weights belong together: blocks along the depth, kinds across them."""

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import PurePath
from typing import Any

Report = Mapping[str, Any]
"""What `result.report()` returns and `report.json` holds."""

Weight = Mapping[str, Any]
"""One entry of a report's `weights`."""

LONG = 18
"""Characters of a label at most."""

_NUMBER = re.compile(r"(?<![^.])\d+(?![^.])")


def title(report: Report) -> str:
    """The model's name: what the report calls it, else the last part of a path.

    >>> title({"source": "/data/models/smollm2.gguf"}), title({"source": "org/name"})
    ('smollm2.gguf', 'org/name')
    >>> title({"source": "/cache/models--org--name/snapshots/6b1"})
    'org/name'
    """
    source = PurePath(str(report["source"]))
    cached = next((part for part in source.parts if part.startswith("models--")), "")
    plain = source.name if source.is_absolute() else str(report["source"])
    return str(report.get("name") or cached.removeprefix("models--").replace("--", "/") or plain)


def template(name: str) -> str:
    """The name with its numbers starred, equal for the same weight of every block.

    >>> template("model.layers.12.mlp.up_proj"), template("fc1")
    ('model.layers.*.mlp.up_proj', 'fc1')
    """
    return _NUMBER.sub("*", name)


def leaf(weight: Weight) -> str:
    """The name inside its block; the whole name where there is no block.

    >>> leaf({"name": "layers.3.mlp.up", "block": "layers.3"}), leaf({"name": "head", "block": ""})
    ('mlp.up', 'head')
    """
    name, block = str(weight["name"]), str(weight.get("block") or "")
    if name == block:
        return "weight"
    return template(name.removeprefix(f"{block}.") if block else name)


def changed(weights: Iterable[Weight]) -> list[Weight]:
    """The weights that become networks."""
    return [weight for weight in weights if weight["action"] == "tensorize"]


def left(weights: Iterable[Weight]) -> list[Weight]:
    """The weights that stay as they are."""
    return [weight for weight in weights if weight["action"] != "tensorize"]


def labels(weights: Sequence[Weight]) -> dict[str, str]:
    """A short label for each leaf: its shortest ending that no other leaf shares.

    >>> block = [{"name": n, "block": ""} for n in ("self_attn.q_proj", "out.dense", "mid.dense")]
    >>> labels(block)
    {'self_attn.q_proj': 'q', 'out.dense': 'out.dense', 'mid.dense': 'mid.dense'}
    """
    leaves = dict.fromkeys(leaf(weight) for weight in weights)
    short = {name: _shortest(name, leaves).removesuffix("_proj") or name for name in leaves}
    clear = len({cut(text, LONG) for text in short.values()}) == len(short)
    return {name: cut(text, LONG) if clear else text for name, text in short.items()}


def cut(text: str, room: int) -> str:
    """The text, its end dropped where it is too long.

    >>> cut("intermediate.dense", 10)
    'intermed..'
    """
    return text if len(text) <= room else text[: room - 2].rstrip() + ".."


def _shortest(name: str, others: Iterable[str]) -> str:
    parts = name.split(".")
    for k in range(len(parts) - 1, 0, -1):
        ending = ".".join(parts[k:])
        if sum(f".{other}".endswith(f".{ending}") for other in others) == 1:
            return ending
    return name


def blocks(weights: Sequence[Weight]) -> dict[str, list[Weight]]:
    """The blocks in the order of the model, each with the weights that are networks in some block.

    A kind that is a network in one block and left alone in another shows up in both.
    """
    kinds = {leaf(weight) for weight in changed(weights)}
    found: dict[str, list[Weight]] = {}
    for weight in weights:
        if leaf(weight) in kinds:
            found.setdefault(str(weight.get("block") or "other"), []).append(weight)
    return found


def becomes(weight: Weight) -> str:
    """Format and ranks, as in `lowrank 224`."""
    if weight["action"] != "tensorize":
        return "left alone"
    ranks = ",".join(str(rank) for rank in (weight.get("ranks") or {}).values())
    return f"{weight.get('format') or 'network'} {ranks}".strip()


def kept(weight: Weight) -> float | None:
    """Fraction of the weight's numbers that is still stored."""
    return weight["after"] / weight["before"] if weight["before"] else None


def shape(weight: Weight) -> str:
    """Out x in, or however many axes there are."""
    return "x".join(str(n) for n in weight["shape"])
