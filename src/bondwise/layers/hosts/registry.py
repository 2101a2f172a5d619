"""Which hosts there are: one file each, found by looking into this folder."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from pkgutil import iter_modules
from typing import Any, cast

from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.nn.utils.parametrize import is_parametrized

from bondwise.errors import SelectionError
from bondwise.layers.terms import Term

Modes = tuple[int, ...]


def as_it_is(module: Any, matrix: Tensor) -> Tensor:  # noqa: ARG001
    """`Host.lay` of a weight that is the matrix."""
    return matrix


_NORMED = ("weight_g", "weight_orig")  # what torch keeps in the place of a weight
_STEPS = ("forward", "__call__", "_conv_forward", "_output_padding")  # of what a module computes


@dataclass(frozen=True)
class Host:
    """A kind of module: all that any room needs to know of it.

    Attributes:
        name: in a checkpoint.
        group: what targets call it: "linear", "embedding" or "convolution".
        base: its class, as ``module.Class``, so that it need not be imported.
        layer: the class of ours that stands in its place.
        matrix: the weight that it applies, out x in, without gradient.
        modes: the natural modes of the matrix's rows and columns.
        inputs: from what it is called with, the rows that the matrix meets (*any, in); None where
            it meets none (an embedding).
        lay: a matrix, out x in, as the module's weight lies.
        build: a layer of terms in the place of a module, or of a layer of ours that stands there;
            what is not its weight is copied.
        dense: the module again, its weight multiplied out.
    """

    name: str
    group: str
    base: str
    layer: Any
    matrix: Callable[[Any], Tensor]
    modes: Callable[[Any], tuple[Modes, Modes]]
    inputs: Callable[[Any, tuple[Any, ...], Mapping[str, Any]], Tensor | None]
    build: Callable[[Any, Sequence[Term]], Any]
    dense: Callable[[Any], nn.Module]
    lay: Callable[[Any, Tensor], Tensor] = as_it_is

    def takes(self, module: nn.Module) -> bool:
        """Whether a module is of this kind: of its class, or of one that computes as it does."""
        return self.parent(module) is not None and not self.own_way(module)

    def parent(self, module: nn.Module) -> type[nn.Module] | None:
        """Its class among those that a module derives from."""
        named = ((kind, f"{kind.__module__}.{kind.__qualname__}") for kind in type(module).__mro__)
        return next((kind for kind, name in named if name == self.base), None)

    def own_way(self, module: nn.Module) -> str:
        """Why a module derived from its class does not compute as that; empty where it does."""
        kind, parent = type(module), self.parent(module)
        assert parent is not None
        if any(map(is_lazy, module.parameters(recurse=False))):
            return f"a {kind.__name__} that has met no input yet"
        if is_parametrized(module):
            return "a weight that torch's parametrizations make: remove_parametrizations first"
        own = {n for n, _ in module.named_parameters()} | {n for n, _ in module.named_buffers()}
        if not own.isdisjoint(_NORMED):  # the weight is that of the last call
            return "a weight that torch's old norms or pruning make: remove those first"
        hooked = "_hf_hook" in vars(module)  # accelerate puts its own before that of the class
        steps = [name for name in _STEPS if hasattr(parent, name)]
        other = any(getattr(kind, name) is not getattr(parent, name) for name in steps)
        if other or ("forward" in vars(module) and not hooked):
            return f"a {kind.__name__} with a forward of its own"
        if kind is not parent and own - {"weight", "bias"}:
            return f"a {kind.__name__}, which is more than a {parent.__name__}"
        return ""


@cache
def hosts() -> dict[str, Host]:
    """All hosts, by name."""
    package = import_module("bondwise.layers.hosts")
    names = sorted(found.name for found in iter_modules(package.__path__))
    modules = (import_module(f"{package.__name__}.{n}") for n in names if n != "registry")
    found = [host for m in modules for host in getattr(m, "HOSTS", None) or (m.HOST,)]
    return {host.name: host for host in found}


def find(module: nn.Module) -> Host | None:
    """The host of a dense module, or None."""
    return next((host for host in hosts().values() if host.takes(module)), None)


def built(module: nn.Module, terms: Sequence[Term], host: Host | None = None) -> Any:
    """A layer of terms in the place of a dense module, which stays; hooks go along.

    Args:
        module: a dense module, or a layer of terms that stands for one.
        terms: what its weight becomes.
        host: its host, where it is known.

    Raises:
        SelectionError: no host takes it.
    """
    layer = (host or host_of(module)).build(module, terms)
    _hook(module, layer)
    return layer


def densified(layer: Any, name: str = "the layer") -> nn.Module:
    """The dense module that a layer of terms stands for, with its hooks.

    Raises:
        SelectionError: the layer computes in a way of its own, or its numbers are not finite.
    """
    host = hosts()[layer.host]
    if computes_otherwise(layer):
        raise SelectionError(
            f"{name} is a {type(layer).__name__} with a forward of its own, which a dense layer "
            "would not have; put one of bondwise's own in its place first."
        )
    made = host.dense(layer)
    if not all(bool(own.isfinite().all()) for own in made.parameters()):
        raise SelectionError(
            f"{name} has numbers that are not finite; mend its terms, or load the model again."
        )
    _hook(layer, made)
    return made


def computes_otherwise(layer: Any) -> bool:
    """Whether a layer of terms has a forward that is not its class's in bondwise."""
    theirs: Any = type(layer).forward
    own = "forward" in vars(layer) and "_hf_hook" not in vars(layer)
    return own or theirs is not hosts()[layer.host].layer.forward


