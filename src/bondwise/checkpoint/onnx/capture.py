"""From a module and its inputs to an ONNX program: one graph for all sizes, inputs by name."""

import logging
import re
import warnings
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from inspect import signature
from io import StringIO
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from bondwise.checkpoint.onnx.inputs import FOLLOWED, Inputs, Values
from bondwise.errors import CheckpointError, optional

PACKAGES = ("onnx", "onnxscript", "onnxruntime")
FOLDED = 4096  # numbers of a constant that is worked out beforehand: larger ones a runtime makes
_LOGGERS = ("torch.onnx", "torch.export", "torch.fx", "onnxscript", "onnx_ir")
_FIXED = re.compile(
    r"\[(?P<input>\d+)\]\.size\(\)\[(?P<axis>\d+)\] as dynamic but your code specialized it to be "
    r"a constant \((?P<size>\d+)\)"
)
_LACKS = re.compile(r"No ONNX function found for .*?op='(?P<name>[\w.]+)'")
_LOOKS = ("GuardOnDataDependentSymNode", "DataDependentOutputException")


@dataclass(frozen=True)
class Port:
    """An input or output as the file has it.

    Attributes:
        name: of it.
        dtype: as ONNX calls it.
        axes: sizes, and names of those that are free.
    """

    name: str
    dtype: str
    axes: tuple[int | str, ...]


@dataclass(frozen=True, eq=False)
class Graph:
    """An ONNX program in memory.

    Attributes:
        program: torch's, to be saved.
        inputs, outputs: in order.
        opset: version of ONNX's operators.
    """

    program: Any
    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]
    opset: int

    @property
    def number_bytes(self) -> int:
        """Bytes of all constants."""
        held = self.program.model.graph.initializers.values()
        return sum(own.const_value.nbytes for own in held if own.const_value is not None)


def need_packages() -> None:
    """See that all packages are there.

    Raises:
        MissingExtraError: one is not.
    """
    for package in PACKAGES:
        optional(package, "onnx")


def captured(model: nn.Module, inputs: Inputs, source: str) -> Graph:
    """One graph of a model, free axes free.

    Args:
        model: in evaluation mode; it is not changed.
        inputs: what it takes.
        source: what an error calls it.

    Raises:
        CheckpointError: torch cannot follow its code, or ONNX lacks an operation of it.
    """
    values = inputs.example(FOLLOWED[0])
    calls = Calls(model, inputs)
    with _quiet(), torch.no_grad():
        try:
            names = list(calls.named(*values.values()))
            program = _followed(calls, inputs, values)
            return _converted(program, inputs, list(values), _outputs(names, values))
        except Exception as error:  # whatever following foreign code raises, and the exporter
            raise _impossible(source, inputs, error) from error


class Calls(nn.Module):
    """A model that takes tensors in order and gives a tuple of tensors.

    Args:
        model: what is called; a Hugging Face decoder keeps no cache.
        inputs: what it takes.
    """

    def __init__(self, model: nn.Module, inputs: Inputs) -> None:
        super().__init__()
        self.model = model
        self.names, self.named_inputs = list(inputs.free), inputs.named
        takes = signature(model.forward).parameters
        wanted = {"use_cache": False, "return_dict": True}
        self.more = {k: v for k, v in wanted.items() if k in takes and hasattr(model, "config")}

    def named(self, *values: Tensor) -> dict[str, Tensor]:
        """The outputs by name: as the model calls them, numbered where they have no name."""
        if self.named_inputs:
            given = dict(zip(self.names, values, strict=True))
            return dict(_tensors("", self.model(**given, **self.more)))
        return dict(_tensors("", self.model(*values)))

    def forward(self, *values: Tensor) -> tuple[Tensor, ...]:
        """The outputs in order: tensors of their own, since a graph gives each a name."""
        made, seen = list[Tensor](), {id(own) for own in values}
        for own in self.named(*values).values():
            made.append(own.clone() if id(own) in seen else own)
            seen.add(id(own))
        return tuple(made)


def _tensors(name: str, value: Any) -> Iterator[tuple[str, Tensor]]:
    if isinstance(value, Tensor):
        yield name or "output", value
    elif isinstance(value, Mapping):
        for key, own in cast("Mapping[str, Any]", value).items():
            yield from _tensors(f"{name}_{key}" if name else str(key), own)
    elif isinstance(value, list | tuple):
        for key, own in enumerate(cast("Sequence[Any]", value)):
            yield from _tensors(f"{name or 'output'}_{key}", own)


