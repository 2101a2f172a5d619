"""What a run is, as a short note: another run does not go on with its files."""

import json
from collections.abc import Iterable, Mapping
from hashlib import sha256
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

MARK = "sha256:"  # what a digest begins with


def digest(thing: Any) -> str:
    """A short name for a thing, by all that is in it.

    Of a model and of a tensor names, shapes, dtypes and every value; of a path the files that are
    there; mappings and sequences in their order; whatever else as JSON. Of a tensor whose parts lie
    in several processes the part that is here. 2 GB take about a second.

    >>> digest({"a": torch.zeros(2)}) == digest({"a": torch.zeros(2)})
    True
    >>> digest({"a": torch.zeros(2)}) == digest({"a": torch.zeros(2).double()})
    False
    """
    found = sha256()
    for part in _parts(thing):
        found.update(part)
    return f"{MARK}{found.hexdigest()[:32]}"


def identity(choices: Mapping[str, Any], **made_of: Any) -> dict[str, Any]:
    """What a run is, as JSON: its choices, and a digest of each thing that it is made of.

    >>> identity({"rate": 0.1}, data=[1, 2])
    {'rate': 0.1, 'data': 'sha256:...'}
    """
    return {**choices, **{name: digest(thing) for name, thing in made_of.items()}}


def difference(one: Mapping[str, Any], two: Mapping[str, Any]) -> str:
    """What of two identities differs, in words; empty where nothing does.

    >>> difference({"rate": 0.1, "seed": 0}, {"rate": 0.2, "seed": 0})
    'rate 0.1, not 0.2'
    >>> difference(identity({}, data=[1]), identity({}, data=[2]))
    'other data'
    """
    names = [name for name in {**one, **two} if one.get(name) != two.get(name)]
    things = [n for n in names if any(str(of.get(n)).startswith(MARK) for of in (one, two))]
    said = ["other data" if name == "data" else f"another {name}" for name in things]
    chosen = [name for name in names if name not in things]
    said += (f"{n} {json.dumps(one.get(n))}, not {json.dumps(two.get(n))}" for n in chosen)
    return "; ".join(said)


def _parts(thing: Any) -> Iterable[Any]:
    """The bytes of a thing, each part with its kind and size before it."""
    if isinstance(thing, nn.Module):
        yield type(thing).__name__.encode()
        yield from _parts(thing.state_dict())
    elif isinstance(thing, Tensor):
        yield from _of_tensor(thing)
    elif isinstance(thing, Path):
        yield from _of_files(thing)
    elif isinstance(thing, Mapping):
        own = cast(Mapping[Any, Any], thing)
        yield f"mapping {len(own)}".encode()
        for name, value in own.items():
            yield from _parts(str(name))
            yield from _parts(value)
    elif isinstance(thing, list | tuple):
        own = cast("list[Any]", thing)
        yield f"sequence {len(own)}".encode()
        for value in own:
            yield from _parts(value)
    else:
        text = json.dumps(thing, sort_keys=True, default=lambda other: type(other).__name__)
        yield f"value {len(text)} {text}".encode()


def _of_tensor(tensor: Tensor) -> Iterable[Any]:
    own: Any = getattr(tensor, "to_local", lambda: tensor)()
    if type(own) not in (Tensor, nn.Parameter):  # what stores its numbers in its own way
        own = own.double()
    yield f"tensor {tuple(tensor.shape)} {tensor.dtype}".encode()
    yield own.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()


def _of_files(path: Path) -> Iterable[Any]:
    files = sorted(file for file in path.rglob("*") if file.is_file()) if path.is_dir() else [path]
    yield f"files {len(files)}".encode()
    for file in files:
        yield f"{file.relative_to(path)} {file.stat().st_size}".encode()
        with file.open("rb") as stream:
            while block := stream.read(2**20):
                yield block
