"""Which weights of a model will change, and why the others are left alone."""

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from math import prod

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import ParametrizationList

from bondwise.errors import FitError, SelectionError
from bondwise.flow.doors import check_bare, is_opaque
from bondwise.layers.hosts.registry import find, matrix_of, near, own_way
from bondwise.layers.module import TensorLayer

Patterns = str | Sequence[str]

HEADS = ("lm_head", "embed_out", "output_projection", "classifier", "score", "qa_outputs", "head")
ROUTERS = ("gate", "router", "wg", "shared_expert_gate")
AUTO = "auto"  # every kind of module that a host knows, but embeddings
_NORMED = (".weight_g", ".weight_v", ".weight_orig")  # what they keep in the weight's place
_READ_DIRECTLY = (nn.MultiheadAttention, nn.TransformerEncoderLayer)


@dataclass(frozen=True)
class Weight:
    """One parameter of a model, and whether it may become a network.

    Attributes:
        name: path of its module where that can be tensorized, of the parameter otherwise.
        aliases: further paths of the same module (it is shared, and stays so).
        kind: class of its module.
        shape: (out, in) of a weight that can be tensorized, the parameter's own shape otherwise.
        reason: why it is left alone; empty where it was chosen.
        protected: whether it counts in the budget but stays dense.
        kernel: the sizes of a convolution's; its columns are the inputs of a group times these.
        groups: of a convolution, whose matrices lie below each other.
    """

    name: str
    kind: str
    shape: tuple[int, ...]
    reason: str = ""
    aliases: tuple[str, ...] = ()
    protected: bool = False
    kernel: tuple[int, ...] = ()
    groups: int = 1

    @property
    def chosen(self) -> bool:
        """Whether the patterns chose it."""
        return not self.reason

    @property
    def modes(self) -> tuple[int, int, tuple[int, ...]]:
        """(out, in) of a group, and the kernel."""
        out, inp = self.shape
        return out // self.groups, inp // prod(self.kernel), self.kernel

    @property
    def numbers(self) -> int:
        """Numbers that it stores now."""
        return prod(self.shape)


def select(
    model: nn.Module, targets: Patterns = "auto", ignore: Patterns = ()
) -> tuple[list[Weight], list[str]]:
    """Every parameter of a model, chosen or with the reason why not; and notes for the user.

    A pattern is ``"linear"`` (``nn.Linear`` and ``Conv1D``), ``"convolution"``, ``"embedding"``,
    ``"auto"`` (all but embeddings), a class name, a path or some parts of one in a row
    (``model.layers.0``, ``mlp``, ``q_proj``), a glob, or ``re:`` and a regular expression that is
    searched for in the path. By default the head, tied embeddings and routers are ignored; a target
    that is a full path overrides that.

    Raises:
        SelectionError: a target matches no module of the model, or nothing is left to change.
    """
    check_bare(model)
    targets, ignore = listed(targets), listed(ignore)
    if not targets:
        raise SelectionError("No target came; write at least one, such as 'linear'.")
    paths = _paths(model)
    modules = {names[0]: module for module, names in paths.items()}
    for pattern in targets:
        if not _anywhere(pattern, paths):
            if any(isinstance(module, TensorLayer) for module in paths):
                raise _nothing_left(model, ["already a tensor network"])
            raise SelectionError(
                f"Target {pattern!r} matches nothing in {type(model).__name__}; write auto, "
                f"linear, convolution, embedding, or a path; its weights are in "
                f"{_examples(modules)}."
            )
    unused = [pattern for pattern in ignore if not _anywhere(pattern, paths)]
    owners = _owners(paths)
    inside, adapted = _read_directly(model), _adapted(model)
    weights = [
        _weight(
            name,
            parameter,
            module,
            names,
            _unfit(module, name, parameter, inside)
            or ("an adapter of peft" if adapted.get(module) is False else "")
            or _tied(owners, parameter, name.removesuffix(".weight"))
            or _unwanted(names, module, model, targets, ignore),
        )
        for name, parameter, module, names in _parameters(paths)
    ]
    carrying = [w.name for w in weights if w.chosen and adapted.get(modules[w.name])]
    if carrying:
        raise SelectionError(
            f"{carrying[0]} carries an adapter of peft, which was trained on the weight as it is; "
            "call merge_and_unload() on the peft model first, or ignore such layers."
        )
    if not any(weight.chosen for weight in weights):
        raise _nothing_left(model, [weight.reason for weight in weights])
    return weights, [f"ignore pattern {pattern!r} matches nothing" for pattern in unused]