def _outputs(names: Sequence[str], values: Values) -> list[str]:
    """Names of outputs, none of them an input's."""
    return [f"{name}_out" if name in values else name for name in names]


def _followed(calls: Calls, inputs: Inputs, values: Values) -> ExportedProgram:
    axes = tuple(
        {axis: Dim.AUTO if own in inputs.may else Dim.DYNAMIC for axis, own in free.items()}
        for free in inputs.free.values()
    )
    return torch.export.export(calls, tuple(values.values()), dynamic_shapes=(axes,), strict=False)


def _converted(
    program: ExportedProgram, inputs: Inputs, names: list[str], outputs: list[str]
) -> Graph:
    made: Any = torch.onnx.export(
        program, (), input_names=names, output_names=outputs, dynamo=True, optimize=False,
        verbose=False,
    )  # fmt: skip
    optional("onnxscript.optimizer", "onnx").optimize(made.model, output_size_limit=FOLDED)
    _name_axes(made.model, inputs)
    _forget_code(made.model)
    graph = made.model.graph
    return Graph(
        made,
        tuple(map(_port, graph.inputs)),
        tuple(map(_port, graph.outputs)),
        made.model.opset_imports[""],
    )


def _name_axes(model: Any, inputs: Inputs) -> None:
    """Free axes by the names that we have for them, in place of torch's ``s17``."""
    known: dict[str, str] = {}
    for value, free in zip(model.graph.inputs, inputs.free.values(), strict=True):
        for axis, name in free.items():
            if not isinstance(value.shape[axis], int):
                known[str(value.shape[axis].value)] = name
    word = re.compile(r"\bs\d+\b")
    values = [
        *model.graph.inputs,
        *(out for node in model.graph.all_nodes() for out in node.outputs),
    ]
    for value in values:
        for axis, size in enumerate(value.shape or ()):
            if not isinstance(size, int) and size.value is not None:
                value.shape[axis] = word.sub(lambda m: known.get(m[0], m[0]), str(size.value))


def _forget_code(model: Any) -> None:
    """Away with the lines of code that each node came from, and their paths on this machine."""
    made = [out for node in model.graph.all_nodes() for out in node.outputs]
    held = [*model.graph.inputs, *model.graph.initializers.values(), *made]
    for each in (model, model.graph, *model.graph.all_nodes(), *held):
        each.metadata_props.clear()
        each.doc_string = None


def _port(value: Any) -> Port:
    sizes = (size if isinstance(size, int) else str(size.value) for size in value.shape)
    return Port(value.name, str(value.dtype).lower(), tuple(sizes))


def _impossible(source: str, inputs: Inputs, error: BaseException) -> CheckpointError:
    return CheckpointError(f"{source} cannot be exported: {_reason(inputs, error)}.")


def _reason(inputs: Inputs, error: BaseException) -> str:
    """What went wrong, in the words of whoever knew first."""
    chain = [error]
    while (before := chain[-1].__cause__) is not None:
        chain.append(before)
    if any(type(each).__name__ in _LOOKS for each in chain):
        return "its code looks at values of a tensor (if, float, range), which one graph cannot do"
    for each in reversed(chain):
        if fixed := _FIXED.search(str(each)):
            name, axes = list(inputs.free.items())[int(fixed["input"])]
            axis = axes[int(fixed["axis"])]
            return f"its code fixes the {axis} of {name} to {fixed['size']}, which has to be free"
        if lacks := _LACKS.search(str(each)):
            return f"ONNX has nothing for {lacks['name']}"
    lines = str(chain[-1]).strip().splitlines() or [""]
    return f"{type(chain[-1]).__name__}, {lines[0].strip().rstrip('.')[:200]}"


@contextmanager
def _quiet() -> Generator[None]:
    """No warnings and lines of the exporters, which speak to their authors."""
    loggers = [logging.getLogger(name) for name in _LOGGERS]
    levels = [each.level for each in loggers]
    for each in loggers:
        each.setLevel(logging.CRITICAL)
    try:
        with (
            warnings.catch_warnings(),
            redirect_stdout(StringIO()),
            redirect_stderr(StringIO()),
        ):
            warnings.simplefilter("ignore")
            yield
    finally:
        for each, level in zip(loggers, levels, strict=True):
            each.setLevel(level)
