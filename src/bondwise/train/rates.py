"""Which parameters train, and how fast: each core by its shape."""

from collections.abc import Generator, Iterable, Sequence
from contextlib import contextmanager
from math import prod
from typing import Any

from torch import Tensor, nn

from bondwise.choose.select import listed, matches
from bondwise.compute.stack import cheapest_order
from bondwise.errors import SelectionError
from bondwise.layers.module import TensorLayer
from bondwise.layers.networks import Cores
from bondwise.network.network import Network
from bondwise.network.stack import levels

LEAST, MOST = 0.25, 4.0  # what a rate is multiplied by: healing starts from a fit, not from noise


def groups(
    model: nn.Module, rate: float, train: str | Sequence[str] = "all"
) -> list[dict[str, Any]]:
    """The parameters that train, as the groups of an optimizer of torch, with their rates.

    A core's rate is multiplied as `multipliers` says; all others get the rate itself. What the
    caller has frozen (``requires_grad_(False)``) and what is no floating-point number stays as it
    is. A parameter that several layers share is there once. Norms and biases (one dimension) have
    groups of their own, without weight decay.

    Args:
        model: the student.
        rate: what a dense weight is trained with.
        train: "all"; "cores" (all that networks store); "norms"; or patterns of modules as
            targets are written (names, globs, ``re:..``); or several of them.

    Returns:
        Dictionaries with "params", "lr" and "name", in the order of the model.

    Raises:
        SelectionError: nothing that trains was meant.

    >>> from bondwise import TensorLinear, lowrank
    >>> model = nn.Sequential(TensorLinear(lowrank(8, 8, 2), bias=True), nn.LayerNorm(8))
    >>> [(g["name"], g["lr"], len(g["params"])) for g in groups(model, 0.1)]
    [('cores x 2', 0.2, 1), ('cores x 0.5', 0.05, 1), ('vectors', 0.1, 3)]
    """
    found: dict[str, dict[str, Any]] = {}
    for parameter, factor in _chosen(model, train):
        kind = "vectors" if parameter.ndim < 2 else "matrices"
        label = kind if factor is None else f"cores x {factor:.3g}"
        own = {"params": [], "lr": rate * (factor or 1.0), "name": label}
        group = found.setdefault(label, own | ({"weight_decay": 0.0} if kind == "vectors" else {}))
        group["params"].append(parameter)
    return list(found.values())


@contextmanager
def only(model: nn.Module, chosen: Iterable[dict[str, Any]]) -> Generator[None]:
    """For a while only the parameters of some groups ask for gradients; then all are as before.

    >>> model = nn.Linear(2, 2)
    >>> with only(model, groups(model, 0.1, "re:bias")):
    ...     model.weight.requires_grad, model.bias.requires_grad
    (False, True)
    """
    train = {id(parameter) for group in chosen for parameter in group["params"]}
    asked = {p: p.requires_grad for p in model.parameters()}
    for parameter in asked:
        parameter.requires_grad_(id(parameter) in train)
    try:
        yield
    finally:
        for parameter, was in asked.items():
            parameter.requires_grad_(was)
            parameter.grad = None


def multipliers(net: Network, table: bool = False) -> tuple[float, ...]:
    """What the rate of Adam is multiplied by for each core: ``(in / f_k) / cores``.

    A step of Adam moves every entry alike, whatever the gradient's size, and all entries that add
    up to one output move it the same way. So the step of a matrix moves its outputs in proportion
    to the number of inputs that it sums, and rates that are equally bold go with ``1 / fan-in``
    (Yang et al. 2022, muP). In the stack a core is a block diagonal of matrices with ``f_k`` inputs
    each, the sizes of its indices that it sums: it may move ``in / f_k`` times as fast as the dense
    weight, whose rate is given. As all cores move at once, each takes its share, one of as many as
    there are cores (Qiu, Potapczynski, Finzi, Goldblum and Wilson 2024).

    That is for cores drawn at random. Those here are fitted already: no rate is multiplied by less
    than 1/4 or by more than 4.

    Args:
        net: the whole network, also where its gauge is not stored.
        table: an embedding's. Its row modes are looked up, not summed, and what it is measured
            against is its width.

    >>> from bondwise import btt, lowrank
    >>> multipliers(lowrank(64, 64, 16))        # the output's core sums 16, the input's 64
    (2.0, 0.5)
    >>> multipliers(btt((8, 8), (8, 8), 2))     # sums of 8 * 2, and of 8
    (2.0, 4.0)
    """
    looked_up = net.rows if table else ()
    width = net.shape[1]
    if table:
        net = Network(net.cores, net.cols, net.rows)
    factors = [1.0] * len(net.cores)
    for level in levels(net, cheapest_order(net)):
        summed = [i.size for i in level.indices if i not in level.rows and i not in looked_up]
        share = width / prod(summed) / len(net.cores)
        factors[level.core] = min(max(share, LEAST), MOST)
    return tuple(factors)


def _chosen(
    model: nn.Module, train: str | Sequence[str]
) -> list[tuple[nn.Parameter, float | None]]:
    """The parameters that train, each once, with what the rate of a core is multiplied by."""
    patterns = listed(train)
    found = dict[int, tuple[nn.Parameter, float | None]]()
    seen = 0
    for path, module in model.named_modules(remove_duplicate=False):
        own = [(n, p) for n, p in module.named_parameters(recurse=False) if p.is_floating_point()]
        factors = _factors(module) if own else {}
        for name, parameter in own:
            if not any(_meant(pattern, model, path, name, parameter) for pattern in patterns):
                continue
            seen += 1
            if parameter.requires_grad:
                found.setdefault(id(parameter), (parameter, factors.get(name)))
    if not found:
        why = f"all {seen} are frozen" if seen else "nothing of the model is meant by it"
        raise SelectionError(
            f"train={train!r} came, and nothing trains ({why}); "
            "write 'all', 'cores', 'norms', or names of layers."
        )
    return list(found.values())


def _meant(pattern: str, model: nn.Module, path: str, name: str, parameter: Tensor) -> bool:
    """Whether a parameter is meant: by its own name, or by any module that it lies in."""
    module = model.get_submodule(path)
    if pattern == "all":
        return True
    if pattern == "cores":
        return isinstance(module, TensorLayer)
    if pattern == "norms":
        return "norm" in type(module).__name__.lower() and parameter.ndim == 1
    steps = path.split(".") if path else []
    above = [".".join(steps[: k + 1]) for k in range(len(steps))]
    whole = ".".join([*steps, name])
    inside = any(matches(pattern, each, model.get_submodule(each)) for each in above)
    return inside or matches(pattern, whole, module)


def _factors(module: nn.Module) -> dict[str, float]:
    """Of each core of a network, by the parameter's name."""
    if not isinstance(module, TensorLayer):
        return {}
    table = module.group == "embedding"
    found = dict[str, float]()
    for part in module.parts:
        if isinstance(part.kind, Cores):
            factors = multipliers(part.kind.network, table)
            found |= dict(zip(part.names, factors, strict=True))
    return found