def _nothing_left(model: nn.Module, reasons: list[str]) -> SelectionError:
    """The reason that says most: what is a network already, then what a target matched."""
    what = f"Nothing in {type(model).__name__} is left to change"
    if "already a tensor network" in reasons:
        return SelectionError(
            f"{what} (it holds tensor networks already); give the dense model, or merge it first."
        )
    matched = [reason for reason in reasons if reason != "no target matches it"]
    why = next((r for r in matched if r != "not a matrix"), next(iter(matched), "no weight"))
    return SelectionError(f"{what} ({why}); name targets that can be.")


def _weight(
    name: str, parameter: Tensor, module: nn.Module, names: list[str], refused: str
) -> Weight:
    kind = type(module).__name__
    if _group(module) is not None and name == f"{names[0]}.weight".removeprefix("."):
        host, shape = find(module), tuple(matrix_of(module).shape)
        assert host is not None
        kernel, groups = host.modes(module)[1][1:], getattr(module, "groups", 1)
        return Weight(
            names[0], kind, shape, refused, tuple(names[1:]), kernel=kernel, groups=groups
        )
    return Weight(name, kind, tuple(parameter.shape), refused)


def matches(pattern: str, path: str, module: nn.Module) -> bool:
    """Whether a pattern means this module.

    >>> layer = nn.Linear(2, 2)
    >>> matches("q_proj", "layers.0.q_proj", layer), matches("re:_proj$", "a.q_proj", layer)
    (True, True)
    """
    if pattern.startswith("re:"):
        return re.search(pattern[3:], path) is not None
    if any(c in pattern for c in "*?["):
        return fnmatchcase(path, pattern)
    group = getattr(near(module), "group", None)
    if type(module).__name__ == pattern or pattern == group:
        return True
    if pattern == AUTO:
        return group not in (None, "embedding")
    return bool(path) and f".{pattern}." in f".{path}."


def _anywhere(pattern: str, paths: dict[nn.Module, list[str]]) -> bool:
    return any(matches(pattern, name, module) for module in paths for name in paths[module])


def listed(patterns: object) -> list[str]:
    """Patterns as a list.

    Raises:
        SelectionError: something else than names, or one that is no regular expression.
    """
    given = [patterns] if isinstance(patterns, str) else patterns
    if not isinstance(given, Sequence) or not all(isinstance(each, str) for each in given):
        raise SelectionError(
            f"Patterns {patterns!r} came; write a name such as 'linear', or a list of names."
        )
    for pattern in given:
        if pattern.startswith("re:"):
            try:
                re.compile(pattern[3:])
            except re.error as error:
                raise SelectionError(
                    f"Pattern {pattern!r} is no regular expression ({error}); write one after re:"
                ) from error
    return list(given)


def _paths(model: nn.Module) -> dict[nn.Module, list[str]]:
    """Every module with all its paths, in order."""
    paths: dict[nn.Module, list[str]] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        paths.setdefault(module, []).append(name)
    return paths


def _parameters(
    paths: dict[nn.Module, list[str]],
) -> Iterator[tuple[str, Tensor, nn.Module, list[str]]]:
    """Every parameter that a module holds itself: its name, and its module with all paths."""
    for module, names in paths.items():
        for own, parameter in module.named_parameters(recurse=False):
            yield f"{names[0]}.{own}".removeprefix("."), parameter, module, names


def _owners(paths: dict[nn.Module, list[str]]) -> dict[tuple[int, ...], list[str]]:
    """Modules (by first path) that hold the same storage."""
    owners: dict[tuple[int, ...], list[str]] = {}
    for name, parameter, _, _ in _parameters(paths):
        owners.setdefault(_storage(parameter), []).append(name)
    return owners


def _storage(parameter: Tensor) -> tuple[int, ...]:
    if is_opaque(parameter) or parameter.layout is not torch.strided:
        return (id(parameter),)
    if parameter.device.type == "meta" or parameter.numel() == 0:
        return (id(parameter),)
    return (parameter.untyped_storage().data_ptr(), int(parameter.storage_offset()))


