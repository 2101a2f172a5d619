"""What a checkpoint says about its layers, and the empty layers that are built from it.

A manifest is plain JSON: ``{"schema": 3, "layout": "matrices", "modules": {path: spec}}``.
``schema`` counts the versions of this form, ``layout`` names how a core is stored (2-D, rows and
columns as `bondwise.network.ranks.layouts` fixes them), and each ``spec`` holds the host of a layer
and its terms: a network with its sizes and pins, or entries and how many. Positions are in the
tensor file, as extra state. Schemas 1 and 2 are read (`bondwise.layers.older`).
"""

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from safetensors import safe_open
from torch import Tensor, nn

from bondwise.checkpoint.headers import headers
from bondwise.errors import CheckpointError, ShapeError
from bondwise.layers.hosts.registry import find
from bondwise.layers.module import TensorLayer, tensor_layers
from bondwise.layers.older import is_old, names
from bondwise.layers.specs import from_spec
from bondwise.layers.terms import Spec

SCHEMA = 3
LAYOUT = "matrices"

Layers = dict[str, TensorLayer]


def describe(model: nn.Module) -> dict[str, Any]:
    """The manifest of a model: every layer of terms, under each of its paths."""
    modules = {path: layer.spec() for path, layer in tensor_layers(model)}
    return {"schema": SCHEMA, "layout": LAYOUT, "modules": modules}


def read_specs(manifest: Any) -> dict[str, Spec]:
    """The specs in a manifest, once its version and form are known to be ours.

    Raises:
        CheckpointError: written by a later version, or no manifest at all.
    """
    if not isinstance(manifest, Mapping) or not isinstance(manifest.get("schema"), int):
        raise CheckpointError(
            f"A manifest without a schema version came ({str(manifest)[:60]}); "
            "it must be {'schema': 3, 'modules': {..}}, as bondwise.save writes it."
        )
    if manifest["schema"] > SCHEMA:
        raise CheckpointError(
            f"The checkpoint has schema version {manifest['schema']}, this bondwise reads up to "
            f"{SCHEMA}; upgrade with: pip install -U bondwise."
        )
    if manifest.get("layout", LAYOUT) != LAYOUT:
        raise CheckpointError(
            f"The checkpoint lays its cores out as {manifest['layout']!r}, this bondwise reads "
            f"{LAYOUT!r}; upgrade with: pip install -U bondwise."
        )
    specs = manifest.get("modules")
    if not isinstance(specs, Mapping) or not all(isinstance(s, Mapping) for s in specs.values()):
        raise CheckpointError("The manifest has no table of modules; save the model again.")
    return {path: dict(spec) for path, spec in specs.items()}


def swap_in(
    model: nn.Module,
    specs: Mapping[str, Spec],
    prefix: str = "",
    whole: bool = True,
    renamed: Callable[[str], str] = str,
) -> Layers:
    """Put empty layers in the place of dense ones; all are built before the first is placed.

    Args:
        model: changed in place, on whichever device it is (meta included).
        specs: by path, as the checkpoint names them.
        prefix: of the backbone in a model with a head; paths are looked for with and without it.
        whole: every spec must have its place; otherwise what the model lacks is passed over, as
            its dense tensors would be.
        renamed: what the model calls a tensor that the checkpoint has under another name.

    Returns:
        The new layers, by the path that the checkpoint has for them.

    Raises:
        CheckpointError: a path or shape that the model lacks, or a spec that makes no layer.
    """
    places: dict[str, str] = {}
    for path in specs:
        place = _place(model, path, prefix, renamed)
        if place is not None:
            places[path] = place
        elif whole:
            raise CheckpointError(
                f"The checkpoint has a layer {path!r}, which {type(model).__name__} lacks; "
                "load it into the class that was saved."
            )
    built: dict[int, TensorLayer] = {}  # by the dense module: what was shared stays shared
    layers: Layers = {}
    for path, place in places.items():
        dense = model.get_submodule(place)
        if id(dense) not in built:
            built[id(dense)] = _build(path, specs[path], dense)
        layers[path] = built[id(dense)]
    for path, place in places.items():
        parent, _, name = place.rpartition(".")
        setattr(model.get_submodule(parent), name, layers[path])
    return layers


def _place(model: nn.Module, path: str, prefix: str, renamed: Callable[[str], str]) -> str | None:
    """Where the model has this path: as it stands, renamed, or with the prefix dropped or added."""
    moved = renamed(f"{path}.weight").removesuffix(".weight")
    for place in (path, moved, path.removeprefix(f"{prefix}."), f"{prefix}.{path}"):
        try:
            model.get_submodule(place)
        except AttributeError:
            continue
        return place
    return None


def _build(path: str, spec: Spec, dense: nn.Module) -> TensorLayer:
    host = find(dense)
    if host is None:
        raise CheckpointError(
            f"The checkpoint has a network at {path!r}, the model a {type(dense).__name__}; "
            "load it into the class that was saved."
        )
    try:
        weight = host.matrix(dense)
        layer = from_spec(spec, device=weight.device, dtype=weight.dtype)
    except (KeyError, TypeError, ValueError, AttributeError, RuntimeError) as error:
        missing = isinstance(error, KeyError)
        what = f"{error.args[0]!r} is missing" if missing else " ".join(str(error).split())
        raise CheckpointError(f"The spec of layer {path!r} cannot be read: {what}") from error
    if layer.host != host.name or layer.shape != tuple(weight.shape):
        raise CheckpointError(
            f"Layer {path!r} is {layer.host} {layer.shape} (out, in) in the checkpoint and "
            f"{host.name} {tuple(weight.shape)} in the model; load it into one of those sizes."
        )
    layer.hides_positions = is_old(spec)
    return layer


