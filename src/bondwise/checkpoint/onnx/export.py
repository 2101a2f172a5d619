"""Writing a model as an ONNX file, whole or not at all, once onnxruntime gives torch's numbers."""

import os
import uuid
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from shutil import rmtree
from typing import Any

import torch
from torch import nn

from bondwise.checkpoint.onnx.capture import Calls, Port, captured, need_packages
from bondwise.checkpoint.onnx.forms import formed
from bondwise.checkpoint.onnx.inputs import TOKENS, Inputs, Values, inputs_of
from bondwise.checkpoint.onnx.session import Session, allowed, difference
from bondwise.errors import CheckpointError, DataError
from bondwise.flow.doors import check_whole
from bondwise.progress import Progress, silent

LARGEST = 2**31 - 2**20  # bytes of a file of ONNX; above, its numbers are in a file beside it
SIZES = ((1, 5), (3, 13), (1, 1))  # samples and tokens that the written file is tried with
SHORT = (torch.bfloat16,)  # what onnxruntime has no arithmetic for, on a processor


@dataclass(frozen=True)
class Check:
    """The file and the model on one example.

    Attributes:
        batch, length: samples and tokens; length is None where there are no tokens.
        difference: the largest of all outputs, relative to the largest number of each.
    """

    batch: int
    length: int | None
    difference: float


@dataclass(frozen=True)
class Exported:
    """What was written.

    Attributes:
        file: where.
        data: the file of numbers beside it, for models above 2 GB; else None.
        bytes: of both.
        opset: version of ONNX's operators.
        inputs, outputs: with their axes.
        forms: how each layer of terms is in it, "network" or "whole", by path.
        checks: what it was tried with.
    """

    file: Path
    data: Path | None
    bytes: int
    opset: int
    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]
    forms: dict[str, str]
    checks: tuple[Check, ...]

    @property
    def difference(self) -> float:
        """The largest of all checks."""
        return max(each.difference for each in self.checks)


def export(
    model: nn.Module,
    file: str | Path,
    inputs: Inputs | None = None,
    *,
    overwrite: bool = False,
    source: str = "",
    progress: Progress = silent,
) -> Exported:
    """Write a model as one ONNX file, and see that onnxruntime gives the same numbers.

    Args:
        model: any module, dense or with layers of bondwise; it is not changed.
        file: where to, ending in .onnx.
        inputs: what it takes, as `inputs_of` finds it; None for a text model of Hugging Face.
        overwrite: replace a file.
        source: what errors call the model; the name of its class by default.
        progress: called with a stage, how much of it is done, and how much there is.

    Raises:
        MissingExtraError: onnx, onnxscript or onnxruntime is not installed.
        CheckpointError: the file is in the way or cannot be written, the model cannot be exported,
            or onnxruntime gives other numbers. Nothing is left then.
        DataError: it is not known what the model takes, or it is in bfloat16.
        SelectionError: it is no model, or its numbers are not all here.

    >>> from tempfile import TemporaryDirectory
    >>> from bondwise import TensorLinear, lowrank
    >>> model = nn.Sequential(TensorLinear(lowrank(6, 4, 2)))
    >>> takes = Inputs({"x": {0: "batch"}}, lambda n, _: {"x": torch.ones(n, 4)}, named=False)
    >>> with TemporaryDirectory() as folder:
    ...     export(model, f"{folder}/small.onnx", takes).inputs
    (Port(name='x', dtype='float', axes=('batch', 4)),)
    """
    need_packages()
    check_whole(model)
    target = check_file(file, overwrite)
    source = source or f"The {type(model).__name__}"
    _check_dtype(model, source)
    takes = inputs_of(model, source=source) if inputs is None else inputs
    stage = _stages(progress)
    own = _evaluated(model)
    with own:
        stage()
        made = formed(model, takes, source)
        stage()
        graph = captured(made.model, takes, source)
        stage()
        with _written(target) as path:
            graph.program.save(str(path), external_data=graph.number_bytes > LARGEST)
            session = Session(path)
            stage()
            checks = _checked(model, session, takes.settled([p.axes for p in graph.inputs]), source)
            there = sorted(path.parent.iterdir(), key=lambda each: len(each.name))
            size = sum(each.stat().st_size for each in there)
    stage()
    data = target.parent / there[1].name if len(there) > 1 else None
    return Exported(
        target, data, size, graph.opset, graph.inputs, graph.outputs, made.forms, checks
    )


