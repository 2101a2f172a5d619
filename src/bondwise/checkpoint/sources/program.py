"""An exported program as an ordinary module: its steps are data, its layers are torch's own.

The graph of a `Program` is plain JSON, so it is kept beside weights and read again without running
anything that a file brings::

    {"schema": 1, "names": [..], "takes": tree, "gives": tree,
     "inputs": [{name, shape, dtype, fixed}, ..], "holds": {value: path},
     "tensors": {path: {shape, dtype, buffer}}, "modules": {path: {kind, ..}},
     "steps": [{"call": name, "args": [..], "named": {..}, "outs": [..]}, ..], "outputs": [..]}

A value in a step is a number, a string, None, a list of values, or one of ``{"ref": value}``,
``{"dtype": name}``, ``{"layout": name}``, ``{"memory": name}``, ``{"complex": [re, im]}`` and
``{"device": null}``, which is where the model is. ``outs`` names what comes of a step, in the
nesting in which it comes; null is dropped.
"""

from collections.abc import Iterator, Mapping, Sequence
from operator import attrgetter
from typing import Any, cast

import torch
from torch import Tensor, nn

from bondwise.checkpoint.sources.operations import operation
from bondwise.checkpoint.sources.trees import Tree, leaves, nested
from bondwise.errors import CheckpointError, DataError

SCHEMA = 1
OWN = "module:"  # what the call of a layer begins with
KINDS: dict[str, type[nn.Module]] = {
    kind.__name__: kind
    for kind in (
        nn.Linear, nn.Embedding, nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d,
        nn.ConvTranspose2d, nn.ConvTranspose3d, nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d,
    )
}  # fmt: skip

Graph = dict[str, Any]
Values = dict[str, Any]


