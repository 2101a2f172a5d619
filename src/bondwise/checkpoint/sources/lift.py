"""Calls of operations on parameters as layers of torch: what hosts then find and replace.

An exported convolution is ``aten.conv2d(x, weight, bias, ..)`` on two parameters. Where a call's
parameters are used nowhere else it becomes an ``nn.Conv2d`` of the same numbers at the place where
the exported model had its own; tied and computed weights stay as they are.
"""

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from bondwise.checkpoint.sources.operations import arguments
from bondwise.checkpoint.sources.program import OWN, Graph, names_in, read_by, values_in

Step = dict[str, Any]
Bound = Mapping[str, Any]


@dataclass
class _Layer:
    """A layer in the place of a step.

    Attributes:
        kind: the class, and what it is made with.
        holds: values that become its own tensors, by their names in it.
        given: the value that it is called with.
    """

    kind: dict[str, Any]
    holds: dict[str, str]
    given: Any


@dataclass
class _Lifting:
    """A graph, its tensors, and how often each is used."""

    graph: Graph
    tensors: dict[str, Tensor]
    uses: Counter[str] = field(default_factory=Counter[str])
    owners: Counter[int] = field(default_factory=Counter[int])

    def __post_init__(self) -> None:
        for step in self.graph["steps"]:
            self.uses.update(read_by(step))
        self.uses.update(values_in(self.graph["outputs"]))
        for path in self.graph["holds"].values():
            self.owners[id(self.tensors[path])] += 1

    def tensor(self, value: Any) -> Tensor | None:
        """The tensor of a value that the program holds, if it is used once."""
        name = _ref(value)
        path = self.graph["holds"].get(name)
        if path is None or self.uses[name] != 1 or self.owners[id(self.tensors[path])] != 1:
            return None
        return self.tensors[path]


def lifted(graph: Graph, tensors: Mapping[str, Tensor]) -> tuple[Graph, dict[str, Tensor]]:
    """The graph with layers for calls, and its tensors under the paths that they then have."""
    work = _Lifting(graph, dict(tensors))
    transposed = {
        step["outs"]: step
        for step in graph["steps"]
        if _flips(step) and work.uses[step["outs"]] == 1
    }
    gone: set[str] = set()
    steps: list[Step] = []
    for step in graph["steps"]:
        made, flipped = _made(step, work, transposed)
        outs = next(names_in(step["outs"]), None)
        if (
            made is None
            or outs is None
            or any(work.uses[n] for n in names_in(step["outs"]) if n != outs)
        ):
            steps.append(step)
            continue
        path = _path(made, work)
        _settle(made, path, work)
        gone |= flipped
        call = {"call": f"{OWN}{path}", "args": [made.given], "named": {}}
        steps.append({**call, "outs": outs})
    steps = [step for step in steps if not gone & set(names_in(step["outs"]))]
    own = {name: part for name, part in work.graph.items() if name != "ranks"}
    return {**own, "steps": steps}, work.tensors


def _ref(value: Any) -> str:
    """The name of a value that is referred to; empty for others."""
    return str(value.get("ref", "")) if isinstance(value, dict) else ""


def _flips(step: Step) -> bool:
    if step["call"] == "torch.ops.aten.t.default":
        return True
    return step["call"] == "torch.ops.aten.permute.default" and step["args"][1] == [1, 0]


def _made(
    step: Step, work: _Lifting, transposed: Mapping[str, Step]
) -> tuple[_Layer | None, set[str]]:
    """The layer that a step is, and transposed weights that it makes needless."""
    call = step["call"]
    names = call.removeprefix("torch.ops.aten.").split(".")
    if not call.startswith("torch.ops.aten.") or names[0] not in _LAYERS:
        return None, set()
    bound = dict(arguments(call))
    bound |= dict(zip(bound, step["args"], strict=False)) | step["named"]
    gone: set[str] = set()
    if names[0] == "addmm":
        name = _ref(bound["mat2"])
        if name not in transposed or (bound["beta"], bound["alpha"]) != (1, 1):
            return None, set()
        gone = {name}
        bound |= {
            "weight": transposed[name]["args"][0],
            "bias": bound["self"],
            "input": bound["mat1"],
        }
    weight = work.tensor(bound["weight"])
    biased = bound.get("bias") is not None
    bias = work.tensor(bound["bias"]) if biased else None
    if weight is None or (biased and bias is None):
        return None, set()
    return _LAYERS[names[0]](bound, weight, bias, work), gone


def _own(bound: Bound, *names: str) -> dict[str, str]:
    return {name: bound[name]["ref"] for name in names if bound.get(name) is not None}


def _linear(bound: Bound, weight: Tensor, bias: Tensor | None, work: _Lifting) -> _Layer | None:  # noqa: ARG001
    if weight.ndim != 2 or (bias is not None and bias.ndim != 1):
        return None
    kind = {"kind": "Linear", "in_features": weight.shape[1], "out_features": weight.shape[0]}
    kind["bias"] = bias is not None
    return _Layer(kind, _own(bound, "weight", "bias"), bound["input"])