def check_tensors(files: Iterable[str | Path], layers: Layers, specs: Mapping[str, Spec]) -> None:
    """See from the headers alone that every layer has its tensors, in the right shapes.

    transformers only warns of a missing tensor and leaves what memory held.

    Raises:
        CheckpointError: a file that cannot be read, a tensor that is missing or has another shape.
    """
    shapes = {name: header.shape for name, header in headers(files).items()}
    renamed = {key.rpartition(".")[0] for key in shapes if key.endswith(".core_0")} - set(layers)
    unseen: list[str] = []
    states = {path: _state(path, layer, specs[path]) for path, layer in layers.items()}
    names: dict[
        int, list[str]
    ] = {}  # a shared tensor has one in every layer, and is saved under one
    for state in states.values():
        for name, tensor in state.items():
            names.setdefault(id(tensor), []).append(name)
    for path, state in states.items():
        if not state.keys() & shapes.keys():
            unseen.append(path)
            continue
        for name, tensor in state.items():
            _check_tensor(name, tensor, {n: shapes[n] for n in names[id(tensor)] if n in shapes})
    # what was shared is saved once; a few classes save under other names than their modules have,
    # and then as many strangers are there
    seen = {id(layer) for path, layer in layers.items() if path not in unseen}
    lost = {id(layers[path]): path for path in unseen if id(layers[path]) not in seen}
    if len(lost) > len(renamed):
        path = next(iter(lost.values()))
        raise CheckpointError(f"The checkpoint lacks '{path}.core_0'; copy or save it again.")


def _state(path: str, layer: TensorLayer, spec: Spec) -> dict[str, Tensor]:
    state = {f"{path}.{name}": t for name, t in layer.state_dict(keep_vars=True).items()}
    if not is_old(spec):
        return state
    own = {f"{path}.{name}": name for name in layer.state_dict()}
    stays = set(names(path, spec).values()) | {f"{path}.{name}" for name in ("bias", "weight")}
    return {name: tensor for name, tensor in state.items() if name in own and name in stays}


def read_old(
    files: Iterable[str | Path], layers: Layers, specs: Mapping[str, Spec]
) -> dict[str, Tensor]:
    """Fill layers of schemas 1 and 2 with what files have for them, under the names of then.

    Returns:
        All that was read, by the layer's path and the name of then.

    Raises:
        CheckpointError: a tensor is missing, positions are wrong, or a layer has no memory.
    """
    old = {path: names(path, spec) for path, spec in specs.items() if is_old(spec)}
    found = headers(files) if old else {}
    read = dict[str, Tensor]()
    for path in old.keys() & layers.keys():
        layer = layers[path]
        for name, key in old[path].items():
            if key not in found:
                raise CheckpointError(
                    f"The checkpoint lacks {key!r} of layer {path!r}; copy or save it again."
                )
            with safe_open(str(found[key].file), framework="pt") as opened:
                read[f"{path}.{name}"] = opened.get_tensor(key)
        state = {name: read[f"{path}.{name}"] for name in old[path]}
        layer.hides_positions = False
        if layer.like.is_meta and len(layer.parts) + len(specs[path].get("shared", {})) > 1:
            raise CheckpointError(
                f"{path} is on the disk by device_map, in a checkpoint of an older form; load it "
                "whole and save it again first."
            )
        try:
            layer.load_state_dict(state, strict=False)
        except (CheckpointError, RuntimeError) as error:
            reason = " ".join(str(error.__cause__ or error).split())
            raise CheckpointError(f"Layer {path!r} cannot be read: {reason}") from error
    return read


def check_positions(files: Iterable[str | Path], layers: Layers) -> None:
    """See that the positions in some files are right, before anything is read.

    Raises:
        CheckpointError: they are not, with the layer's path; that some are missing is no matter.
    """
    _positions(files, layers, lambda layer, state: layer.positions(state))


def read_positions(files: Iterable[str | Path], layers: Layers) -> None:
    """Give positions to layers that got none: what is on the disk by device_map is never read.

    Raises:
        CheckpointError: they are not there, or wrong.
    """
    waiting = {path: layer for path, layer in layers.items() if not layer.placed}
    _positions(files, waiting, lambda layer, state: layer.set_extra_state(state))
    for path, layer in waiting.items():
        if not layer.placed:
            raise CheckpointError(
                f"The checkpoint lacks '{path}._extra_state'; copy or save it again."
            )


def _positions(
    files: Iterable[str | Path], layers: Layers, use: Callable[[TensorLayer, Tensor], object]
) -> None:
    named = {f"{path}._extra_state": path for path in layers}
    for file in files if named else ():
        with safe_open(str(file), framework="pt") as opened:
            found = {key: opened.get_tensor(key) for key in named.keys() & set(opened.keys())}
        for key, state in found.items():
            path = named[key]
            try:
                use(layers[path], state)
            except ShapeError as error:
                raise CheckpointError(f"Layer {path!r}: {error}") from error


def _check_tensor(name: str, tensor: Tensor, saved: Mapping[str, tuple[int, ...]]) -> None:
    if not saved:
        raise CheckpointError(f"The checkpoint lacks {name!r}; copy or save it again.")
    for under, shape in saved.items():
        if shape != tuple(tensor.shape):
            raise CheckpointError(
                f"The checkpoint has {under!r} of shape {shape}, its manifest says "
                f"{tuple(tensor.shape)}; copy or save it again."
            )