_HOOKS = (
    "_forward_pre_hooks",
    "_forward_pre_hooks_with_kwargs",
    "_forward_hooks",
    "_forward_hooks_with_kwargs",
    "_forward_hooks_always_called",
    "_backward_pre_hooks",
    "_backward_hooks",
)


def _hook(source: nn.Module, target: nn.Module) -> None:
    """Give a module the hooks that hang on another around its calls."""
    for name in _HOOKS:
        getattr(target, name).update(getattr(source, name))
    target._is_full_backward_hook = source._is_full_backward_hook  # pyright: ignore[reportPrivateUsage]


def near(module: nn.Module) -> Host | None:
    """The host of a class that a module derives from, or None."""
    return next((host for host in hosts().values() if host.parent(module) is not None), None)


def own_way(module: nn.Module) -> str:
    """Why no host takes a module though it derives from a class that one knows; empty else."""
    host = near(module)
    return "" if host is None else host.own_way(module)


def host_of(module: object, layer: type | None = None) -> Host:
    """The host of a dense module.

    Args:
        module: a dense module.
        layer: the class of ours that is to stand in its place, if only one will do.

    Raises:
        SelectionError: it is of no kind that is known.
    """
    found = find(module) if isinstance(module, nn.Module) else None
    if found is None or (layer is not None and found.layer is not layer):
        fit = [h for h in hosts().values() if layer is None or h.layer is layer]
        known = " or ".join(host.base.removeprefix("torch.").rpartition(".")[2] for host in fit)
        own = own_way(module) if isinstance(module, nn.Module) else ""
        raise SelectionError(
            f"A {type(module).__name__} came, whose weight is not known to be a matrix"
            f"{own and f' ({own})'}; write a {known}."
        )
    return found


def numbers_of(module: nn.Module, layer: type) -> tuple[Host, Tensor]:
    """The host of a dense module for a class of ours, and its matrix, which is here.

    Raises:
        SelectionError: it is of no kind that is known, or on meta.
    """
    host = host_of(module, layer)
    matrix = host.matrix(module)
    if matrix.is_meta:
        raise SelectionError(
            f"A {type(module).__name__} on meta came, without numbers; load its weights first."
        )
    return host, matrix


def rows_of(module: nn.Module) -> Callable[[tuple[Any, ...], Mapping[str, Any]], Tensor]:
    """What gives the rows that a module's matrix meets, from the arguments of a call.

    Where no host says so, it is the first argument.

    >>> import torch
    >>> rows_of(nn.Linear(2, 3))((), {"input": torch.ones(5, 2)}).shape
    torch.Size([5, 2])
    """
    host = find(module) or hosts().get(str(getattr(module, "host", "")))

    def rows(args: tuple[Any, ...], named: Mapping[str, Any]) -> Tensor:
        found = None if host is None else host.inputs(module, args, named)
        return first(module, args, named) if found is None else found

    return rows


def first(module: Any, args: tuple[Any, ...], named: Mapping[str, Any]) -> Tensor:  # noqa: ARG001
    """`Host.inputs` of what meets its first argument, however that was given."""
    return args[0] if args else next(iter(named.values()))


def matrix_of(module: nn.Module) -> Tensor:
    """The weight of a module, out x in, without gradient; as it lies where no host knows it."""
    host = find(module)
    return cast(Tensor, module.weight).detach() if host is None else host.matrix(module)
