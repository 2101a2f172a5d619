"""What is measured of a dense model: every kind of weight in formats that may be chosen for it.

A choice needs the seconds of candidates that nobody has built. So of each distinct weight a few are
made with random numbers, on which speed does not depend, and prepared as they would be.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from math import prod
from typing import Any

import torch
from torch import Tensor, nn

from bondwise.choose.kinds.kernels import Moves
from bondwise.choose.scout import heads_of
from bondwise.choose.seconds.drawn import drawn
from bondwise.choose.seconds.place import Place
from bondwise.choose.seconds.rungs import rungs
from bondwise.choose.select import Patterns, select
from bondwise.layers.convolution import TensorConv
from bondwise.layers.hosts.convolution import convolves, geometry_of
from bondwise.layers.module import TensorLayer
from bondwise.layers.prepare.contest import windows
from bondwise.layers.prepare.measurement import Measurement, measured
from bondwise.layers.prepare.met import meet
from bondwise.layers.prepare.prepare import prepare
from bondwise.progress import Progress, silent

Shapes = tuple[tuple[int, ...], ...]


@dataclass(frozen=True, eq=False)
class Site:
    """A dense layer that is measured, for all that are like it.

    Attributes:
        module: the layer.
        place: where it stands.
        rows: for how many rows; none for a convolution.
        inputs: shapes of a convolution's inputs, one for each number of samples.
        heads: that its rows are; 0 for none.
    """

    module: nn.Module
    place: Place
    rows: tuple[int, ...]
    inputs: Shapes
    heads: int


def ladder(
    model: nn.Module,
    rows: Sequence[int] = (1, 256),
    example: Any = None,
    targets: Patterns = "auto",
    progress: Progress = silent,
) -> list[Measurement]:
    """Measurements of every distinct weight of a dense model that may become a network.

    Args:
        model: it is only looked at.
        rows: for how many rows linear layers are measured, where there is no example.
        example: an input of the model, as `bondwise.prepare` takes it. Convolutions, and linear
            layers in a model of convolutions, are measured for the inputs that it gives them, and
            linear layers elsewhere all for the most rows that one of them meets.
        targets: see `bondwise.plan_model`.
        progress: called with ("ladder", done, total).

    Raises:
        SelectionError: no weight may.
        DataError: the model does not run on the example.

    >>> found = ladder(nn.Sequential(nn.Linear(16, 16)), rows=(1,))
    >>> {entry.rows for entry in found}, min(entry.network is None for entry in found)
    ({1}, False)
    """
    sites = _sites(model, rows, example, targets)
    todo = [(site, terms) for site in sites for terms in rungs(site.place, _bits(site), site.heads)]
    found, done = list[Measurement](), 0
    progress("ladder", 0, len(todo))
    for some in _windows(todo):
        found += _measured(some)
        done += len(some)
        progress("ladder", done, len(todo))
    return found


def _sites(model: nn.Module, rows: Sequence[int], example: Any, targets: Patterns) -> list[Site]:
    """One for all layers that are alike; a layer that the example does not reach is left out."""
    weights, _ = select(model, targets)
    layers = {w.name: model.get_submodule(w.name) for w in weights if w.chosen}
    met: Mapping[str, list[Tensor]] = {}
    if example is not None:
        met = meet(model, layers, example).inputs
    each = {name: _rows(module, met.get(name, [])) for name, module in layers.items()}
    most = max(each.values(), key=sum, default=()) or tuple(rows)
    by_sample = convolves(model)
    found: dict[Any, Site] = {}
    for name, module in layers.items():
        if geometry_of(module) is not None:
            site = _convolution(module, met.get(name, []))
        else:
            own = each[name] if by_sample else most
            site = Site(module, Place.of(module), own or most, (), heads_of(model, name))
        if site is not None:
            found.setdefault((site.place.key, site.rows, site.inputs, site.heads), site)
    return list(found.values())


def _rows(module: nn.Module, inputs: Sequence[Tensor]) -> tuple[int, ...]:
    """How many rows some inputs of a linear layer have; none of a convolution's."""
    if geometry_of(module) is not None:
        return ()
    width = Place.of(module).shape[1]
    return tuple(sorted({x.numel() // width for x in inputs}))


def _convolution(module: nn.Module, inputs: Iterable[Tensor]) -> Site | None:
    """A convolution at its largest input, as a choice counts it."""
    geometry = geometry_of(module)
    assert geometry is not None
    sizes = [(tuple(x.shape[-geometry.axes :]), tuple(x.shape)) for x in inputs]
    if not sizes:
        return None
    largest = max((size for size, _ in sizes), key=prod)
    shapes = tuple(dict.fromkeys(shape for size, shape in sizes if size == largest))
    return Site(module, Place.of(module, Moves(geometry, largest)), (), shapes, 0)


def _bits(site: Site) -> int:
    return torch.finfo(next(site.module.parameters()).dtype).bits


def _windows(todo: Sequence[tuple[Site, Any]]) -> Iterator[list[tuple[Site, Any]]]:
    """Those of one number of rows together, as many as keep a cache busy."""
    by_rows: dict[tuple[int, ...], list[tuple[Site, Any]]] = {}
    for site, terms in todo:
        by_rows.setdefault(site.rows, []).append((site, terms))
    for some in by_rows.values():
        yield from windows(some, lambda own: prod(own[0].place.shape) * _bits(own[0]) // 8)


def _measured(window: Sequence[tuple[Site, Any]]) -> Iterator[Measurement]:
    layers = [drawn(site.module, site.place, terms, k) for k, (site, terms) in enumerate(window)]
    inputs = [site.inputs for site, _ in window]
    model = _Rungs(layers, inputs)
    like = layers[0].like
    example = (like.new_zeros(()),) if any(inputs) else None
    found = prepare(model, example, window[0][0].rows or (1,))
    named = {name: own for name, own in model.named_modules() if isinstance(own, TensorLayer)}
    for entry in measured(named, found.choices):
        if entry.network is None:  # a dense layer stays one, as fast as torch has it
            entry = replace(entry, way="dense", seconds=entry.dense_seconds)
        yield entry


class _Rungs(nn.Module):
    """Layers side by side; each convolution is called with its own inputs."""

    def __init__(self, layers: Sequence[TensorLayer], inputs: Sequence[Shapes]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)
        self.inputs = inputs

    def forward(self, like: Tensor) -> Tensor:
        for layer, shapes in zip(self.layers, self.inputs, strict=True):
            if isinstance(layer, TensorConv):
                for shape in shapes:
                    layer(torch.zeros(shape, dtype=like.dtype, device=like.device))
        return like