def _tied(owners: dict[tuple[int, ...], list[str]], parameter: Tensor, path: str) -> str:
    others = [
        name.removesuffix(".weight")
        for name in owners[_storage(parameter)]
        if name.removesuffix(".weight") != path
    ]
    return f"tied with {others[0]}" if others else ""


def _group(module: nn.Module) -> str | None:
    """The group of modules that a host knows; a subclass with a forward of its own may do more."""
    host = find(module)
    return None if host is None else host.group


def _adapted(model: nn.Module) -> dict[nn.Module, bool]:
    """The modules in layers of peft that adapt another, and whether each is of what is adapted."""
    found: dict[nn.Module, bool] = {}
    for module in model.modules():
        tuner = any(kind.__module__.startswith("peft.tuners") for kind in type(module).__mro__)
        if tuner and hasattr(module, "base_layer"):
            inner = dict(module.named_modules())
            found |= {m: path.startswith("base_layer") for path, m in inner.items()}
    return found


def _read_directly(model: nn.Module) -> set[nn.Module]:
    return {
        inner
        for module in model.modules()
        if isinstance(module, _READ_DIRECTLY)
        for inner in module.modules()
    }


def _unfit(module: nn.Module, name: str, parameter: Tensor, inside: set[nn.Module]) -> str:
    """Why this parameter cannot become a network, whatever the patterns say."""
    if isinstance(module, TensorLayer):
        return "already a tensor network"
    if is_opaque(parameter):
        return f"stored as {type(parameter).__name__}, which only its own code reads"
    if parameter.ndim < 2:
        return "not a matrix"
    is_weight = name.endswith("weight")
    if is_weight and own_way(module):
        return own_way(module)
    if not is_weight or _group(module) is None:
        return _used(module, name)
    if module in inside:
        return "torch's fused attention reads this weight directly"
    return _special(module, parameter)


def _used(module: nn.Module, name: str) -> str:
    """Whose parameter it is, where that is no weight of a kind that is known."""
    if name.endswith(_NORMED) and own_way(module):
        return own_way(module)
    if isinstance(module, ParametrizationList):
        return "a weight that torch's parametrizations make: remove_parametrizations first"
    return f"a parameter of {type(module).__name__}, whose code uses it in its own way"


def _special(module: nn.Module, parameter: Tensor) -> str:
    """Why a weight of a known class is none of the usual."""
    plain = parameter.layout is torch.strided
    if not plain or not parameter.is_floating_point():
        kind = str(parameter.dtype if plain else parameter.layout)
        return f"stored as {kind.removeprefix('torch.')}"
    if isinstance(module, nn.Embedding) and (module.max_norm is not None or module.sparse):
        return "an embedding with max_norm or sparse gradients"
    return ""


def _unwanted(
    names: list[str], module: nn.Module, model: nn.Module, targets: list[str], ignore: list[str]
) -> str:
    """Why the patterns leave this module alone."""
    if not any(matches(pattern, name, module) for pattern in targets for name in names):
        return "no target matches it"
    for pattern in ignore:
        if any(matches(pattern, name, module) for name in names):
            return f"ignored by {pattern!r}"
    if set(names) & set(targets):
        return ""
    last = names[0].rpartition(".")[2]
    if last in HEADS or _is_head(module, model):
        return "the head is ignored by default"
    if last in ROUTERS:
        return "routers are ignored by default"
    return ""


def _is_head(module: nn.Module, model: nn.Module) -> bool:
    find = getattr(model, "get_output_embeddings", None)
    return find is not None and find() is module


def _examples(modules: dict[str, nn.Module]) -> str:
    found: Iterable[str] = (name for name, module in modules.items() if _group(module))
    return ", ".join(list(found)[:3]) or "no Linear, Conv1D, Embedding or convolution"


def check_finite(name: str, weight: Tensor) -> None:
    """Refuse a weight with NaN or infinite entries, by name.

    Raises:
        FitError: naming the weight and how many entries.
    """
    bad = int((~torch.isfinite(weight)).sum())
    if bad:
        raise FitError(
            f"Weight {name} has NaN or infinite entries ({bad:,} of {weight.numel():,}); "
            "mend the model or add it to ignore."
        )
