"""What a checkpoint says about its layers, and the empty layers that are built from it.

A manifest is plain JSON: ``{"schema": 1, "layout": "matrices", "modules": {path: spec}}``.
``schema`` counts the versions of this form, ``layout`` names how a core is stored (2-D, rows and
columns as `bondwise.network.ranks.layouts` fixes them), and each ``spec`` holds the network, its
sizes and the gauge form (which cores carry identity blocks). Schema 2 adds ``"shared": {core:
path}``, a core that another layer has too, and ``"remainder": {"kind": .., "count": ..}``; a model
with neither is still written as schema 1.
"""

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from bondwise.errors import CheckpointError, ShapeError
from bondwise.layers.layers import dense_weight, from_spec
from bondwise.layers.storage import Spec, TensorLayer, share

SCHEMA = 2
LAYOUT = "matrices"

Layers = dict[str, TensorLayer]


def describe(model: nn.Module) -> dict[str, Any]:
    """The manifest of a model: every layer that is a network, under each of its paths."""
    modules: dict[str, Spec] = {}
    owners: dict[int, tuple[str, TensorLayer]] = {}  # by core: the first layer that has it
    for path, module in model.named_modules(remove_duplicate=False):
        if isinstance(module, TensorLayer):
            shared: dict[str, str] = {}
            for k, core in enumerate(module.matrices()):
                owner, layer = owners.setdefault(id(core), (path, module))
                if layer is not module:
                    shared[str(k)] = owner
            modules[path] = module.spec() | ({"shared": shared} if shared else {})
    new = any({"shared", "remainder"} & spec.keys() for spec in modules.values())
    return {"schema": SCHEMA if new else 1, "layout": LAYOUT, "modules": modules}


def read_specs(manifest: Any) -> dict[str, Spec]:
    """The specs in a manifest, once its version and form are known to be ours.

    Raises:
        CheckpointError: written by a later version, or no manifest at all.
    """
    if not isinstance(manifest, Mapping) or not isinstance(manifest.get("schema"), int):
        raise CheckpointError(
            f"A manifest without a schema version came ({str(manifest)[:60]}); "
            "it must be {'schema': 1, 'modules': {..}}, as bondwise.save writes it."
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
    _share(specs, layers)
    for path, place in places.items():
        parent, _, name = place.rpartition(".")
        setattr(model.get_submodule(parent), name, layers[path])
    return layers


def _share(specs: Mapping[str, Spec], layers: Layers) -> None:
    groups: dict[tuple[str, int], dict[int, TensorLayer]] = {}
    for path, layer in layers.items():
        shared = specs[path].get("shared", {})
        try:
            owners = [((owner, int(core)), layers[owner]) for core, owner in shared.items()]
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise CheckpointError(
                f"Layer {path!r} shares {shared}, which names no core of a layer that is loaded; "
                "load the checkpoint into the class that was saved."
            ) from error
        for key, owner in owners:
            groups.setdefault(key, {id(owner): owner})[id(layer)] = layer
    for (owner, core), group in groups.items():
        try:
            share(list(group.values()), core)
        except ShapeError as error:
            raise CheckpointError(
                f"What shares a core with {owner!r} does not fit: {error}"
            ) from error


def loosen(layers: Layers, files: Iterable[str | Path]) -> list[tuple[list[TensorLayer], int]]:
    """Leave every shared core with one layer, that under whose name the files have it.

    transformers would fill the others at random, since a shared tensor is saved under one name.

    Returns:
        For every shared core its layers, the one that has it first, and its position: all that
        `bondwise.layers.storage.share` needs to undo this.
    """
    saved, done = _shapes(files), set[int]()
    loose: list[tuple[list[TensorLayer], int]] = []
    for layer in layers.values():
        for core, group in layer.sharing.items():
            if id(group) not in done:
                done.add(id(group))
                held = {id(own) for path, own in layers.items() if f"{path}.core_{core}" in saved}
                order = sorted(group, key=lambda own, held=held: id(own) not in held)
                for other in order[1:]:
                    other.drop_core(core)
                loose.append((order, core))
    return loose


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
    weight = getattr(dense, "weight", None)
    if not isinstance(weight, nn.Parameter) or weight.ndim != 2:
        raise CheckpointError(
            f"The checkpoint has a network at {path!r}, the model a {type(dense).__name__}; "
            "load it into the class that was saved."
        )
    try:
        layer = from_spec(spec, device=weight.device, dtype=weight.dtype)
    except (KeyError, TypeError, ValueError, AttributeError, RuntimeError) as error:
        missing = isinstance(error, KeyError)
        what = f"{error.args[0]!r} is missing" if missing else " ".join(str(error).split())
        raise CheckpointError(f"The spec of layer {path!r} cannot be read: {what}") from error
    if layer.network.shape != tuple(dense_weight(dense).shape):
        raise CheckpointError(
            f"Layer {path!r} is {layer.network.shape} (out, in) in the checkpoint and "
            f"{tuple(dense_weight(dense).shape)} in the model; load it into one of those sizes."
        )
    return layer


def check_tensors(files: Iterable[str | Path], layers: Layers) -> None:
    """See from the headers alone that every layer has its tensors, in the right shapes.

    transformers only warns of a missing tensor and leaves what memory held.

    Raises:
        CheckpointError: a file that cannot be read, a tensor that is missing or has another shape.
    """
    shapes = _shapes(files)
    renamed = {key.rpartition(".")[0] for key in shapes if key.endswith(".core_0")} - set(layers)
    unseen: list[str] = []
    states = {path: _state(path, layer) for path, layer in layers.items()}
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


def _state(path: str, layer: TensorLayer) -> dict[str, Tensor]:
    return {f"{path}.{name}": t for name, t in layer.state_dict(keep_vars=True).items()}


def _check_tensor(name: str, tensor: Tensor, saved: Mapping[str, tuple[int, ...]]) -> None:
    if not saved:
        raise CheckpointError(f"The checkpoint lacks {name!r}; copy or save it again.")
    for under, shape in saved.items():
        if shape != tuple(tensor.shape):
            raise CheckpointError(
                f"The checkpoint has {under!r} of shape {shape}, its manifest says "
                f"{tuple(tensor.shape)}; copy or save it again."
            )


def _shapes(files: Iterable[str | Path]) -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {}
    for file in files:
        try:
            with safe_open(str(file), framework="pt") as opened:
                keys = opened.keys()
                shapes |= {key: tuple(opened.get_slice(key).get_shape()) for key in keys}
        except (SafetensorError, OSError) as error:
            raise CheckpointError(
                f"{Path(file).name} is truncated or corrupt ({error}); copy or save it again."
            ) from error
    return shapes