def _stages(progress: Progress) -> Callable[[], None]:
    done = iter(range(5))
    return lambda: progress("export", next(done), 4)


@contextmanager
def _evaluated(model: nn.Module) -> Generator[None]:
    """The model as it is used; what was prepared stays, so that its modules are not told."""
    trains = [module for module in model.modules() if module.training]
    for module in trains:
        module.training = False
    try:
        yield
    finally:
        for module in trains:
            module.training = True


def _check_dtype(model: nn.Module, source: str) -> None:
    found = {p.dtype for p in model.parameters()} & set(SHORT)
    if found:
        raise DataError(
            f"{source} is in bfloat16, for which onnxruntime has no arithmetic; write --dtype "
            "float32 or float16 (model.float() in Python)."
        )


def check_file(file: str | Path, overwrite: bool) -> Path:
    """Where a file is to be written, if it can be.

    Raises:
        CheckpointError: another ending, something in the way, or no folder to write to.
    """
    path = Path(file).expanduser().absolute()
    if path.suffix != ".onnx":
        raise CheckpointError(f"{file} came as the file to write; end its name in .onnx.")
    if path.is_dir():
        raise CheckpointError(f"{file} is a folder; name a file, such as model.onnx.")
    if path.exists() and not overwrite:
        raise CheckpointError(
            f"{file} is there already; name another file, or replace it with --force "
            "(overwrite=True)."
        )
    if not path.parent.is_dir() or not os.access(path.parent, os.W_OK):
        raise CheckpointError(
            f"{path.parent} cannot be written to; make it, or name another place."
        )
    return path


@contextmanager
def _written(target: Path) -> Generator[Path]:
    """A file in a folder beside the target that takes its place once all went well, or is gone.

    A second file, of numbers, keeps its name. What is replaced goes first, so that no file ever
    stands beside numbers of another one.
    """
    folder = target.parent / f".{target.stem}-{uuid.uuid4().hex[:8]}"
    beside = target.with_name(f"{target.name}.data")
    try:
        folder.mkdir()
        path = folder / target.name
        yield path
        old = beside.exists()
        data = folder / beside.name
        if data.exists() or old:
            target.unlink(missing_ok=True)
        if data.exists():
            data.replace(beside)
        elif old:
            beside.unlink()
        path.replace(target)
    except OSError as error:
        raise CheckpointError(
            f"{target} cannot be written ({error.strerror or error}), and nothing was left there; "
            "free some space or name another place."
        ) from error
    finally:
        rmtree(folder, ignore_errors=True)


def _checked(model: nn.Module, session: Session, inputs: Inputs, source: str) -> tuple[Check, ...]:
    """The file on examples of other sizes than the one that was followed.

    Raises:
        CheckpointError: other numbers, or no example of another size that torch runs.
    """
    calls, found, why = Calls(model, inputs), dict[Any, Check](), ""
    for batch, tokens in SIZES:
        values = inputs.example(batch, tokens)
        key = tuple(tuple(own.shape) for own in values.values())
        if key in found:
            continue
        try:
            with torch.no_grad():
                wanted = calls.named(*values.values())
        except (RuntimeError, ValueError, IndexError) as error:  # a text too short for the model
            why = str(error).strip().split("\n")[0].rstrip(".")[:200]
            continue
        off = _difference(wanted, session.run(session.given(values)), values, source)
        found[key] = Check(*_counts(values, inputs), off)
    if not found:
        raise CheckpointError(f"{source} runs on no example of another size: {why}.")
    return tuple(found.values())


def _counts(values: Values, inputs: Inputs) -> tuple[int, int | None]:
    """Samples, and tokens where there are some."""
    tokens = [
        values[name].shape[axis]
        for name, axes in inputs.free.items()
        for axis, own in axes.items()
        if own == TOKENS
    ]
    return len(next(iter(values.values()))), tokens[0] if tokens else None


def _difference(wanted: Values, given: Sequence[Any], values: Values, source: str) -> float:
    most = 0.0
    for (name, right), own in zip(wanted.items(), given, strict=True):
        off = difference(own, right)
        if off > allowed(right):
            shapes = ", ".join(f"{n} {tuple(v.shape)}" for n, v in values.items())
            raise CheckpointError(
                f"{source} gives other numbers in onnxruntime than in torch: {name} differs by "
                f"{off:.2g} of its largest number, for {shapes}. Nothing was left; a model that "
                "draws random numbers cannot be one graph."
            )
        most = max(most, off)
    return most