class Program(nn.Module):
    """A graph that runs step by step; its layers may be replaced as those of any module.

    It stays in evaluation mode, since it was exported for use. Where it was exported for one sample
    at a time, more are run one by one.

    Args:
        graph: as above.
        tensors: parameters and buffers by path, those of layers too; without them the program has
            the right shapes and no numbers.

    Raises:
        CheckpointError: the graph is of a later version, or calls what no graph may call.
    """

    def __init__(self, graph: Graph, tensors: Mapping[str, Tensor] | None = None) -> None:
        super().__init__()
        if graph.get("schema") != SCHEMA:
            raise CheckpointError(
                f"The graph has schema {graph.get('schema')!r}, this bondwise reads {SCHEMA}; "
                "upgrade with: pip install -U bondwise."
            )
        self.traced = graph
        for step in graph["steps"]:
            if not step["call"].startswith(OWN):
                operation(step["call"])
        for path, spec in graph["modules"].items():
            _place(self, path, _layer(spec))
        for path, spec in graph["tensors"].items():
            _place(self, path, _empty(spec))
        if tensors is not None:
            self._fill(tensors)
        self._last = _last_uses(graph)
        self.eval()

    def train(self, mode: bool = True) -> "Program":  # noqa: ARG002
        """Stay in evaluation mode."""
        return super().train(False)

    @property
    def batch(self) -> int | None:
        """How many samples it takes at once, where that is fixed."""
        given = [each for each in self.traced["inputs"] if not each["fixed"]]
        sizes = {each["shape"][0] for each in given if each["shape"]}
        return sizes.pop() if len(sizes) == 1 else None

    @property
    def sizes(self) -> dict[str, tuple[int | None, ...]]:
        """Those of each input by name; None where any will do."""
        both = zip(self._wanted(), self.traced["inputs"], strict=False)
        return {name: tuple(own["shape"]) for name, own in both if not own["fixed"]}

    def example(self, count: int, seed: int = 0) -> dict[str, Tensor]:
        """Random inputs of the sizes that it was exported for, by name; free sizes are ``count``.

        Raises:
            DataError: an input is of whole numbers, whose range is not known.
        """
        draw, found = torch.Generator().manual_seed(seed), dict[str, Tensor]()
        for name, each in zip(self._wanted(), self.traced["inputs"], strict=False):
            if each["shape"] is None or not getattr(torch, each["dtype"]).is_floating_point:
                raise DataError(
                    f"{each['name']} of the program is {each['dtype'] or 'no tensor'}, whose range "
                    "is not known; give samples, as --data samples.pt."
                )
            first = count if self.batch == 1 else None
            sizes = [count if size is None else size for size in each["shape"]]
            sizes[:1] = [first or size for size in sizes[:1]]
            made = torch.randn(sizes, generator=draw)
            found[name] = made.to(getattr(torch, each["dtype"]))
        return found

    def exported(self) -> torch.export.ExportedProgram:
        """The program as `torch.export` has it, dense or with networks, free sizes free again.

        Raises:
            DataError: an input is of whole numbers.
        """
        count = self.batch or 2
        given = self.example(count)
        sizes = [each["shape"] for each in self.traced["inputs"][: len(given)]]
        free = [
            {k: torch.export.Dim.DYNAMIC for k, size in enumerate(shape) if size is None} or None
            for shape in sizes
        ]
        first = len(next(iter(self.traced["takes"]["tuple"][0].values())))
        args, names = tuple(given.values())[:first], list(given)[first:]
        more = {name: given[name] for name in names}
        shapes = {"args": tuple(free[:first]), **dict(zip(names, free[first:], strict=True))}
        return torch.export.export(self, args, more, dynamic_shapes=shapes)

    def _wanted(self) -> list[str]:
        """The names of all arguments, in order."""
        first, rest = (next(iter(part.values())) for part in self.traced["takes"]["tuple"])
        return [*self.traced["names"][: len(first)], *(key for key, _ in rest)]

    def forward(self, *args: Any, **named: Any) -> Any:
        """What the program gives, nested as the exported model's output was.

        Raises:
            DataError: inputs of other sizes or names than it was exported for.
        """
        given = list(leaves(self.traced["takes"], self._bound(args, named)))
        one_by_one = self.batch == 1
        self._check(given, one_by_one)
        size = _samples(given) if one_by_one else 1
        if size == 1:
            return nested(self.traced["gives"], self._run(given))
        rows = [self._run([_row(each, k, size) for each in given]) for k in range(size)]
        joined = [
            torch.cat(part) if _is_batch(part) else part[0] for part in zip(*rows, strict=True)
        ]
        return nested(self.traced["gives"], joined)

    def _bound(self, args: Sequence[Any], named: Mapping[str, Any]) -> Any:
        """Positional and named arguments as the program has them."""
        first, rest = (next(iter(part.values())) for part in self.traced["takes"]["tuple"])
        names = self.traced["names"]
        own = dict(zip(names, args, strict=False)) | dict(named)
        wanted = self._wanted()
        fixed = {each["name"]: each.get("value") for each in self.traced["inputs"] if each["fixed"]}
        lacks = [name for name in wanted if name not in own and name not in fixed]
        more = [name for name in own if name not in wanted and own[name] is not None]
        if lacks or more or len(args) > len(wanted):
            came = ", ".join(map(str, own)) or "nothing"
            raise DataError(
                f"The exported program takes {', '.join(wanted)}, and {came} came; give it these."
            )
        values = [own.get(name) for name in names[: len(first)]]
        return tuple(values), {key: own.get(key) for key, _ in rest}

    def _check(self, given: Sequence[Any], one_by_one: bool) -> None:
        """Refuse sizes that the program was not exported for."""
        for value, each in zip(given, self.traced["inputs"], strict=True):
            if each["fixed"] or not isinstance(value, Tensor):
                continue
            shape = tuple(each["shape"])
            own = (None, *shape[1:]) if one_by_one and shape else shape
            fits = len(own) == value.ndim and all(
                size in (None, found) for size, found in zip(own, value.shape, strict=True)
            )
            if not fits:
                raise DataError(
                    f"{each['name']} was exported as {_said(shape)}, and {tuple(value.shape)} "
                    f"came; give that{_or_export(shape, tuple(value.shape), each['name'])}."
                )

    def _run(self, given: Sequence[Any]) -> list[Any]:
        values: Values = {}
        for each, value in zip(self.traced["inputs"], given, strict=True):
            values[each["name"]] = value
        for name, path in self.traced["holds"].items():
            values[name] = attrgetter(path)(self)
        device = next((p.device for p in self.parameters()), torch.device("cpu"))
        for step, done in zip(self.traced["steps"], self._last, strict=True):
            call = step["call"]
            run: Any = self.get_submodule(call[len(OWN) :]) if call.startswith(OWN) else None
            run = run or operation(call)
            args = [_read(value, values, device) for value in step["args"]]
            more = {name: _read(v, values, device) for name, v in step["named"].items()}
            _name(step["outs"], run(*args, **more), values)
            for name in done:  # what is needed no more is let go
                del values[name]
        return [_read(value, values, device) for value in self.traced["outputs"]]

    def _fill(self, tensors: Mapping[str, Tensor]) -> None:
        """Take tensors as they are: what is one tensor at two places stays one."""
        made: dict[int, Tensor] = {}
        buffers = {name for name, _ in self.named_buffers()}
        for path in self.state_dict(keep_vars=True).keys() | buffers:
            if path not in tensors:
                continue
            parent, _, name = path.rpartition(".")
            tensor = tensors[path]
            if path not in buffers and not isinstance(tensor, nn.Parameter):
                tensor = made.setdefault(id(tensor), nn.Parameter(tensor, False))
            setattr(self.get_submodule(parent), name, tensor)