def _embedding(bound: Bound, weight: Tensor, bias: Tensor | None, work: _Lifting) -> _Layer | None:  # noqa: ARG001
    padding = bound["padding_idx"]
    kind: dict[str, Any] = {
        "kind": "Embedding",
        "num_embeddings": weight.shape[0],
        "embedding_dim": weight.shape[1],
    }
    kind["padding_idx"] = None if padding < 0 else padding
    return _Layer(kind, _own(bound, "weight"), bound["indices"])


def _convolution(axes: int | None, transposed: bool | None = None) -> Callable[..., _Layer | None]:
    """A layer of so many axes; None where the call says how many, and whether it is transposed."""

    def made(bound: Bound, weight: Tensor, bias: Tensor | None, work: _Lifting) -> _Layer | None:  # noqa: ARG001
        nd = axes or weight.ndim - 2
        flipped = bound["transposed"] if transposed is None else transposed
        first, second, groups = weight.shape[0], weight.shape[1] * bound["groups"], bound["groups"]
        kind: dict[str, Any] = {
            "kind": f"Conv{'Transpose' * flipped}{nd}d",
            "in_channels": first if flipped else second,
            "out_channels": second if flipped else first,
            "kernel_size": list(weight.shape[2:]),
            "groups": groups,
            "bias": bias is not None,
        }
        for name in ("stride", "padding", "dilation", "output_padding")[: 3 + flipped]:
            kind[name] = value = _spread(bound[name], nd)
            if value is None:
                return None
        return _Layer(kind, _own(bound, "weight", "bias"), bound["input"])

    return made


def _spread(value: Any, axes: int) -> Any:
    """One number for each axis; None where they are only known as it runs."""
    if isinstance(value, str):
        return value
    own = [value] if isinstance(value, int) else list(value)
    if not all(isinstance(each, int) for each in own):
        return None
    return own * axes if len(own) == 1 else own


def _norm(bound: Bound, weight: Tensor, bias: Tensor | None, work: _Lifting) -> _Layer | None:
    """A batch norm in use, over as many axes as its input is known to have."""
    moments = [work.tensor(bound[name]) for name in ("running_mean", "running_var")]
    axes = work.graph["ranks"].get(bound["input"].get("ref"))
    if (
        bound.get("training")
        or any(each is None for each in moments)
        or bias is None
        or axes not in (2, 3, 4, 5)
    ):
        return None
    kind = {"kind": f"BatchNorm{max(axes - 2, 1)}d", "num_features": len(weight)}
    kind |= {"eps": bound["eps"], "momentum": bound["momentum"]}
    own = _own(bound, "weight", "bias", "running_mean", "running_var")
    return _Layer(kind, own, bound["input"])


_LAYERS: dict[str, Callable[..., _Layer | None]] = {
    "linear": _linear,
    "addmm": _linear,
    "embedding": _embedding,
    "batch_norm": _norm,
    "_native_batch_norm_legit_no_training": _norm,
    "convolution": _convolution(None),
    **{f"conv{nd}d": _convolution(nd, False) for nd in (1, 2, 3)},
    **{f"conv_transpose{nd}d": _convolution(nd, True) for nd in (1, 2, 3)},
}


def _path(layer: _Layer, work: _Lifting) -> str:
    """Where the layer goes: where the exported model had it, or a place of its own."""
    held = {own: work.graph["holds"][name] for own, name in layer.holds.items()}
    parent = held["weight"].rpartition(".")[0]
    taken = {*work.graph["tensors"], *work.tensors} - set(held.values())
    alone = not any(path.startswith(f"{parent}.") for path in taken - {f"{parent}.{_COUNT}"})
    if parent and alone and all(path == f"{parent}.{own}" for own, path in held.items()):
        return parent
    return f"lifted.{held['weight'].replace('.', '_')}"


_COUNT = "num_batches_tracked"


def _settle(layer: _Layer, path: str, work: _Lifting) -> None:
    """Give the layer its tensors, at their new paths."""
    graph = work.graph
    for own, name in layer.holds.items():
        old = graph["holds"].pop(name)
        del graph["tensors"][old]
        work.tensors[f"{path}.{own}"] = work.tensors.pop(old)
    if "BatchNorm" in layer.kind["kind"]:
        count = work.tensors.setdefault(f"{path}.{_COUNT}", torch.tensor(0))
        for name in [n for n, at in graph["holds"].items() if at == f"{path}.{_COUNT}"]:
            del graph["holds"][name]
        graph["tensors"].pop(f"{path}.{_COUNT}", None)
        assert not count.ndim
    weight = work.tensors[f"{path}.weight"]
    graph["modules"][path] = {**layer.kind, "dtype": str(weight.dtype).removeprefix("torch.")}
