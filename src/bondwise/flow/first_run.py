"""A result runs once before it is returned: on the first batch, as it is returned."""

from collections.abc import Generator, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from bondwise.errors import SelectionError
from bondwise.flow.copies import copied
from bondwise.flow.data import Batch, feed


@dataclass(frozen=True, eq=False)
class FirstRun:
    """What a dense model gave for one batch, in the mode that it came in.

    Attributes:
        batch: what it was given.
        finite: of each tensor of numbers that it gave, where those are finite.
        evaluating: whether that was in evaluation mode, since it does not run in its own.
        dtypes: of its parameters.
    """

    batch: Batch
    finite: tuple[Tensor, ...]
    evaluating: bool
    dtypes: frozenset[torch.dtype]

    @classmethod
    def of(cls, model: nn.Module, batch: Batch) -> "FirstRun":
        """Run a model, which stays as it was: buffers, and random numbers too."""
        try:
            return cls(batch, _finite(_ran(_twin(model), batch)), False, _dtypes(model))
        except Exception:
            if not model.training:
                raise
        finite = _finite(_ran(_twin(model).eval(), batch))
        return cls(batch, finite, True, _dtypes(model))

    def check(self, model: nn.Module) -> None:
        """Refuse a compressed model that does not run, or whose output is not finite any more.

        Raises:
            SelectionError: with the layer where it first shows.
        """
        trial = _twin(model)  # what it keeps from the run goes with it
        trial = trial.eval() if self.evaluating else trial
        try:
            finite = _finite(_ran(trial, self.batch))
        except Exception as error:
            reason = f"{type(error).__name__}: {' '.join(str(error).split())[:160]}"
            raise self._refused(trial, f"does not run ({reason})") from error
        pairs = zip(self.finite, finite, strict=False)
        if any(old.shape == new.shape and bool((old & ~new).any()) for old, new in pairs):
            raise self._refused(trial, "gives NaN or infinity where the dense one gives numbers")

    def _refused(self, trial: nn.Module, why: str) -> SelectionError:
        layer = _first_bad(trial, self.batch)
        out = f"leave that alone with ignore={layer!r}"
        if _dtypes(trial) != self.dtypes:
            out = f"write another dtype or none, or {out}"
        return SelectionError(
            f"The compressed {type(trial).__name__} {why}, first at {layer}; {out}."
        )


def _twin(model: nn.Module) -> nn.Module:
    """A copy for one run: buffers of its own, the same parameters."""
    return copied(model, {id(p): p for p in model.parameters()})


def _dtypes(model: nn.Module) -> frozenset[torch.dtype]:
    return frozenset(p.dtype for p in model.parameters())


def _ran(model: nn.Module, batch: Batch) -> Any:
    """What a model gives; random numbers are afterwards drawn as if it had not run."""
    devices = {p.device for p in model.parameters() if p.device.type == "cuda"}
    with torch.no_grad(), torch.random.fork_rng(devices):
        return feed(model, batch)


def _finite(output: Any) -> tuple[Tensor, ...]:
    return tuple(torch.isfinite(tensor).cpu() for tensor in _numbers(output))


def _numbers(output: Any) -> Iterator[Tensor]:
    """The tensors of numbers with a fraction among what a module takes or gives."""
    if isinstance(output, Tensor):
        yield from [output] if output.is_floating_point() else []
    elif isinstance(output, Mapping):
        yield from _numbers(list(output.values()))
    elif isinstance(output, tuple | list):
        for item in output:  # pyright: ignore[reportUnknownVariableType]
            yield from _numbers(item)


def _first_bad(model: nn.Module, batch: Batch) -> str:
    """The innermost module that stops, or the first that makes of numbers what is none."""
    running, bad = list[str](), list[str]()
    with _following(model, running, bad):
        try:
            _ran(model, batch)
        except Exception:
            bad.insert(0, running[-1] if running else "")
    return next(filter(None, bad), type(model).__name__)


@contextmanager
def _following(model: nn.Module, running: list[str], bad: list[str]) -> Generator[None]:
    """While it lasts, modules write down their names: those that run, those whose output is bad."""

    def follow(name: str, module: nn.Module) -> list[Any]:
        def before(*_: Any) -> None:
            running.append(name)

        def after(_module: nn.Module, came: Any, gave: Any) -> None:
            running.pop()
            if all(map(_is_finite, _numbers(came))) and not all(map(_is_finite, _numbers(gave))):
                bad.append(name)

        return [module.register_forward_pre_hook(before), module.register_forward_hook(after)]

    handles = [handle for path, m in model.named_modules() for handle in follow(path, m)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _is_finite(tensor: Tensor) -> bool:
    return bool(torch.isfinite(tensor).all())