def values_in(value: Any) -> Iterator[str]:
    """The names of values that a value of a step refers to."""
    if isinstance(value, list):
        for each in cast("list[Any]", value):
            yield from values_in(each)
    elif isinstance(value, dict) and "ref" in value:
        yield cast("dict[str, str]", value)["ref"]


def read_by(step: Mapping[str, Any]) -> list[str]:
    """The names of values that a step reads."""
    return [*values_in(step["args"]), *values_in(list(step["named"].values()))]


def names_in(outs: Any) -> Iterator[str]:
    """The names that a step gives."""
    if isinstance(outs, list):
        for each in cast("list[Any]", outs):
            yield from names_in(each)
    elif outs is not None:
        yield outs


def _last_uses(graph: Graph) -> list[list[str]]:
    """For each step the values that no later one reads."""
    kept = set(values_in(graph["outputs"]))
    found: list[list[str]] = []
    for step in reversed(graph["steps"]):
        own = {*read_by(step), *names_in(step["outs"])} - kept
        kept |= own
        found.append(sorted(own))
    return found[::-1]


def _name(outs: Any, came: Any, values: Values) -> None:
    """Keep what a step gives under its names."""
    if isinstance(outs, list):
        parts = cast("list[Any]", outs)
        for part, own in zip(parts, came, strict=True) if parts else ():
            _name(part, own, values)
    elif outs is not None:
        values[outs] = came


def _read(value: Any, values: Values, device: torch.device) -> Any:
    if isinstance(value, list):
        return [_read(each, values, device) for each in cast("list[Any]", value)]
    if not isinstance(value, dict):
        return value
    ((kind, own),) = cast("dict[str, Any]", value).items()
    if kind == "ref":
        return values[own]
    if kind == "device":
        return device
    if kind == "complex":
        return complex(*own)
    found = getattr(torch, str(own), None)
    if not isinstance(found, torch.dtype | torch.layout | torch.memory_format):
        raise CheckpointError(f"The graph has {value!r}, which is no {kind}; save it again.")
    return found


def _samples(given: Sequence[Any]) -> int:
    sizes = {len(each) for each in given if isinstance(each, Tensor) and each.ndim}
    return sizes.pop() if len(sizes) == 1 else 1


def _row(value: Any, at: int, size: int) -> Any:
    is_batch = isinstance(value, Tensor) and value.ndim and len(value) == size
    return value[at : at + 1] if is_batch else value


def _is_batch(part: Sequence[Any]) -> bool:
    return all(isinstance(each, Tensor) and each.ndim and len(each) == 1 for each in part)


def _said(shape: Sequence[int | None]) -> str:
    sizes = ", ".join("any" if size is None else str(size) for size in shape)
    return f"({sizes}{',' * (len(shape) == 1)})"


def _or_export(shape: Sequence[int | None], came: Sequence[int], name: str) -> str:
    """What else may be done, where the number of samples alone is another one."""
    rest = tuple(shape[1:]) == tuple(came[1:]) or None in shape[1:]
    if len(shape) != len(came) or not rest or shape[0] in (None, came[0]):
        return ""
    return f", or export with dynamic_shapes={{'{name}': {{0: torch.export.Dim.DYNAMIC}}}}"


def _layer(spec: Mapping[str, Any]) -> nn.Module:
    """A layer without numbers."""
    own = dict(spec)
    kind, dtype = KINDS.get(str(own.pop("kind"))), getattr(torch, str(own.pop("dtype")))
    if kind is None:
        raise CheckpointError(
            f"The graph has a {spec['kind']}, which this bondwise does not know; upgrade with: "
            "pip install -U bondwise."
        )
    own = {name: tuple(v) if isinstance(v, list) else v for name, v in own.items()}
    return nn.utils.skip_init(kind, device="cpu", dtype=dtype, **own)


def _empty(spec: Mapping[str, Any]) -> Tensor:
    made = torch.empty(spec["shape"], dtype=getattr(torch, spec["dtype"]))
    if spec["buffer"]:
        return made
    return nn.Parameter(made, made.is_floating_point())


def _place(root: nn.Module, path: str, value: nn.Module | Tensor) -> None:
    """Put a layer, parameter or buffer at a path; what holds it is made."""
    *parents, name = path.split(".")
    for parent in parents:
        if parent not in root._modules:  # pyright: ignore[reportPrivateUsage]
            root.add_module(parent, nn.Module())
        root = root.get_submodule(parent)
    if isinstance(value, nn.Module):
        inside = root._modules.get(name)  # pyright: ignore[reportPrivateUsage]
        root.add_module(name, value)
        for below, child in inside.named_children() if inside is not None else ():
            value.add_module(below, child)
    elif isinstance(value, nn.Parameter):
        root.register_parameter(name, value)
    else:
        root.register_buffer(name, value)


__all__ = ["KINDS", "OWN", "Graph", "Program", "Tree", "names_in", "read_by", "values_in"]
