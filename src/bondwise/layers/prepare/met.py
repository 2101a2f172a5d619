"""What the layers of a model are called with: one run of the model on an example."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from torch import Tensor, nn

from bondwise.errors import DataError
from bondwise.layers.linear import TensorLinear
from bondwise.layers.module import TensorLayer
from bondwise.layers.serve.served import version

Group = tuple[str, ...]


@dataclass
class Met:
    """What one run showed.

    Attributes:
        inputs: of each layer by path, without numbers (on meta); none of what a model says that it
            takes, whose sizes say nothing.
        groups: paths of linear layers that met one and the same input, one after the other.
    """

    inputs: dict[str, list[Tensor]] = field(default_factory=dict)
    groups: list[Group] = field(default_factory=list)


def meet(model: nn.Module, layers: Mapping[str, nn.Module], example: Any) -> Met:
    """Run a model on an example; without one on what a Hugging Face model says that it takes.

    Args:
        model: in which the layers are.
        layers: by path.
        example: one tensor, a tuple of arguments, or a dict of named ones; None for the model's
            own ``dummy_inputs``, and where it has none that run, nothing is met.

    Raises:
        DataError: the model does not run on the example.
    """
    given = getattr(model, "dummy_inputs", None) if example is None else example
    if given is None:
        return Met()
    if not isinstance(given, Tensor | Mapping | tuple | list):
        raise DataError(
            f"A {type(example).__name__} came as the example; give one input as the model takes "
            "it: a tensor, a tuple of arguments or a dict of named ones."
        )
    watch = _Watch(layers)
    served = {own: own.served for own in layers.values() if isinstance(own, TensorLayer)}
    try:
        for layer in served:
            layer.served = None  # it may give outputs that lie otherwise than those as built
        run(model, given, watch)
    except Exception as error:  # whatever a model of the user's raises
        if example is None:
            return Met()
        said = (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
        raise DataError(
            f"The model does not run on the example ({said[:200]}); give one input as the model "
            "takes it: a tensor, a tuple of arguments or a dict of named ones."
        ) from error
    finally:
        for layer, own in served.items():
            layer.served = own
    return Met({} if example is None else watch.inputs, watch.joined())


def run(model: nn.Module, given: Any, watch: "_Watch | None" = None) -> Any:
    """The output of a model for an example, as if it were evaluated."""
    trains = [module for module in model.modules() if module.training]
    hooks = watch.hooks() if watch else []
    try:
        for module in trains:
            module.training = False  # not by eval(), which layers heed
        with torch.no_grad():
            if isinstance(given, Mapping):
                return model(**cast("Mapping[str, Any]", given))
            if isinstance(given, tuple | list):
                return model(*cast("Sequence[Any]", given))
            return model(given)
    finally:
        for hook in hooks:
            hook.remove()
        for module in trains:
            module.training = True


class _Watch:
    """Hooks that note inputs, and which linear layers meet the same one in a row."""

    def __init__(self, layers: Mapping[str, nn.Module]) -> None:
        self.layers = layers
        self.inputs: dict[str, list[Tensor]] = {}
        self.runs: list[list[str]] = []  # paths in a row that met the same input
        self.last: tuple[Tensor, int | None] | None = None

    def hooks(self) -> list[Any]:
        return [
            layer.register_forward_pre_hook(self._hook(path), with_kwargs=True)
            for path, layer in self.layers.items()
        ]

    def _hook(self, path: str) -> Callable[..., None]:
        def note(layer: Any, args: tuple[Any, ...], named: Mapping[str, Any]) -> None:
            x = args[0] if args else next(iter(named.values()), None)
            if isinstance(x, Tensor):  # else the layer says what is wrong
                self._note(path, layer, x)

        return note

    def _note(self, path: str, layer: nn.Module, x: Tensor) -> None:
        found = self.inputs.setdefault(path, [])
        like = torch.empty_like(x, device="meta", requires_grad=False)
        if all((o.shape, o.dtype, o.stride()) != (x.shape, x.dtype, like.stride()) for o in found):
            found.append(like)
        if not isinstance(layer, TensorLinear):
            return
        same = self.last is not None and self.last[0] is x and self.last[1] == version(x)
        if same:
            self.runs[-1].append(path)
        else:
            self.runs.append([path])
        self.last = (x, version(x))

    def joined(self) -> list[Group]:
        """Those of two and more, each layer in one of them alone and always with the same."""
        self.last = None
        found = dict.fromkeys(map(tuple, self.runs))
        places: dict[str, int] = {}
        for group in found:
            for path in group:
                places[path] = places.get(path, 0) + 1
        return [
            group
            for group in found
            if len(group) > 1
            and len(set(group)) == len(group)
            and all(places[p] == 1 for p in group)
        ]
